"""Tables of images: which array holds the images, and which columns are their labels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from distgan.dataset_tool.labels import labels_of_columns, split_kind
from distgan.dataset_tool.sources.source import Source, add_labels, take_labels
from distgan.errors import UsageError

Shape = tuple[int, ...]


def choose_images(shapes: Mapping[str, Shape], image_key: str | None, where: str) -> str:
    """The name of the array of images: `image_key`, or the only one of three axes or more. Raises UsageError."""
    listed = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "no arrays"
    if image_key is not None:
        name = image_key.strip("/")
        if name not in shapes:
            raise UsageError(f"--image_key: {where} has no array {image_key!r}; it has {listed}")
        if len(shapes[name]) not in (3, 4):
            shape = list(shapes[name])
            raise UsageError(f"--image_key: {name!r} of {where} is {shape}; images are [N, H, W] or [N, H, W, C]")
        return name
    found = [name for name, shape in shapes.items() if len(shape) >= 3]
    if len(found) != 1:
        problem = "several arrays may be the images" if found else "no array of three axes or more"
        raise UsageError(f"{where}: {problem}; it has {listed}; --image_key NAME says which are the images")
    return choose_images(shapes, found[0], where)


def add_columns(
    source: Source,
    candidates: Collection[str],
    read: Callable[[str], Sequence[Any]],
    *,
    labels: str,
    label_columns: str | None,
    where: str,
    names: Mapping[str, Sequence[str]] | None = None,
) -> Source:
    """Add labels: `auto` (of the candidates, by `labels_of_columns`), `none`, or from the file `labels`.

    `read` gives the N values of a candidate; only those that may be taken are read. Raises UsageError.
    """
    if not source.names:
        raise UsageError(f"{where} has no images")
    if labels != "auto":
        return add_labels(source, labels, no_file, label_columns)
    wanted = [split_kind(word.strip())[0] for word in (label_columns or "").split(",")]
    all_needed = label_columns is None or len(candidates) == 1  # the name of the only one may not be in `label_columns`
    columns: dict[str, Sequence[Any]] = {}
    for name in candidates:
        needed = all_needed or any(word == name or word.startswith(f"{name}_") for word in wanted)
        columns[name] = read(name) if needed else ()
    take_labels(source, labels_of_columns(columns, label_columns, where, names, source.names))
    return source


def no_file(name: str) -> bytes:
    """The files of a table by name, for `add_labels`: there are none."""
    raise KeyError(name)
