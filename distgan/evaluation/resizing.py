"""Pillow's bicubic resize as products of matrices: its own pixels, for whole batches on any device."""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

SUPPORT = 2.0
"""Of the cubic kernel, in pixels of the input where the image grows, of the output where it shrinks."""
CURVATURE = -0.5
"""The kernel's parameter a (Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 15)."""
FIXED_POINT = 1 << 22
"""Pillow's unit of the weights of 8-bit images: PRECISION_BITS in its Resample.c."""

VALUES_ON_CPU = 1 << 19
"""Resized at once: what fits into a cache, and is not asked of the system anew for each batch."""


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


def resize_uint8(images: Tensor, side: int) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, C, side, side], bit for bit as Pillow resizes 8-bit images (BICUBIC).

    Across and then down, each rounded to 8 bits; products of whole numbers below 2^53 are exact in float64. Of tall
    images Pillow 13 resizes down first, which earlier versions did not: these pixels do not depend on its version.
    """

    def round_to_8_bits(x: Tensor) -> Tensor:
        return x.add_(FIXED_POINT // 2).div_(FIXED_POINT).floor_().clamp_(0, 255)

    return resize(images, side, torch.uint8, fixed_point_weights, round_to_8_bits)


def resize_float(images: Tensor, side: int) -> Tensor:
    """uint8 [N, C, H, W] -> float32 [N, C, side, side] in [0, 255], as Pillow resizes each channel as mode F (BICUBIC).

    Nothing is rounded to 8 bits: what clean-fid does (Parmar et al. 2022, arXiv 2104.11222, section 3).
    """
    # Pillow stores float32 after each pass
    return resize(images, side, torch.float32, bicubic_weights, lambda x: x.float().double()).clamp_(0, 255)


def resize(
    images: Tensor,
    side: int,
    dtype: torch.dtype,
    weights: Callable[[int, int], Tensor],
    store: Callable[[Tensor], Tensor],
) -> Tensor:
    """Resize across and then down in float64; `store` is what storing the values of a pass does to them."""
    device = images.device if images.device.type in ("cpu", "cuda") else torch.device("cpu")  # Apple's have no float64
    count, channels, height, width = images.shape
    resized = torch.empty(count, channels, side, side, dtype=dtype, device=device)
    across = weights(width, side).T.to(device)
    down = weights(height, side).to(device)
    values = channels * side * max(side, height)
    size = count if device.type == "cuda" else max(1, VALUES_ON_CPU // values)
    for start in range(0, count, max(size, 1)):
        block = slice(start, start + size)
        x = images[block].to(device, torch.float64)
        if width != side:
            x = store(x @ across)
        if height != side:
            x = store(down @ x)
        resized[block] = x
    return resized.to(images.device)
