"""What `make` keeps of a shard that it has written, for the manifest."""

from collections import Counter

import msgspec
import numpy as np

from distgan.dataset_tool.value_range import PixelValues

BLOCK = 1 << 16
"""Pixels that are summed at once."""
EXACT = {"uint8": "uint32", "uint16": "uint64", "float16": "float64", "float32": "float64"}
"""What the squares of the pixels are held in."""


class ShardInfo(msgspec.Struct):
    """What was written into a shard."""

    plan: str
    """The digest of the plan."""
    name: str
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    sums: list[int | float] = []
    """Of the pixels, per channel."""
    squares: list[int | float] = []
    """Sums of the squared pixels, per channel."""
    values: PixelValues = msgspec.field(default_factory=PixelValues)
    """Of pixels whose range is not that of their dtype."""
    paths: list[str] = []
    """The lines of sources.txt."""
    bad: list[str] = []
    """Images that cannot be used, with the reason."""
    converted: dict[str, int] = {}
    """Images by conversion."""

    def add(self, pixels: np.ndarray, conversions: list[str], kept: int) -> None:
        """Count a sample [height, width, channels], of which `kept` values are kept for percentiles."""
        self.samples += 1
        if kept or pixels.dtype != np.uint8:
            self.values.add(pixels, kept)
        height, width, channels = pixels.shape
        rows = max(1, BLOCK // width)
        for first in range(0, height, rows):
            values = pixels[first : first + rows].reshape(-1, width * channels).astype(EXACT[pixels.dtype.name])
            self.sums = add_columns(self.sums, values)
            self.squares = add_columns(self.squares, values * values)
        for name in conversions:
            self.converted[name] = self.converted.get(name, 0) + 1


def add_columns(sums: list[int | float], values: np.ndarray) -> list[int | float]:
    """`sums` per channel and those of `values` [rows, width * channels], as Python's integers, which do not overflow.

    Summed over rows first, which is fast, since they lie one after another in memory.
    """
    channels = values.sum(0).reshape(-1, len(sums)).sum(0).tolist()
    return [old + new for old, new in zip(sums, channels, strict=True)]


def conversions_of(infos: list[ShardInfo]) -> dict[str, int]:
    """Images by conversion."""
    return dict(sorted(sum((Counter(info.converted) for info in infos), Counter()).items()))
