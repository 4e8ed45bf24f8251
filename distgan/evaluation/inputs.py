"""Real and generated images as extractors get them: rounded to stored pixels, then uint8 or float32 in [-1, 1]."""

import torch
from torch import Tensor

from distgan.pixels import normalize, to_stored
from distgan.samples import LIMITS, SampleSpec

CHUNK = 128
"""Images that pass through the networks together, on every number of processes: features depend on it in the last
bit."""
CHUNK_VALUES = 1 << 26
"""Values of such a chunk at most: 256 MiB in float32."""


def chunk_size(spec: SampleSpec, most: int = CHUNK) -> int:
    """Images that pass through the networks together: `most`, or fewer large ones, but one at least."""
    channels, height, width = spec.shape
    # of few channels, the networks make more of them than the image has
    return max(min(most, CHUNK_VALUES // (max(channels, 4) * height * width)), 1)


def enters_as_uint8(spec: SampleSpec) -> bool:
    """Whether extractors get the pixels themselves: 8 bits from 0 to 255; others are normalized to [-1, 1]."""
    return spec.dtype == "uint8" and spec.range == LIMITS["uint8"]


def from_stored(images: Tensor, spec: SampleSpec) -> Tensor:
    """Stored pixels [N, H, W, C] -> what extractors get, [N, C, H, W]: uint8, or float32 in [-1, 1]."""
    if enters_as_uint8(spec):
        return images.permute(0, 3, 1, 2).contiguous()
    return normalize(images, spec)


def round_to_stored(images: Tensor, spec: SampleSpec) -> Tensor:
    """float [N, C, H, W] of G, nominally in [-1, 1] -> the pixels [N, H, W, C] that would be stored."""
    if enters_as_uint8(spec):
        return to_uint8(images).permute(0, 2, 3, 1)
    return to_stored(images, spec)


def from_generator(images: Tensor, spec: SampleSpec) -> Tensor:
    """float [N, C, H, W] of G, nominally in [-1, 1] -> what extractors get of the pixels that would be stored."""
    return from_stored(round_to_stored(images, spec), spec)


def to_uint8(images: Tensor) -> Tensor:
    """float [N, C, H, W] in [-1, 1] -> uint8, rounded; values outside are clipped."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)


def image_sums(stored: Tensor) -> Tensor:
    """The sum of each image's values, float64 [N] on the CPU, of stored pixels [N, H, W, C]."""
    on_device = stored if stored.device.type == "cuda" else stored.cpu()  # Apple's GPUs have no float64
    return on_device.flatten(1).double().sum(1).cpu()
