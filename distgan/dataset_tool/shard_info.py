"""What `make` keeps of a shard that it has written, for the manifest."""

from collections import Counter

import msgspec
import numpy as np

from distgan.dataset_tool.value_range import PixelValues

BLOCK = 1 << 16
"""Pixels that are summed at once."""


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
        flat = pixels.reshape(-1, pixels.shape[2])
        for first in range(0, len(flat), BLOCK):
            values = flat[first : first + BLOCK].astype(np.int64 if pixels.dtype.kind == "u" else np.float64)
            # of Python's integers, which do not overflow
            self.sums = [old + new for old, new in zip(self.sums, values.sum(0).tolist(), strict=True)]
            self.squares = [old + new for old, new in zip(self.squares, (values**2).sum(0).tolist(), strict=True)]
        for name in conversions:
            self.converted[name] = self.converted.get(name, 0) + 1


def conversions_of(infos: list[ShardInfo]) -> dict[str, int]:
    """Images by conversion."""
    return dict(sorted(sum((Counter(info.converted) for info in infos), Counter()).items()))
