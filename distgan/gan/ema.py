"""Averages of G's weights during training; the exponential moving average (EMA), with a half-life in images."""
# pyright: reportPrivateImportUsage=false

import copy

import torch
from torch import Tensor, nn

from distgan.gan.schedules import Schedule, value_at


class AveragedGenerator:
    """A copy of G whose weights follow G's. Parameters are averaged; buffers (BatchNorm's running statistics, which
    are averages already) are copied."""

    def __init__(self, G: nn.Module) -> None:
        self.module = copy.deepcopy(G).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, G: nn.Module, weight: Tensor | float) -> None:
        """Move towards `G`, by the share `weight`: a number, or a 0-dim tensor on the device."""
        ema_params: list[Tensor] = list(self.module.parameters())
        params: list[Tensor] = list(G.parameters())
        move_towards(ema_params, params, weight)
        ema_buffers = list(self.module.buffers())
        buffers = list(G.buffers())
        if buffers:
            torch._foreach_copy_(ema_buffers, buffers)


class EMA(AveragedGenerator):
    """An average with a half-life in images (Yazıcı et al. 2019, arXiv 1806.04498).

    The half-life warms up: it is at most `warmup` times the images seen (0: no warm-up), so that the initial weights
    fade early in a run of any length (Karras et al. 2020, arXiv 1912.04958, as its code does with 0.05).
    """

    def __init__(self, G: nn.Module, half_life_images: Schedule, warmup: float = 0.0) -> None:
        super().__init__(G)
        self.half_life_images = half_life_images
        self.warmup = warmup

    def weight(self, batch: int, images_seen: int) -> float:
        """The share of G's new weights after an iteration of `batch` images that began at `images_seen`."""
        half_life = value_at(self.half_life_images, images_seen)
        half_life = min(half_life, self.warmup * images_seen) if self.warmup else half_life
        return 1 - 0.5 ** (batch / half_life) if half_life else 1.0


def move_towards(tensors: list[Tensor], targets: list[Tensor], weight: Tensor | float) -> None:
    """Linear interpolation, in place; torch's kernel for it takes a number only."""
    if isinstance(weight, Tensor):
        changes = torch._foreach_sub(targets, tensors)
        torch._foreach_mul_(changes, weight)
        torch._foreach_add_(tensors, changes)
    else:
        torch._foreach_lerp_(tensors, targets, weight)
