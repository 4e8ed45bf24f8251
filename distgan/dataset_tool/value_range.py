"""The value range of a dataset's pixels: given, in percentiles, or from the least to the greatest."""

import math

import msgspec
import numpy as np

from distgan.errors import UsageError
from distgan.rng import rng
from distgan.samples import LIMITS, DType

KEPT_OF_SHARD = 1 << 16
KEPT_OF_ALL = 1 << 22
"""Values, of a shard and of a dataset, that percentiles are taken of, at least one of each image."""


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


VALUES: dict[DType, tuple[float, float]] = {
    **LIMITS,
    "float16": (float(np.finfo("float16").min), float(np.finfo("float16").max)),
    "float32": (float(np.finfo("float32").min), float(np.finfo("float32").max)),
}
"""The least and the greatest value of a type."""


class PixelValues(msgspec.Struct):
    """What is known of the values of a shard's pixels."""

    least: float | None = None
    greatest: float | None = None
    images: int = 0
    kept: list[float] = []
    """Some of the values, for percentiles."""

    def add(self, pixels: np.ndarray, count: int = 0) -> None:
        """Take in an image; `count` of its values are kept, from random places.

        At even distances they would all be of a few channels or columns, and few of an image are of its corners.
        """
        least = float(pixels.min())
        greatest = float(pixels.max())
        self.least = least if self.least is None else min(self.least, least)
        self.greatest = greatest if self.greatest is None else max(self.greatest, greatest)
        if count:
            flat = pixels.reshape(-1)
            places = rng(0, "percentiles", self.images).integers(len(flat), size=count)
            self.kept += (flat if count >= len(flat) else flat[places]).tolist()
        self.images += 1


def resolve_range(text: str | None, dtype: DType, shards: list[PixelValues]) -> tuple[float, float]:
    """The range of a dataset, from what its shards hold. Raises UsageError if it would be empty."""
    parsed = parse_range(text)
    if parsed is None and dtype == "uint8":
        return LIMITS["uint8"]
    least = min((values.least for values in shards if values.least is not None), default=0.0)
    greatest = max((values.greatest for values in shards if values.greatest is not None), default=0.0)
    if parsed is None:
        low, high = least, greatest
    elif len(parsed) == 3:
        kept = np.concatenate([np.array(values.kept, np.float64) for values in shards])
        low, high = (float(value) for value in np.percentile(kept, parsed[1:]))
        low = least if parsed[1] == 0 else low
        high = greatest if parsed[2] == 100 else high
    else:
        low, high = parsed
    limits = VALUES[dtype]
    if low >= limits[1] or high <= limits[0]:
        raise UsageError(f"--range: {text} is outside of {dtype}, {limits[0]:g} to {limits[1]:g}; give another range")
    low, high = (max(low, limits[0]), min(high, limits[1]))
    if not low < high:
        raise UsageError(f"--range: all values are {low:g}; give a range, LOW,HIGH")
    return low, high
