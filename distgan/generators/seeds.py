"""Images by seed: lists of seeds, the latent of each, and what else of an image its seed decides."""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from distgan.errors import UsageError
from distgan.generators.conditions import spread
from distgan.generators.pretrained import PretrainedGenerator
from distgan.generators.sampling import Inputs

MOST_SEEDS = 100_000
LONGEST = 18
"""Digits of a seed, at most."""


def parse_seeds(text: str, key: str = "seeds", separator: str = ",") -> list[int]:
    """The seeds of `6600-6625` or `1,5,9-12`, in that order. Raises UsageError, which names `key`."""
    seeds: list[int] = []
    for part in text.split(separator):
        match = re.fullmatch(rf"\s*(\d{{1,{LONGEST}}})(?:-(\d{{1,{LONGEST}}}))?\s*", part)
        if match is None:
            raise UsageError(f"{key}: {part!r} is neither a seed nor a range; write 6600-6625 or 1{separator}5")
        first = int(match[1])
        last = int(match[2] or first)
        if last < first:
            raise UsageError(f"{key}: the range {part.strip()} runs backwards; write {last}-{first}")
        if len(seeds) + last - first >= MOST_SEEDS:
            raise UsageError(f"{key}: there are more than {MOST_SEEDS:,}; --count N --seed S draws as many as you like")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        twice = next(seed for i, seed in enumerate(seeds) if seed in seeds[:i])
        raise UsageError(f"{key}: {twice} is given twice; keep one")
    return seeds


def seed_latents(G: PretrainedGenerator, seeds: Sequence[int], truncation: float | None = None) -> Tensor:
    """z [N, z_dim], each the first latent of its seed."""
    return torch.cat([G.draw(1, seed, truncation) for seed in seeds])


def seed_inputs(
    G: PretrainedGenerator,
    seeds: Sequence[int],
    classes: Sequence[int],
    given: Mapping[str, np.ndarray],
    truncation: float | None = None,
    *,
    every_class: bool = False,
) -> Inputs:
    """What the images of the seeds are made of: each a function of its seed, whatever the other seeds are.

    The class of seed s is classes[s % len(classes)], or with `every_class` a seed has an image of each class, in that
    order. Conditions that are not `given` are drawn by the seed from the range of the training set. The images are made
    one at a time: in a larger batch they may differ in the last bit.
    """
    repeats = len(classes) if every_class else 1
    if every_class:
        labels = np.tile(np.array(classes, np.int64), len(seeds))
    else:
        labels = np.array([classes[seed % len(classes)] for seed in seeds] if classes else [], np.int64)
    values: dict[str, np.ndarray] = {}
    drawn = [spread(G.spec.conditions, 1, seed) for seed in seeds]
    for condition in G.spec.conditions:
        own = np.concatenate([each[condition.name] for each in drawn])
        column = np.broadcast_to(given[condition.name], own.shape) if condition.name in given else own
        values[condition.name] = column.repeat(repeats)
    z = seed_latents(G, seeds, truncation).repeat_interleave(repeats, dim=0)
    return Inputs(z, labels, values, batch=1)


@torch.no_grad()
def to_w(G: PretrainedGenerator, inputs: Inputs) -> Inputs:
    """The inputs with the w [N, w_dim] of their z, truncated as G's images are, in its place. Raises UsageError."""
    device = next(G.parameters()).device
    labels = inputs.labels(G)
    w = G.mapping(inputs.latents.to(device), None if labels is None else labels.to(device))
    return inputs._replace(z=None, w=w.cpu())
