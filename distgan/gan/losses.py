"""Adversarial losses: elementwise functions of logits, [N] or [N, K]. The step takes the mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """What D and what G minimize, as losses of logits, elementwise: of K logits of an image the mean counts."""

    d: Callable[[Tensor, Tensor], Tensor]
    """(real_logits [N], fake_logits [N]) -> [N]"""
    g: Callable[[Tensor, Any], Tensor]
    """(fake_logits [N], real_logits [N] if `paired`, else None) -> [N]"""
    paired: bool = False
    """Whether G's loss compares each fake with a real image, as relativistic losses do. G is then updated on latents
    and real images of its own."""
    boundary: float | None = None
    """The logit between real and fake, for adaptive augmentation; None if only differences of logits mean anything."""
    bounded: bool = True
    """Whether the loss of D is bounded below. One that is not needs a penalty or spectral normalization."""


def bce_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Binary cross entropy with target 1 for real and 0 for fake: -log D(x) - log(1 - D(G(z))).

    Goodfellow et al. 2014, "Generative adversarial nets", equation 1. Takes logits: a sigmoid in bf16 is exactly 1,
    with no gradient, for logits above about 6.
    """
    real_error = F.binary_cross_entropy_with_logits(real_logits, torch.ones_like(real_logits), reduction="none")
    fake_error = F.binary_cross_entropy_with_logits(fake_logits, torch.zeros_like(fake_logits), reduction="none")
    return real_error + fake_error


def bce_g(fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
    """Binary cross entropy of the fakes with target 1: -log D(G(z)).

    The non-saturating loss of Goodfellow et al. 2014, section 3.
    """
    return F.binary_cross_entropy_with_logits(fake_logits, torch.ones_like(fake_logits), reduction="none")


def hinge_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))) (Miyato et al. 2018, arXiv 1802.05957, equation 16)."""
    return F.relu(1 - real_logits) + F.relu(1 + fake_logits)


def negative_logits(fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
    """-D(G(z)): G's loss of the hinge loss (Miyato et al. 2018, equation 17) and of WGAN."""
    return -fake_logits


def lsgan_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """((D(x) - 1)^2 + D(G(z))^2) / 2 (Mao et al. 2017, arXiv 1611.04076, equation 9)."""
    return ((real_logits - 1).square() + fake_logits.square()) / 2


def lsgan_g(fake_logits: Tensor, real_logits: Tensor | None) -> Tensor:
    """(D(G(z)) - 1)^2 / 2 (Mao et al. 2017, equation 9)."""
    return (fake_logits - 1).square() / 2


def wgan_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """D(G(z)) - D(x): minus the estimate of the Wasserstein distance (Arjovsky et al. 2017, arXiv 1701.07875)."""
    return fake_logits - real_logits


def rpgan_d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """softplus(D(G(z)) - D(x)), in pairs (Jolicoeur-Martineau 2018, arXiv 1807.00734, section 3.2).

    With f(t) = -log(1 + e^-t), as R3GAN uses it (Huang et al. 2024, arXiv 2501.05441, equation 2).
    """
    return F.softplus(fake_logits - real_logits)


def rpgan_g(fake_logits: Tensor, real_logits: Tensor) -> Tensor:
    """softplus(D(x) - D(G(z))): the loss of D with real and fake exchanged."""
    return F.softplus(real_logits - fake_logits)


LOSSES = {
    "bce": Loss(d=bce_d, g=bce_g, boundary=0.0),
    "hinge": Loss(d=hinge_d, g=negative_logits, boundary=0.0),
    "lsgan": Loss(d=lsgan_d, g=lsgan_g, boundary=0.5),
    "wgan": Loss(d=wgan_d, g=negative_logits, bounded=False),
    "rpgan": Loss(d=rpgan_d, g=rpgan_g, paired=True),
}
