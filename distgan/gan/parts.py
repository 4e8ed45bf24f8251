"""What an iteration takes: networks and what trains them, minibatches, the penalties that are due."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distgan.gan.finite_difference import FiniteDifference
from distgan.gan.g_penalties import GPenalty
from distgan.gan.losses import Loss
from distgan.gan.penalties import Penalty
from distgan.gan.terms import WeightedTerm

Scalars = dict[str, Tensor]
"""Means over the minibatch by name, in the order they are computed; detached, on the device."""


def unaugmented(images: Tensor, u: Tensor | None, p: Tensor | float) -> Tensor:
    return images


def no_features(batch: "Minibatch", p: Tensor | float) -> None:
    return None


@dataclass(frozen=True)
class GAN:
    """Networks, optimizers, loss, and what the launcher adds to backward and update.

    G and D may be wrapped (for DDP); `raw_G` and `raw_D` are the networks without their wrappers.
    """

    G: nn.Module
    D: nn.Module
    raw_G: nn.Module
    raw_D: nn.Module
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer
    loss: Loss
    augment: Callable[[Tensor, Any, Tensor | float], Tensor] = unaugmented
    """(images [N, C, H, W] or stages [N, K, C, H, W], their random numbers, probability) -> what D sees."""
    backward: Callable[[Tensor], None] = Tensor.backward
    no_sync: Callable[[nn.Module], AbstractContextManager] = lambda network: nullcontext()
    """A context in which a network's gradients accumulate without being reduced."""
    compile: Callable[[Any], Any] = lambda function: function
    """What compiles G and the two objectives: the same functions of the same arguments."""
    average_g: Callable[[], None] = lambda: None
    """Averages G's gradient over processes, if its wrapper does not."""
    average_d: Callable[[], None] = lambda: None
    """The same for D."""
    clip_g: Callable[[], Tensor | None] = lambda: None
    """Clips G's gradient before its optimizer's step; returns the norm it had, for the log."""
    clip_d: Callable[[], Tensor | None] = lambda: None
    """The same for D."""
    terms: Mapping[str, WeightedTerm] = field(default_factory=dict)
    """Added to the objectives of D and of G, by name."""
    frozen_features: Callable[["Minibatch", Tensor | float], Tensor | None] = no_features
    """(minibatch, probability of augmentation) -> what a term of D compares its features with, [N, tokens, F]."""


class Minibatch(NamedTuple):
    """N real images, and the random numbers that go with them."""

    real: Tensor
    """[N, C, H, W] in [-1, 1]"""
    z: Tensor
    """[N, z_dim], N(0, 1)"""
    labels: Tensor | None = None
    """[N], classes, or [N, label_width], numbers; of the real images"""
    fake_labels: Tensor | None = None
    """Those of the fakes; the same as `labels` if the loss is paired or a penalty interpolates"""
    u_real: Tensor | None = None
    """[N, columns] in (0, 1), uniform: augments the real images"""
    u_fake: Tensor | None = None
    """[N, columns], augments the fakes in the update of D"""
    u_g: Tensor | None = None
    """[N, columns], augments the fakes in the update of G"""
    mix: Tensor | None = None
    """[N] in (0, 1), uniform, for penalties that interpolate"""
    noise_real: Tensor | None = None
    """[N], int64 keys of the noise that penalties add to the real images"""
    noise_fake: Tensor | None = None
    """[N], of that for the fakes"""
    pixels: Tensor | None = None
    """[N, 1 or 3, H, W] in [-1, 1], the real images, where `real` are latents and a frozen network sees the images"""


class Batches(NamedTuple):
    """The minibatches of one iteration, each as equal micro-batches, usually a single one."""

    d: Sequence[Sequence[Minibatch]]
    """One for each update of D."""
    g: Sequence[Minibatch] | None = None
    """For the update of G; None: the last of `d`, with the fakes that D saw."""


class WeightedPenalty(NamedTuple):
    """A penalty that is due in this iteration."""

    penalty: Penalty
    weight: Tensor | float
    """A number, or a 0-dim tensor on the device."""
    every: int = 1
    """Iterations between two applications; the weight counts as many times."""
    difference: FiniteDifference = FiniteDifference()
    """How a penalty that perturbs images does it; one penalty may perturb the real images, one the fakes."""
    separate: bool = False
    """Whether it is applied in an update of its own, after that of the loss."""


Penalties = Mapping[str, WeightedPenalty]


class WeightedGPenalty(NamedTuple):
    """A penalty of G that is due in this iteration."""

    penalty: GPenalty
    weight: Tensor | float
    """A number, or a 0-dim tensor on the device."""
    mean: Tensor
    """0-dim, the running mean of what the penalty measures; the step reads it, and whoever calls the step moves it."""
    every: int = 1
    """Iterations between two applications; the weight counts as many times."""
    separate: bool = False
    """Whether it is applied in an update of its own, after that of the loss."""
    stride: int = 1
    """Every so many rows of the minibatch, one is penalized: a share of 1 / stride."""


GPenalties = Mapping[str, WeightedGPenalty]
