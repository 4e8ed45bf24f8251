"""Pillow's bicubic resize as products of matrices: its own pixels, for whole batches on any device."""

from functools import lru_cache

import torch
from torch import Tensor

SUPPORT = 2.0
"""Of the cubic kernel, in pixels of the input where the image grows, of the output where it shrinks."""
CURVATURE = -0.5
"""The kernel's parameter a (Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 15)."""
FIXED_POINT = 1 << 22
"""Pillow's unit of the weights of 8-bit images: PRECISION_BITS in its Resample.c."""


def cubic(x: Tensor) -> Tensor:
    """The cubic convolution kernel at distances x, in pixels."""
    x = x.abs()
    near = ((CURVATURE + 2) * x - (CURVATURE + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * CURVATURE
    return torch.where(x < 1, near, torch.where(x < SUPPORT, far, torch.zeros_like(x)))


@lru_cache(maxsize=64)
def bicubic_weights(size: int, new_size: int) -> Tensor:
    """Weights float64 [new_size, size] of a row of `size` pixels in each of `new_size` pixels; they sum to 1 each.

    The kernel is widened where the image shrinks, so that it is antialiased.
    """
    scale = size / new_size
    stretch = max(scale, 1.0)
    centers = (torch.arange(new_size, dtype=torch.float64) + 0.5) * scale
    # a pixel counts whose index lies between these, rounded as Pillow does
    first = (centers - SUPPORT * stretch + 0.5).trunc().clamp(min=0)[:, None]
    end = (centers + SUPPORT * stretch + 0.5).trunc().clamp(max=size)[:, None]
    pixels = torch.arange(size, dtype=torch.float64)
    weights = cubic((pixels - centers[:, None] + 0.5) / stretch)
    weights = weights * ((pixels >= first) & (pixels < end))
    return weights / weights.sum(1, keepdim=True)


@lru_cache(maxsize=64)
def fixed_point_weights(size: int, new_size: int) -> Tensor:
    """The same in whole units of 1 / FIXED_POINT, rounded half away from 0, as float64."""
    weights = bicubic_weights(size, new_size) * FIXED_POINT
    return (weights.abs() + 0.5).floor() * weights.sign()


def double_device(images: Tensor) -> torch.device:
    """Where their products are computed in float64: Apple's GPUs have none."""
    return images.device if images.device.type in ("cpu", "cuda") else torch.device("cpu")


def resize_uint8(images: Tensor, side: int) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, C, side, side], bit for bit as Pillow resizes 8-bit images (BICUBIC).

    Across and then down, each rounded to 8 bits; products of whole numbers below 2^53 are exact in float64. Of tall
    images Pillow 13 resizes down first, which earlier versions did not: these pixels do not depend on its version.
    """
    x = images.to(double_device(images), torch.float64)
    for dim in (3, 2):
        if x.shape[dim] != side:
            weights = fixed_point_weights(x.shape[dim], side).to(x.device)
            x = x @ weights.T if dim == 3 else weights @ x
            x = ((x + FIXED_POINT // 2) / FIXED_POINT).floor().clamp(0, 255)
    return x.to(torch.uint8).to(images.device)


def resize_float(images: Tensor, side: int) -> Tensor:
    """uint8 [N, C, H, W] -> float32 [N, C, side, side] in [0, 255], as Pillow resizes each channel as mode F (BICUBIC).

    Nothing is rounded to 8 bits: what clean-fid does (Parmar et al. 2022, arXiv 2104.11222, section 3).
    """
    x = images.to(double_device(images), torch.float64)
    for dim in (3, 2):
        if x.shape[dim] != side:
            weights = bicubic_weights(x.shape[dim], side).to(x.device)
            x = x @ weights.T if dim == 3 else weights @ x
            x = x.float().double()  # Pillow stores float32 after each pass
    return x.float().clamp(0, 255).to(images.device)
