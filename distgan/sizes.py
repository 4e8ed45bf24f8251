"""The image sizes that networks take, and the nearest ones to a size that they do not take; imports no torch."""

import math
from collections.abc import Collection, Iterator
from typing import NamedTuple

LARGEST = 1024
"""Pixels of the longer side."""
BASES = (4, 5, 6, 7)
"""Pixels of the shorter side after all halvings."""
DCGAN_HALVINGS = R3GAN_HALVINGS = STYLEGAN2_HALVINGS = range(1, 9)
SNGAN_HALVINGS = (3, 4, 5)
"""Those of the papers' networks, for 32, 64 and 128 pixels."""


class Size(NamedTuple):
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


def halvings(size: Size) -> int:
    """n = floor(log2(shorter side / 4)): after n halvings the shorter side is 4 to 7 pixels; below 0 under 4 pixels."""
    return min(size).bit_length() - 3


def is_taken(size: Size, allowed: Collection[int]) -> bool:
    """Whether networks of n halvings, n in `allowed`, take the size: both sides are whole numbers times 2^n."""
    n = halvings(size)
    return n in allowed and max(size) <= LARGEST and size.height % 2**n == size.width % 2**n == 0


def nearest_sizes(size: Size, allowed: Collection[int]) -> list[Size]:
    """The nearest size that is taken with no side longer, and that with no side shorter; or else the nearest of all.

    Near is what changes the side that changes most by the smallest factor; of equals, what keeps the aspect ratio best.
    """

    def distance(other: Size) -> tuple[float, float]:
        changes = [math.log(b / a) for a, b in zip(size, other, strict=True)]
        return max(map(abs, changes)), abs(changes[0] - changes[1])

    taken = sorted(candidates(size, allowed), key=distance)
    below = [each for each in taken if each.height <= size.height and each.width <= size.width]
    above = [each for each in taken if each.height >= size.height and each.width >= size.width]
    return [*below[:1], *above[:1]] or taken[:1]


def candidates(size: Size, allowed: Collection[int]) -> Iterator[Size]:
    """For each number of halvings the sizes whose sides are next to those of `size`, or at a limit."""
    for n in allowed:
        step = 2**n
        limits = {BASES[0] * step, BASES[-1] * step, LARGEST}
        heights, widths = ({side // step * step, -(-side // step) * step} | limits for side in size)
        pairs = (Size(height, width) for height in heights for width in widths)
        yield from (pair for pair in pairs if is_taken(pair, [n]))
