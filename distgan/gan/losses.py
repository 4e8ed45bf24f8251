"""Adversarial losses: functions of logits that return per-sample losses. The step takes the mean."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Loss:
    """What D and what G minimize, as per-sample losses of logits."""

    d: Callable[[Tensor, Tensor], Tensor]
    """(real_logits [N], fake_logits [N]) -> [N]"""
    g: Callable[[Tensor, Any], Tensor]
    """(fake_logits [N], real_logits [N] if `paired`, else None) -> [N]"""
    score: Callable[[Tensor], Tensor] = torch.sigmoid
    """logits [N] -> [N]: D(x) in the log, a probability for BCE; the identity if a sigmoid means nothing."""
    paired: bool = False
    """Whether G's loss compares each fake with a real image, as relativistic losses do."""


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


LOSSES = {
    "bce": Loss(d=bce_d, g=bce_g),
}
