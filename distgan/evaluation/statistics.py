"""Statistics of features: sums in float64, a fixed number of rows, and logits, over the images of all processes."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from torch import Tensor

from distgan.distributed.processes import Distributed
from distgan.evaluation.card import ImageSum

ROWS = 10_000
"""Feature rows that are kept, for the metrics that compare images one by one."""


@dataclass(frozen=True)
class Statistics:
    """Of n images with d features. Rows and logits are those of the main process; they are empty on the others."""

    n: int
    total: Tensor
    """float64 [d], the sum of x"""
    outer: Tensor
    """float64 [d, d], the sum of x x^T"""
    rows: Tensor
    """float32 [min(n, ROWS), d], the features of the first images"""
    logits: Tensor | None = None
    """float32 [n, units, classes]"""

    @property
    def mean(self) -> np.ndarray:
        return (self.total / self.n).numpy()

    @property
    def covariance(self) -> np.ndarray:
        """The unbiased estimate, float64 [d, d]."""
        mean = self.total / self.n
        return ((self.outer - self.n * torch.outer(mean, mean)) / (self.n - 1)).numpy()

    @property
    def image_sum(self) -> ImageSum:
        """Of statistics whose one feature is the sum of an image."""
        return ImageSum(float(self.mean[0]), float(np.sqrt(max(self.covariance[0, 0], 0.0))))

    def __add__(self, other: "Statistics") -> "Statistics":
        """Of both sets of images, without logits."""
        rows = torch.cat([self.rows, other.rows])[:ROWS]
        return Statistics(self.n + other.n, self.total + other.total, self.outer + other.outer, rows)


class ExactSum:
    """A sum of float64 tensors that does not depend on their order: in double-double arithmetic, rounded at the end.

    Each addition keeps its rounding error (TwoSum, Knuth 1997, section 4.2.2). The Frechet distance takes square roots
    of eigenvalues that are 0 but for rounding: plain sums, in another order, change it by 1e-6.
    """

    def __init__(self, *shape: int) -> None:
        self.high = torch.zeros(*shape, dtype=torch.float64)
        self.low = torch.zeros(*shape, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        high = self.high.to(x.device)
        total = high + x
        part = total - high
        self.low = self.low.to(x.device) + ((high - (total - part)) + (x - part))
        self.high = total

    def reduce(self, processes: Distributed) -> Tensor:
        """The sum over all processes, on the CPU; called by all."""
        if processes.cpu_group is None:
            return (self.high + self.low).cpu()
        result = ExactSum(*self.high.shape)
        for rank in range(processes.world_size):
            both = torch.stack([self.high, self.low]).cpu()
            torch.distributed.broadcast(both, rank, processes.cpu_group)
            result.add(both[0])
            result.low += both[1]
        return result.high + result.low


class Accumulator:
    """Adds up the statistics of this process's images.

    Every image has a number, its position in the sequence of all processes' images: rows and logits are put in its
    order, so that they do not depend on the number of processes.
    """

    def __init__(self, num_features: int) -> None:
        self.n = 0
        self.total = ExactSum(num_features)
        self.outer = ExactSum(num_features, num_features)
        self.rows: list[tuple[Tensor, Tensor]] = []
        self.logits: list[tuple[Tensor, Tensor]] = []

    def add(self, positions: Tensor, features: Tensor, logits: Tensor | None) -> None:
        """`positions` [N] on the CPU; features [N, d]; logits [N, units, classes] or None."""
        # Apple's GPUs have no float64
        x = features.double() if features.device.type == "cuda" else features.cpu().double()
        self.n += len(x)
        self.total.add(x.sum(0))
        self.outer.add(x.T @ x)
        is_kept = positions < ROWS
        self.rows.append((positions[is_kept], features.cpu()[is_kept]))
        if logits is not None:
            self.logits.append((positions, logits.cpu()))

    def reduce(self, processes: Distributed) -> Statistics:
        """The statistics of all processes' images; called by all."""
        n = processes.all_reduce_sum(self.n)
        total = self.total.reduce(processes)
        outer = self.outer.reduce(processes)
        rows = gather_sorted(processes, self.rows)
        logits = gather_sorted(processes, self.logits)
        return Statistics(n, total, outer, rows if rows is not None else torch.empty(0, len(total)), logits)


def gather_sorted(processes: Distributed, parts: list[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The values of all processes' (positions [N], values [N, ...]), sorted by position.

    On the main process; None on the others, and if there are none.
    """
    local = tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True)) if parts else None
    gathered: list[tuple[np.ndarray, ...] | None] = [local]
    if processes.cpu_group is not None:
        gathered = [None] * processes.world_size
        torch.distributed.gather_object(local, gathered if processes.is_main_process else None, 0, processes.cpu_group)
    given = [columns for columns in gathered if columns is not None]
    if not processes.is_main_process or not given:
        return None
    positions, values = (np.concatenate(column) for column in zip(*given, strict=True))
    return torch.from_numpy(values[np.argsort(positions)])
