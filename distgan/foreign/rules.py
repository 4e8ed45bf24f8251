"""How a network's tensors of another project become those of `distgan.models.stylegan2`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.errors import UsageError
from distgan.foreign.stored import StoredTensor

SHOWN = 5
"""Names in a message."""
Tensors = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class Rule:
    """One of our tensors, made of one or more of theirs."""

    ours: str
    theirs: tuple[str, ...]
    make: Callable[..., Tensor] = lambda tensor: tensor

    def shape(self, tensors: Tensors) -> torch.Size:
        """Of ours, without reading theirs. Raises UsageError for shapes that it cannot be made of."""
        try:
            return self.make(*[torch.empty(tensors[name].shape, device="meta") for name in self.theirs]).shape
        except (RuntimeError, IndexError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{self.describe(tensors)} cannot be {self.ours} ({reason})") from None

    def read(self, tensors: Tensors) -> Tensor:
        """Ours, float32. Raises UsageError for a value that is not finite."""
        inputs = [tensors[name].read() for name in self.theirs]
        for name, tensor in zip(self.theirs, inputs, strict=True):
            if not tensor.isfinite().all():
                raise UsageError(f"{name} has values that are not finite")
        return self.make(*inputs).to(torch.float32).contiguous()

    def describe(self, tensors: Tensors) -> str:
        """Theirs, with their shapes."""
        return " and ".join(f"{name} of shape {list(tensors[name].shape)}" for name in self.theirs)


@dataclass(frozen=True)
class Layout:
    """The names and the conventions of a project."""

    name: str
    licence: str
    """What is said of the licence of such weights."""
    of_generator: str
    """A tensor that its G has."""
    of_discriminator: str
    generator: Callable[[Tensors], list[Rule]]
    discriminator: Callable[[Tensors], list[Rule]]
    filters: str = r"(?!)"
    """The pattern of names of resampling filters."""


def check_names(tensors: Tensors, rules: list[Rule], filters: str) -> None:
    """Raises UsageError for tensors that are missing, or more than the network has, and for other filters."""
    wanted = {name for rule in rules for name in rule.theirs}
    if missing := sorted(wanted - set(tensors)):
        raise UsageError(f"it has no {listed(missing)}")
    for name in sorted(set(tensors) - wanted):
        if re.fullmatch(filters, name):
            check_filter(name, tensors[name])
            wanted.add(name)
    if more := sorted(set(tensors) - wanted):
        raise UsageError(f"it has tensors that StyleGAN2 has not: {listed(more)}")


def check_filter(name: str, stored: StoredTensor) -> None:
    """Raises UsageError for a filter other than [1, 3, 3, 1] along both axes, up to a factor."""
    line = torch.tensor([1.0, 3, 3, 1], dtype=torch.float64) / 8
    taps = stored.read() if stored.shape == (4, 4) else torch.zeros(4, 4, dtype=torch.float64)
    if not torch.allclose(taps / taps.sum(), torch.outer(line, line), atol=1e-4):
        raise UsageError(f"{name} is not the filter [1, 3, 3, 1], which stylegan2 has")


def listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def count(tensors: Tensors, pattern: str) -> int:
    """The different numbers that the group of a pattern matches at the beginning of the names."""
    found = (re.match(pattern, name) for name in tensors)
    return len({match[1] for match in found if match})
