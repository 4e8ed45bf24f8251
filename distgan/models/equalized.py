"""Layers with an equalized learning rate: weights near N(0, 1), scaled when they are used; StyleGAN's activation."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.models.resample import downsample2x, smooth


def unit_rms(x: Tensor) -> Tensor:
    """x [N, features] over the root of the mean of its squares."""
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


def scaled_leaky_relu(x: Tensor, clamp: float | None = None) -> Tensor:
    """sqrt(2) LeakyReLU(x) of slope 0.2, which keeps the mean square of N(0, 1) near 1; limited to +-`clamp`."""
    x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    return x if clamp is None else x.clamp(-clamp, clamp)


class EqualizedLinear(nn.Module):
    """[..., inputs] -> [..., outputs]: (m / sqrt(inputs)) W x + m b, W ~ N(0, 1 / m^2), m = `lr_multiplier`.

    Karras et al. 2018 (1710.10196, section 4.1): under Adam all layers learn at the same speed. A multiplier below 1
    (Karras et al. 2019, 1812.04948, appendix C) makes the layer slower by that factor. It starts with biases m b =
    `bias`.
    """

    def __init__(self, inputs: int, outputs: int, lr_multiplier: float = 1.0, bias: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.full((outputs,), bias / lr_multiplier))
        self.weight_gain = lr_multiplier / math.sqrt(inputs)
        self.bias_gain = lr_multiplier
        self.init_weight()

    def init_weight(self) -> None:
        nn.init.normal_(self.weight, 0.0, 1 / self.bias_gain)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class EqualizedConv2d(nn.Module):
    """[N, inputs, H, W] -> [N, outputs, H, W], or of half the size with `down`: W x / sqrt(inputs kernel^2) + b.

    W ~ N(0, 1), b = 0. `down` filters by [1, 3, 3, 1] along both axes and takes every other pixel (Karras et al. 2019,
    1812.04948, table 1, after Zhang 2019, 1904.11486).
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True, down: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.gain = 1 / math.sqrt(inputs * kernel**2)
        self.kernel = kernel
        self.down = down

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.gain
        if not self.down:
            return F.conv2d(x, weight, self.bias, padding=self.kernel // 2)
        if self.kernel == 1:  # only the pixels that are kept are filtered
            return F.conv2d(downsample2x(x), weight, self.bias)
        return F.conv2d(smooth(x, 2), weight, self.bias, stride=2)
