"""Bilinear resampling of images by 2, and its filter alone, differentiable any number of times."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# One axis at a time, each a few passes over memory; channels-last stays channels-last. Up to the second derivative,
# depthwise convolutions took 1.2 to 7 times as long in float32 and 3 to 18 times in bf16; up to the first, half as long
# at best (float32, upsampling). CPU, 16 images of 64 to 128 channels. Each map is the transpose of the other, up to a
# factor: the backward of one is the other, and nothing is saved for it.
#
# torch.compile differentiates such a pair of Functions twice wrongly, without an error (torch 2.15). It gets the same
# sums as plain operations, and fuses them. Without a compiler these take 2 to 3 times as long on channels-last images.


def downsample2x(images: Tensor) -> Tensor:
    """[N, C, 2H, 2W] -> [N, C, H, W], filtered by [1, 3, 3, 1] / 8 along both axes; zeros outside of the image."""
    if torch.compiler.is_compiling():
        return halve_plainly(halve_plainly(images, 2), 3)
    return Downsample.apply(images)  # type: ignore[no-any-return]


def upsample2x(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, C, 2H, 2W]: bilinear interpolation, the transpose of `downsample2x` times 4.

    Zeros outside of the image; a constant image stays constant but for the outermost pixels.
    """
    if torch.compiler.is_compiling():
        return double_plainly(double_plainly(images, 2), 3)
    return Upsample.apply(images)  # type: ignore[no-any-return]


def smooth(images: Tensor, padding: int) -> Tensor:
    """[N, C, H, W] -> [N, C, H + 2p - 3, W + 2p - 3], filtered by [1, 3, 3, 1] / 8 along both axes.

    p = `padding`, 1 or 2, are the zeros around the image: 1 after a transposed convolution of stride 2, 2 before a
    convolution of stride 2 (Karras et al. 2020, 1912.04958, whose filters go with strided convolutions). The transpose
    of one is the other.
    """
    assert padding in (1, 2), "the transpose would crop"
    if torch.compiler.is_compiling():
        return smooth_plainly(images, padding)
    return Smooth.apply(images, padding)  # type: ignore[no-any-return]


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


class Smooth(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, padding: int) -> Tensor:
        ctx.padding = padding
        return smooth_depthwise(images, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return smooth(gradient, 3 - ctx.padding), None


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
    y = F.interpolate(x * (3 / 4), scale_factor=(2.0, 1.0) if dim == 2 else (1.0, 2.0))
    pairs = y.unflatten(dim, (-1, 2))
    pairs.select(dim + 1, 0).narrow(dim, 1, n).add_(x.narrow(dim, 0, n), alpha=1 / 4)
    pairs.select(dim + 1, 1).narrow(dim, 0, n).add_(x.narrow(dim, 1, n), alpha=1 / 4)
    return y


def halve_plainly(x: Tensor, dim: int) -> Tensor:
    """As `halve`, without an operation in place."""
    size = x.shape[dim]
    padded = pad(x, dim)
    outer, left, right, last = (padded[(slice(None),) * dim + (slice(k, k + size, 2),)] for k in range(4))
    return (left + right) * (3 / 8) + (outer + last) * (1 / 8)


def double_plainly(x: Tensor, dim: int) -> Tensor:
    """As `double`, without an operation in place."""
    size = x.shape[dim]
    padded = pad(x, dim) * (1 / 4)
    near = x * (3 / 4)
    pairs = [near + padded.narrow(dim, 0, size), near + padded.narrow(dim, 2, size)]
    return torch.stack(pairs, dim + 1).flatten(dim, dim + 1)


def smooth_depthwise(x: Tensor, padding: int) -> Tensor:
    """As `smooth_plainly`, by a depthwise convolution, which alone, without its backward, takes half the time and less.

    (CPU, 8 images of 16 to 512 channels; but for large images in bf16 that are not channels-last.)
    """
    weight = x.new_full((4,), 3 / 8)  # made on the device
    weight[::3].fill_(1 / 8)
    weight = torch.outer(weight, weight).expand(x.shape[1], 1, 4, 4)
    with torch.autocast(x.device.type, enabled=False):
        return F.conv2d(x, weight, padding=padding, groups=x.shape[1])


def smooth_plainly(x: Tensor, padding: int) -> Tensor:
    """y[i] = (x[i] + 3 x[i + 1] + 3 x[i + 2] + x[i + 3]) / 8 of the padded image, along columns, then along rows."""
    x = F.pad(x, (padding,) * 4)
    for dim in (2, 3):
        size = x.shape[dim] - 3
        outer, left, right, last = (x.narrow(dim, k, size) for k in range(4))
        x = (left + right) * (3 / 8) + (outer + last) * (1 / 8)
    return x


def pad(x: Tensor, dim: int) -> Tensor:
    """One zero at both ends of rows (dim 3) or columns (dim 2)."""
    return F.pad(x, (0, 0, 1, 1) if dim == 2 else (1, 1))
