"""Parts of a projection: the mean and deviation of w, the learning rate of each step, and the shell of Gaussian z."""

import math

import torch
from torch import Tensor

from distgan.generators.pretrained import PretrainedGenerator
from distgan.rng import rng

MEAN_OF = 10_000
"""Latents z that the mean and the deviation of w are taken over."""
MAPPED_TOGETHER = 1_000
RAMP_UP = 0.05
"""Part of the steps over which the learning rate rises from 0."""
RAMP_DOWN = 0.25
"""Part of the steps, at the end, over which it falls to 0, as a cosine."""
EPS = 1e-12
SHELL = 1.4
"""Norms of z are kept this near to their mean: 95 % of those of Gaussian vectors are, of any length."""


@torch.no_grad()
def statistics_of_w(G: PretrainedGenerator, labels: Tensor | None, count: int) -> tuple[Tensor, Tensor]:
    """The mean [N, w_dim] of w of each image's label, and the root mean square deviation [N] of its coordinates."""
    z = torch.from_numpy(rng(0, "projection").standard_normal((MEAN_OF, G.z_dim), "float32"))
    z = z.to(next(G.parameters()).device)

    def of(label: Tensor | None) -> tuple[Tensor, Tensor]:
        parts = z.split(MAPPED_TOGETHER)
        w = [G.mapping(part, None if label is None else label.expand(len(part), *label.shape)) for part in parts]
        every = torch.cat(w).float()
        mean = every.mean(0)
        return mean, (every - mean).square().mean().sqrt()

    if labels is None:
        mean, deviation = of(None)
        return mean.repeat(count, 1), deviation.repeat(count)
    distinct, place = torch.unique(labels, dim=0, return_inverse=True)
    means, deviations = zip(*(of(label) for label in distinct), strict=True)
    return torch.stack(means)[place], torch.stack(deviations)[place]


def learning_rate(step: int, steps: int) -> float:
    """Its factor: a linear rise over the first 5 %, and a fall as a cosine over the last 25 %, to 0."""
    up = min(1.0, (step + 1) / max(1.0, RAMP_UP * steps))
    down = min(1.0, (1 - step / steps) / RAMP_DOWN)
    return up * (0.5 - 0.5 * math.cos(math.pi * down))


@torch.no_grad()
def to_shell(center: Tensor, moved: Tensor) -> None:
    """Change `moved` so that the norm of center + moved [N, z_dim] is in the shell of Gaussian vectors."""
    z = center + moved
    norm = z.norm(dim=1, keepdim=True)
    usual = math.sqrt(z.shape[1] - 0.5)
    moved.copy_(z * (norm.clamp(max(usual - SHELL, 0.0), usual + SHELL) / norm.clamp(min=EPS)) - center)
