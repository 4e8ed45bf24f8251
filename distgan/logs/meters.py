"""What a run measures between two lines of its log: sums that stay on the device, times, rates, memory."""

import resource
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from distgan.distributed.processes import Distributed


class Meters:
    """Sums over the iterations of a logging interval. Those of the step's scalars stay on the device."""

    def __init__(self, processes: Distributed) -> None:
        self.processes = processes
        self.reset()

    def reset(self) -> None:
        """Begin a logging interval."""
        self.sums: dict[tuple[str, ...], Tensor] = {}
        self.counts: dict[tuple[str, ...], int] = {}
        self.save_seconds = 0.0
        """Time that the loop waited for checkpoints."""
        self.data_wait_seconds = 0.0
        """Time that the loop waited for images."""
        self.corrupt: list[str] = []
        """Corrupt images that this process skipped."""
        self.digest = 0
        """Hash of what this process read."""

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Take in an iteration's scalars, 0-dim tensors by name; does not wait for the device."""
        names = tuple(scalars)  # lazy penalties are not in each iteration
        values = torch.stack(list(scalars.values()))
        self.sums[names] = self.sums[names] + values if names in self.sums else values
        self.counts[names] = self.counts.get(names, 0) + 1

    def add_save(self, seconds: float) -> None:
        """Take in the time that a checkpoint blocked the loop."""
        self.save_seconds += seconds

    def add_read(self, *, wait_seconds: float, corrupt: list[str], digest: int) -> None:
        """Take in a minibatch that was read from the dataset."""
        self.data_wait_seconds += wait_seconds
        self.corrupt += corrupt
        self.digest += digest

    @property
    def iterations(self) -> int:
        """Iterations in this logging interval."""
        return sum(self.counts.values())

    def means(self) -> dict[str, float]:
        """The mean of each scalar over all processes and over the iterations that have it; waits for the device."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, values in self.sums.items():
            reduced = self.processes.accelerator.reduce(values / self.counts[names], "mean")
            assert isinstance(reduced, Tensor)
            for name, value in zip(names, reduced.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value * self.counts[names]
                counts[name] = counts.get(name, 0) + self.counts[names]
        return {name: value / counts[name] for name, value in sums.items()}


class Stopwatch:
    """Images per second: since the last line of the log, and since the start."""

    def __init__(self, images_seen: int) -> None:
        self.start_images = images_seen
        self.start_time = time.monotonic()
        self.last_images = self.start_images
        self.last_time = self.start_time

    def lap(self, images_seen: int) -> tuple[float, float]:
        """Images per second since the last call, and since the start."""
        now = time.monotonic()
        rate = (images_seen - self.last_images) / max(now - self.last_time, 1e-9)
        overall = (images_seen - self.start_images) / max(now - self.start_time, 1e-9)
        self.last_images = images_seen
        self.last_time = now
        return rate, overall

    def pause(self, seconds: float) -> None:
        """Leave out time that was not spent training."""
        self.last_time += seconds
        self.start_time += seconds


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: reserved by the device's allocator, or on a CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
