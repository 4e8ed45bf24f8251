"""Pixels as they are stored and as networks see them, and what of them a picture shows."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distgan.errors import UsageError
from distgan.images import to_uint8
from distgan.samples import LIMITS, SampleSpec


def normalize(images: Tensor, spec: SampleSpec) -> Tensor:
    """Stored pixels [N, H, W, C] -> float32 [N, C, H, W] in [-1, 1], channels last; values out of range are clipped."""
    low, high = spec.range
    x = images.permute(0, 3, 1, 2).to(torch.float32, copy=True)
    if low:
        x.sub_(low)
    x.div_((high - low) / 2).sub_(1)
    return x if spec.range == LIMITS.get(spec.dtype) else x.clamp_(-1, 1)


def to_stored(images: Tensor, spec: SampleSpec) -> Tensor:
    """float [N, C, H, W] in [-1, 1] -> pixels [N, H, W, C] as they are stored; values outside are clipped."""
    low, high = spec.range
    scaled = (images.float().clamp(-1, 1) + 1) / 2 * (high - low) + low
    if spec.dtype in LIMITS:
        scaled += 0.5
    return scaled.to(getattr(torch, spec.dtype)).permute(0, 2, 3, 1)


def parse_show(text: str | None, channels: int) -> list[int]:
    """The channels of `3,2,1`, which count from 1; [] for None. Raises UsageError."""
    if text is None:
        return []
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"show: {text!r} is neither one channel nor three, such as 3,2,1")
    show = [int(word) for word in words]
    check_show(show, channels)
    return show


def check_show(show: Sequence[int], channels: int, key: str = "show") -> None:
    """Raises UsageError, which names `key`, unless `show` is [], one or three of the channels, which count from 1."""
    if len(show) not in (0, 1, 3) or any(not 1 <= channel <= channels for channel in show):
        raise UsageError(f"{key}: {list(show)} is not one (grey) or three (RGB) of the channels 1 to {channels}")


def to_picture(images: np.ndarray, show: Sequence[int] = ()) -> np.ndarray:
    """float [N, C, H, W] in [-1, 1] -> uint8 [N, H, W, 1 or 3] of the channels `show`, which count from 1.

    Default: the first three as red, green and blue, or the first as grey where there are fewer.
    """
    shown = list(show) or ([1, 2, 3] if images.shape[1] >= 3 else [1])
    return to_uint8(images[:, [channel - 1 for channel in shown]])
