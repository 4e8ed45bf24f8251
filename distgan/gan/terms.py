"""Extra terms of the objectives of D and of G: functions of one forward pass that return per-sample values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from distgan.gan.augment import working
from distgan.gan.outputs import Output
from distgan.gan.penalties import DForward


class GForward(NamedTuple):
    """What G returned in its update."""

    output: Output
    """With its graph, before augmentation"""


@dataclass(frozen=True)
class Term:
    """A term, and what it needs."""

    compute: Callable[[Any], Tensor]
    """DForward or GForward -> [N]"""
    of: Literal["d", "g"]
    """The network whose objective it is added to."""
    network: bool = False
    """Whether it compares D's features of the real images with those of a frozen network."""
    stages: bool = False
    """Whether it compares the stages of G."""


class WeightedTerm(NamedTuple):
    """A term of a run."""

    term: Term
    weight: Tensor | float
    """A number, or a 0-dim tensor on the device."""


def consistency(forward: GForward) -> Tensor:
    """Distance of G's earlier stages to its image, in float32: of the stages h_0, ..., h_(K-1), with n = K - 1,

        (|h_0 - h_n|^2 / n + |h_1 - h_n|^2 / (n - 1) + ... + |h_(n-1) - h_n|^2) / n

    where |.|^2 is the mean over channels and pixels. CAT (arXiv 2605.26449) adds it to G's loss with the weight 0.1;
    the factors are those of a reimplementation, not confirmed by the paper. The gradient reaches the image too.
    """
    return stage_distances(forward.output, detach=False)


def consistency_detached(forward: GForward) -> Tensor:
    """`consistency` whose gradient reaches the earlier stages only: which of the two CAT takes is not published."""
    return stage_distances(forward.output, detach=True)


def stage_distances(output: Output, detach: bool) -> Tensor:
    assert isinstance(output, Mapping) and "stages" in output, "the term compares the stages of G"
    stages = working(output["stages"])
    image = stages[:, -1:].detach() if detach else stages[:, -1:]
    squares = (stages[:, :-1] - image).square().flatten(2).mean(2)  # [N, K - 1]
    n = squares.shape[1]
    factors = 1 / torch.arange(n, 0, -1, dtype=squares.dtype, device=squares.device)
    return (squares * factors).mean(1)


def align(forward: DForward) -> Tensor:
    """1 - cos of D's class token with the frozen network's, plus the mean over patches of 1 - cos, in float32.

    Of the real images, which both networks see alike augmented. GAT (arXiv 2509.24935) takes DINOv2 and the weight 1;
    the form is that of REPA (Yu et al. 2024, arXiv 2410.06940, equation 8). Where the numbers of patches differ, the
    frozen network's are resized, bicubic, to those of D by whoever computes them.
    """
    assert forward.features is not None and forward.targets is not None, "the term compares features"
    features, targets = working(forward.features), working(forward.targets)
    distances = 1 - F.cosine_similarity(features, targets, dim=2)  # [N, 1 + patches]
    return distances[:, 0] + distances[:, 1:].mean(1)


TERMS = {
    "align": Term(align, of="d", network=True),
    "consistency": Term(consistency, of="g", stages=True),
    "consistency_detached": Term(consistency_detached, of="g", stages=True),
}
