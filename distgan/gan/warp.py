"""Resampling of images, twice differentiable: exact translation, and affine maps with bilinear weights.

Penalties on D's gradient differentiate augmented images twice; torch's `grid_sample` has no second derivative. Here
pixels are taken by index and weighted, so that the result is linear in the images. The derivative is a `scatter_add`,
which `torch.use_deterministic_algorithms` allows on CPUs and, by sorting, on GPUs; those of `grid_sample` and of
reflection padding raise there.
"""

import torch
from torch import Tensor


def pick(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Pixels of images [N, C, H, W] at rows `y` and columns `x`, integers [N, ...]: [N, C, ...]."""
    pixels = (y * images.shape[3] + x).flatten(1).unsqueeze(1)
    return torch.take_along_dim(images.flatten(2), pixels, 2).unflatten(2, y.shape[1:])


def translate(images: Tensor, offset: Tensor) -> Tensor:
    """Move images [N, C, H, W] by whole pixels `offset` [N, 2], (right, down); zeros come in from outside."""
    height, width = images.shape[2:]
    offset = offset.long()
    x = torch.arange(width, device=images.device) - offset[:, :1, None]  # [N, 1, W]
    y = torch.arange(height, device=images.device)[:, None] - offset[:, 1:, None]  # [N, H, 1]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    y, x = torch.broadcast_tensors(y.clamp(0, height - 1), x.clamp(0, width - 1))
    return torch.where(inside.unsqueeze(1), pick(images, y, x), 0)


def rotation(angle: Tensor) -> Tensor:
    """What a rotation by `angle` [N], counter-clockwise as seen, does to coordinates: its inverse map, [N, 2, 2]."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    return torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)


def sources(matrix: Tensor, offset: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where each pixel of an output image comes from, both [N, H, W]: rows in [0, H - 1], columns in [0, W - 1].

    A pixel at r = (x, y), in pixels right and down from the image's centre, comes from `matrix` (r - offset);
    `matrix` [N, 2, 2] is the inverse of the transformation's linear part, `offset` [N, 2] its translation. Places
    outside are reflected about the centres of the border pixels (as numpy's "reflect"), as often as needed.
    """
    bottom = height - 1
    right = width - 1
    x = centred(width, matrix) - offset[:, :1, None]  # [N, 1, W]
    y = centred(height, matrix)[:, None] - offset[:, 1:, None]  # [N, H, 1]
    a, b, c, d = matrix.view(-1, 4, 1, 1).unbind(1)
    return reflect(c * x + d * y + bottom / 2, bottom), reflect(a * x + b * y + right / 2, right)


def centred(length: int, like: Tensor) -> Tensor:
    """Coordinates [length] of the pixels of a side from its middle, on the device and in the dtype of `like`."""
    return torch.arange(length, device=like.device, dtype=like.dtype) - (length - 1) / 2


def reflect(coordinates: Tensor, last: int) -> Tensor:
    """Fold coordinates into [0, last]: reflection about 0 and `last`, with period 2 `last`."""
    return last - (coordinates.abs() % (2 * last) - last).abs()


def bilinear(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Images [N, C, H, W] at rows `y` in [0, H - 1] and columns `x` in [0, W - 1], between their four neighbours.

    Both are [N, H, W].
    """
    height, width = images.shape[2:]
    top = y.floor().clamp(max=height - 2)
    left = x.floor().clamp(max=width - 2)
    down, right = y - top, x - left
    weights = torch.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right], dim=1)
    top, left = top.long(), left.long()
    rows, columns = torch.stack([top, top, top + 1, top + 1], dim=1), torch.stack([left, left + 1] * 2, dim=1)
    return (pick(images, rows, columns) * weights.unsqueeze(1)).sum(2)
