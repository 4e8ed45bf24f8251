"""Bilinear resampling of images by 2, differentiable any number of times."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# One axis at a time, each a few passes over memory; channels-last stays channels-last. Depthwise convolutions took 3 to
# 14 times as long up to the second derivative (16 images of 64 or 128 channels on a CPU). Each map is the transpose of
# the other, up to a factor: the backward of one is the other, and nothing is saved for it.


def downsample2x(images: Tensor) -> Tensor:
    """[N, C, 2H, 2W] -> [N, C, H, W], filtered by [1, 3, 3, 1] / 8 along both axes; zeros outside of the image."""
    return Downsample.apply(images)  # type: ignore[no-any-return]


def upsample2x(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W]: bilinear interpolation, the transpose of `downsample2x` times 4.

    Zeros outside of the image; a constant image stays constant but for the outermost pixels.
    """
    return Upsample.apply(images)  # type: ignore[no-any-return]


class Downsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return halve(halve(images, 2), 3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return upsample2x(gradient) / 4


class Upsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        return double(double(images, 2), 3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return downsample2x(gradient) * 4


def halve(x: Tensor, dim: int) -> Tensor:
    """y[i] = (x[2i - 1] + 3 x[2i] + 3 x[2i + 1] + x[2i + 2]) / 8"""
    even, odd = x.unflatten(dim, (-1, 2)).unbind(dim + 1)
    n = even.shape[dim] - 1
    y = (even + odd).mul_(3 / 8)
    y.narrow(dim, 1, n).add_(odd.narrow(dim, 0, n), alpha=1 / 8)
    y.narrow(dim, 0, n).add_(even.narrow(dim, 1, n), alpha=1 / 8)
    return y


def double(x: Tensor, dim: int) -> Tensor:
    """y[2i] = (x[i - 1] + 3 x[i]) / 4 and y[2i + 1] = (3 x[i] + x[i + 1]) / 4"""
    n = x.shape[dim] - 1
    y = F.interpolate(x, scale_factor=(2.0, 1.0) if dim == 2 else (1.0, 2.0)).mul_(3 / 4)
    even, odd = y.unflatten(dim, (-1, 2)).unbind(dim + 1)
    even.narrow(dim, 1, n).add_(x.narrow(dim, 0, n), alpha=1 / 4)
    odd.narrow(dim, 0, n).add_(x.narrow(dim, 1, n), alpha=1 / 4)
    return y
