"""The value range of a dataset's pixels: given, in percentiles, or from the least to the greatest."""

import math

import msgspec
import numpy as np

from distgan.errors import UsageError
from distgan.samples import LIMITS, DType

KEPT = 65_536
"""Pixels of a shard that percentiles are taken of."""


def parse_range(text: str | None) -> tuple[float, float] | tuple[str, float, float] | None:
    """(low, high), or ("%", low, high) for percentiles; None for none. Raises UsageError."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    percentiles = all(word.endswith("%") for word in words)
    try:
        low, high = (float(word.removesuffix("%") if percentiles else word) for word in words)
    except ValueError:
        raise UsageError(f"--range: {text!r} is not LOW,HIGH, such as 0,4095 or 0.1%,99.9%") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"--range: {text!r}: the first number must be below the second")
    if percentiles and not (low >= 0 and high <= 100):
        raise UsageError(f"--range: {text!r}: percentiles are from 0% to 100%")
    return ("%", low, high) if percentiles else (low, high)


class PixelValues(msgspec.Struct):
    """What is known of the values of a shard's pixels."""

    least: float | None = None
    greatest: float | None = None
    kept: list[float] = []
    """Some of the values, at even distances, for percentiles."""

    def add(self, pixels: np.ndarray, count: int = 0) -> None:
        """Take in an image; `count` of its values are kept."""
        least = float(pixels.min())
        greatest = float(pixels.max())
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)
        if count:
            flat = pixels.reshape(-1)
            self.kept += flat[np.linspace(0, len(flat) - 1, min(count, len(flat))).astype(np.int64)].tolist()


def resolve_range(text: str | None, dtype: DType, shards: list[PixelValues]) -> tuple[float, float]:
    """The range of a dataset, from what its shards hold. Raises UsageError if it would be empty."""
    parsed = parse_range(text)
    if parsed is None:
        if dtype == "uint8":
            return LIMITS["uint8"]
        low = min(values.least for values in shards if values.least is not None)
        high = max(values.greatest for values in shards if values.greatest is not None)
    elif len(parsed) == 3:
        kept = np.concatenate([np.array(values.kept, np.float64) for values in shards])
        low, high = (float(value) for value in np.percentile(kept, parsed[1:]))
    else:
        low, high = parsed
    if dtype in LIMITS:
        low, high = (max(low, LIMITS[dtype][0]), min(high, LIMITS[dtype][1]))
    if not low < high:
        raise UsageError(f"--range: all values are {low:g}; give a range, LOW,HIGH")
    return low, high
