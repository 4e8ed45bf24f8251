"""Schedules: numbers that change during a run, as pure functions of the images seen."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

Schedule = float | Mapping[str, Any]
"""A constant, or {from: number, to: number, images: number[, shape: a key of SHAPES][, start: images]}."""


def value_at(schedule: Schedule, images_seen: int) -> float:
    """The number after `images_seen` images: `from` until `start`, `to` from `start + images` on."""
    if not isinstance(schedule, Mapping):
        return float(schedule)
    progress = (images_seen - schedule.get("start", 0)) / schedule["images"]
    share = SHAPES[schedule.get("shape", "cosine")](min(max(progress, 0.0), 1.0))
    return float(schedule["from"] + share * (schedule["to"] - schedule["from"]))


LEAST_ITERATIONS, LEAST_IMAGES = 4, 256


def iterations_averaged(images: int) -> int:
    """Iterations of `images` images over which sign(D(x)) is averaged before the probability of augmentation moves.

    Four, as in the code of Karras et al. 2020, and at least 256 images. The probability follows the sign of
    (mean - target): it settles where the *median* of the mean is the target, and the mean of few signs takes few
    values. With 16 images and a target of 0.6 that would be 0.551.
    """
    return max(LEAST_ITERATIONS, math.ceil(LEAST_IMAGES / images))


def adapt_probability(p: Tensor, sign: Tensor, *, target: float, images: float, step: int) -> Tensor:
    """The probability of augmentation after `step` more images: higher if D overfits, else lower; in [0, 1].

    `sign` is the mean of sign(D(x)) over real images; above `target`, D has memorized the training images. p
    crosses [0, 1] in `images` images (Karras et al. 2020, arXiv 2006.06676, section 3.1 with r_t). 0-dim tensors.
    """
    return (p + (sign - target).sign() * (step / images)).clamp(0, 1)


SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda progress: progress,
    "cosine": lambda progress: (1 - math.cos(math.pi * progress)) / 2,
}
