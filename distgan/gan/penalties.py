"""Gradient penalties of D: functions of one forward pass that return per-sample penalties. The step takes the mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class DForward(NamedTuple):
    """What D was applied to in its update, and what it returned."""

    D: Callable[[Tensor, Any], Tensor]
    """(images [N, C, S, S], labels [N] or None) -> logits [N], through the augmentations of the real images"""
    real: Tensor
    """[N, C, S, S], before augmentation; requires a gradient"""
    fake: Tensor
    """[N, C, S, S], before augmentation; requires a gradient, and is detached from G"""
    real_logits: Tensor
    """[N]"""
    fake_logits: Tensor
    """[N]"""
    labels: Tensor | None
    """[N], of the real images"""
    mix: Tensor | None
    """[N] in (0, 1), uniform; None unless a penalty `interpolates`"""


@dataclass(frozen=True)
class Penalty:
    """A penalty, and what it needs."""

    compute: Callable[[DForward], Tensor]
    """-> [N]"""
    interpolates: bool = False
    """Whether it evaluates D between a real image and a fake one, which then have the same label."""


def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """|grad D|^2 [N], in float32: squares of the gradient of each logit with respect to its image, summed over pixels.

    In a network that lets images see each other, as BatchNorm does, it would mix the gradients of all logits.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.float().square().sum((1, 2, 3))


def r1(forward: DForward) -> Tensor:
    """|grad D(x)|^2 / 2 on real images (Mescheder et al. 2018, arXiv 1801.04406, equation 9); the weight is gamma."""
    return squared_gradient(forward.real_logits, forward.real) / 2


def r2(forward: DForward) -> Tensor:
    """|grad D(G(z))|^2 / 2 on fakes (Mescheder et al. 2018, equation 10); the weight is gamma."""
    return squared_gradient(forward.fake_logits, forward.fake) / 2


def wgan_gp(forward: DForward) -> Tensor:
    """(|grad D| - 1)^2 between real and fake images (Gulrajani et al. 2017, arXiv 1704.00028, equation 3)."""
    assert forward.mix is not None, "the penalty interpolates"
    real = forward.real.detach()
    fake = forward.fake.detach().to(forward.real.dtype)
    images = torch.lerp(fake, real, forward.mix.view(-1, 1, 1, 1)).requires_grad_(True)
    squares = squared_gradient(forward.D(images, forward.labels), images)
    return ((squares + 1e-12).sqrt() - 1).square()  # the square root has no derivative at 0


PENALTIES = {
    "r1": Penalty(r1),
    "r2": Penalty(r2),
    "wgan_gp": Penalty(wgan_gp, interpolates=True),
}
