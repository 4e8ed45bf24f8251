"""The networks by name: `build` makes G and D for the images of a data set, from the seed alone."""

import inspect
from collections.abc import Callable

import torch
from torch import nn

from distgan import UsageError
from distgan.models import dcgan
from distgan.rng import derive_seed

Builder = Callable[..., tuple[nn.Module, nn.Module]]


def build(
    name: str, *, size: int, channels: int, classes: int, latent: int, options: dict, seed: int
) -> tuple[nn.Module, nn.Module]:
    """G: (z [N, latent], labels [N] or None) -> images [N, channels, size, size] in [-1, 1], and
    D: (images, labels [N] or None) -> logits [N]; both on the CPU, initialised from `seed` alone.

    `classes` is 0 for networks without labels. `options` are keyword arguments of the architecture.
    Raises UsageError for an unknown name or option, and where the architecture has no network of that size.
    """
    if name not in MODELS:
        raise UsageError(f"model.name: there is no {name!r}; the models are {', '.join(MODELS)}")
    known = [p.name for p in inspect.signature(MODELS[name]).parameters.values() if p.default is not p.empty]
    for key in options:
        if key not in known:
            raise UsageError(f"model.options.{key}: {name} has no such option; it has {', '.join(known)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        return MODELS[name](size=size, channels=channels, classes=classes, latent=latent, **options)


MODELS: dict[str, Builder] = {
    "dcgan": dcgan.build,
}
