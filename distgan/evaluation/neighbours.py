"""Distances between rows of features, of which equal rows have none, and the balls around them."""

import torch
from torch import Tensor

BLOCK = 1000
"""Rows of a block of a matrix of distances."""
ROUNDING = 1e-5
"""Rows are equal if no feature differs by more than this share of the largest: features of one image differ in the last
bits with the number of images that pass through the network together."""
NEXT = 4
"""Rows that each is compared with to find equal ones."""


class Rows:
    """Rows of features of one of two sets that are compared.

    Distances are computed from products of features in float32, which lose digits far from 0: `features` are those
    minus the mean of the real ones. Of equal rows such a distance is nothing but rounding, and which is nearer would be
    chance: rows with the same number in `numbers` have distance 0.
    """

    def __init__(self, features: Tensor, numbers: Tensor) -> None:
        self.features = features
        """float32 [N, d], centred"""
        self.numbers = numbers
        """int64 [N]"""

    def __len__(self) -> int:
        return len(self.features)

    def blocks(self) -> list[slice]:
        return [slice(start, start + BLOCK) for start in range(0, len(self), BLOCK)]

    def distances(self, block: slice, others: "Rows") -> Tensor:
        """float32 [rows of the block, N of others]."""
        distances = torch.cdist(self.features[block], others.features)
        return distances.masked_fill_(self.numbers[block, None] == others.numbers, 0)

    def radii(self, k: int) -> Tensor:
        """The distance of each row to its k-th nearest other one, float32 [N]; 0 if k others are equal to it."""
        # the nearest is the row itself; ten times as fast as kthvalue
        nearest = [self.distances(block, self).topk(k + 1, largest=False).values[:, k] for block in self.blocks()]
        return torch.cat(nearest)


def compared(fake: Tensor, real: Tensor) -> tuple[Rows, Rows]:
    """Features float32 [N, d] and [M, d] of generated and of real images, to be compared with each other."""
    mean = real.double().mean(0)
    numbers = number_rows(torch.cat([fake, real])).split([len(fake), len(real)])
    fake_rows, real_rows = ((rows.double() - mean).float() for rows in (fake, real))
    return Rows(fake_rows, numbers[0]), Rows(real_rows, numbers[1])


def number_rows(rows: Tensor) -> Tensor:
    """A number for each row of [N, d], int64 [N]: that of equal rows is the same.

    Rows are sorted by their projection to one direction, in float64, and compared with the next ones there: others
    hardly come between those that are equal up to rounding.
    """
    direction = torch.randn(rows.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projections = torch.cat([part.double() @ direction for part in rows.split(BLOCK)])
    projections, order = projections.sort(stable=True)
    largest = torch.cat([part.abs().amax(1) for part in rows.split(BLOCK)])[order]
    tolerance = ROUNDING * largest
    first = torch.arange(len(rows))  # of the rows equal to each, in sorted order
    for step in range(NEXT, 0, -1):
        gaps = projections[step:] - projections[:-step]
        near = (gaps <= tolerance[step:] * direction.abs().sum()).nonzero()[:, 0] + step
        for part in near.split(BLOCK):
            differences = (rows[order[part]] - rows[order[part - step]]).abs().amax(1)
            equal = part[differences <= tolerance[part]]
            first[equal] = torch.minimum(first[equal], equal - step)
    while not torch.equal(first[first], first):
        first = first[first]
    numbers = torch.empty_like(first)
    numbers[order] = first
    return numbers


def share_repeated(rows: Tensor) -> float:
    """The share of rows [N, d] that another one is equal to."""
    counts = number_rows(rows).unique(return_counts=True)[1]
    return float(counts[counts > 1].sum()) / len(rows)
