"""Exponential moving average (EMA) of G's weights, with a half-life in images."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A copy of G whose weights follow G's with a half-life in images (Yazıcı et al. 2019, arXiv 1806.04498).

    Parameters are averaged; buffers (BatchNorm's running statistics, which are averages already) are copied.
    """

    def __init__(self, G: nn.Module, half_life_images: float) -> None:
        self.module = copy.deepcopy(G).eval().requires_grad_(False)
        self.half_life_images = half_life_images

    @torch.no_grad()
    def update(self, G: nn.Module, batch: int) -> None:
        """Move towards `G` after an iteration of `batch` images."""
        weight = 1 - 0.5 ** (batch / self.half_life_images)
        ema_params: list[Tensor] = list(self.module.parameters())
        params: list[Tensor] = list(G.parameters())
        torch._foreach_lerp_(ema_params, params, weight)  # pyright: ignore[reportPrivateImportUsage] - one kernel
        for ema_buffer, buffer in zip(self.module.buffers(), G.buffers(), strict=True):
            ema_buffer.copy_(buffer)
