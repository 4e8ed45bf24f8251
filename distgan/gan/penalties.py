"""Gradient penalties of D: functions of one forward pass that return per-sample penalties. The step takes the mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from distgan.gan.finite_difference import LogitChange, squared_slope


class DForward(NamedTuple):
    """What D was applied to in its update, and what it returned."""

    D: Callable[[Tensor, Any], Tensor]
    """(images or stages, labels or None) -> logits [N] or [N, K], through the augmentations of the real images"""
    real: Tensor
    """[N, C, H, W], before augmentation; requires a gradient if a penalty `differentiates`"""
    fake: Tensor
    """[N, C, H, W], or stages [N, K, C, H, W], before augmentation, detached from G; requires a gradient if a penalty
    `differentiates`"""
    real_logits: Tensor
    """[N] or [N, K]"""
    fake_logits: Tensor
    """[N] or [N, K]; N is 0 in an update of D for penalties none of which sees fakes"""
    labels: Tensor | None
    """[N] or [N, label_width], of the real images"""
    mix: Tensor | None
    """[N] in (0, 1), uniform; None unless a penalty `interpolates`"""
    real_change: LogitChange | None = None
    """Of D at real images with noise added; None unless a penalty `perturbs` them"""
    fake_change: LogitChange | None = None
    """The same at fakes"""
    features: Tensor | None = None
    """[N, tokens, F], of the real images, of a D that returns them"""
    targets: Tensor | None = None
    """[N, tokens, F], those of a frozen network; None unless a term of D compares with them"""


@dataclass(frozen=True)
class Penalty:
    """A penalty, and what it needs."""

    compute: Callable[[DForward], Tensor]
    """-> [N]; of a penalty that `perturbs`, [M] for the M images that noise is added to"""
    interpolates: bool = False
    """Whether it evaluates D between a real image and a fake one, which then have the same label."""
    differentiates: bool = True
    """Whether it takes gradients with respect to images."""
    perturbs: Literal["real", "fake"] | None = None
    """The images that it evaluates D at with noise added, if any."""
    sees_fakes: bool = True
    """Whether it takes the fakes or their logits: if none does, an update of D for penalties alone is without fakes."""


def squared_gradient(logits: Tensor, images: Tensor) -> Tensor:
    """|grad D|^2 [N], in float32: squares of the gradient of each logit with respect to its image, summed over pixels.

    Of several logits or stages of an image, it is the gradient of the sum of its logits with respect to all stages.
    In a network that lets images see each other, as BatchNorm does, it would mix the gradients of all logits.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.float().square().flatten(1).sum(1)


def r1(forward: DForward) -> Tensor:
    """|grad D(x)|^2 / 2 on real images (Mescheder et al. 2018, arXiv 1801.04406, equation 9); the weight is gamma."""
    return squared_gradient(forward.real_logits, forward.real) / 2


def r2(forward: DForward) -> Tensor:
    """|grad D(G(z))|^2 / 2 on fakes (Mescheder et al. 2018, equation 10); the weight is gamma."""
    return squared_gradient(forward.fake_logits, forward.fake) / 2


def wgan_gp(forward: DForward) -> Tensor:
    """(|grad D| - 1)^2 between real and fake images (Gulrajani et al. 2017, arXiv 1704.00028, equation 3)."""
    assert forward.mix is not None, "the penalty interpolates"
    # not detached: torch.compile takes no images that are made to require a gradient on the way
    fake = forward.fake.to(forward.real.dtype)
    real = forward.real if fake.ndim == 4 else forward.real.unsqueeze(1)  # the same image at all stages
    images = torch.lerp(fake, real.expand_as(fake), forward.mix.view(-1, *[1] * (fake.ndim - 1)))
    squares = squared_gradient(forward.D(images, forward.labels), images)
    return ((squares + 1e-12).sqrt() - 1).square()  # the square root has no derivative at 0


def r1_fd(forward: DForward) -> Tensor:
    """r1 in expectation: ((D(x + sigma e) - D(x)) / sigma)^2 / 2 on real images, e ~ N(0, I); the weight is gamma.

    The approximated R1 of Lin et al. 2025 (arXiv 2501.08316), whose weight lambda is gamma / (2 sigma^2). Off by
    O(sigma^2) in expectation, and spread around it: of a linear D it is |grad D|^2 / 2 times a chi-squared number with
    one degree of freedom. Raises AssertionError if D was not evaluated at perturbed images.
    """
    return squared_slope(forward.real_change) / 2


def r2_fd(forward: DForward) -> Tensor:
    """The same on fakes: r2 in expectation."""
    return squared_slope(forward.fake_change) / 2


PENALTIES = {
    "r1": Penalty(r1, sees_fakes=False),
    "r2": Penalty(r2),
    "wgan_gp": Penalty(wgan_gp, interpolates=True),
    "r1_fd": Penalty(r1_fd, differentiates=False, perturbs="real", sees_fakes=False),
    "r2_fd": Penalty(r2_fd, differentiates=False, perturbs="fake"),
}
