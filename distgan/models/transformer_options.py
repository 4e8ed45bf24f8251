"""Options that gat and cat share: sizes of transformers and what they are checked for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distgan.errors import UsageError
from distgan.models.layers import check_choice, check_positive


@dataclass(frozen=True)
class TransformerSize:
    """Of a transformer."""

    width: int
    """Features of a token."""
    depth: int
    """Blocks."""
    heads: int
    """Of attention, each of width / heads features."""


def named_size(sizes: Mapping[str, TransformerSize], prefix: str, name: Any) -> TransformerSize:
    """Raises UsageError."""
    check_choice(f"{prefix}size", name, sizes, "size")
    return sizes[name]


def resize(base: TransformerSize, prefix: str, width: Any, depth: Any, heads: Any) -> TransformerSize:
    """`base`, with those of the options that are not None in place of its own. Raises UsageError."""
    size = TransformerSize(
        base.width if width is None else width,
        base.depth if depth is None else depth,
        base.heads if heads is None else heads,
    )
    check_positive(**{f"{prefix}width": size.width, f"{prefix}depth": size.depth, f"{prefix}heads": size.heads})
    if size.width % (4 * size.heads):
        raise UsageError(
            f"model.options.{prefix}width: {size.width} must be a multiple of {4 * size.heads}, four times "
            f"{prefix}heads: each head takes pairs of features for rows and for columns"
        )
    return size


def check_not_negative(**options: Any) -> None:
    """Raises UsageError unless each of the options is an integer of at least 0."""
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise UsageError(f"model.options.{name}: {value!r} is not an integer of at least 0")


def check_flag(**options: Any) -> None:
    """Raises UsageError unless each of the options is true or false."""
    for name, value in options.items():
        if not isinstance(value, bool):
            raise UsageError(f"model.options.{name}: {value!r} is neither true nor false")


def check_stages(stages: Any, depth: int) -> None:
    """Raises UsageError."""
    check_positive(stages=stages)
    if stages > depth:
        raise UsageError(f"model.options.stages: {stages} outputs need at least as many blocks; G has {depth} (depth)")
