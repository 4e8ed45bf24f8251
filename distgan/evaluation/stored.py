"""Images of a dataset, read chunk by chunk, each process its share: the real ones, and sets of generated ones."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distgan.data.parallel import ParallelMap
from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.distributed.processes import Distributed
from distgan.errors import CorruptDataError
from distgan.evaluation.chunks import run_chunks
from distgan.evaluation.inputs import chunk_size
from distgan.evaluation.progress import ProgressBar
from distgan.samples import SampleSpec

Work = Callable[[np.ndarray, Tensor], None]
"""(numbers int64 [N], stored pixels [N, H, W, C] on the device of the process) of a chunk of images."""


class Images(Protocol):
    """Images of the same spec, each with a number of its own, that come in chunks of a fixed size."""

    @property
    def spec(self) -> SampleSpec:
        """Of the stored pixels."""
        ...

    @property
    def count(self) -> int:
        """Of all processes."""
        ...

    def each_chunk(self, work: Work, stop: Callable[[], bool]) -> int:
        """Call `work` for each chunk of this process; called by all. Raises Stopped.

        Returns how many corrupt images were replaced by others, on all processes together.
        """
        ...


@dataclass(frozen=True)
class StoredImages:
    """The images `ids` of a dataset, which are their numbers, in that order."""

    processes: Distributed
    dataset: ShardSet
    ids: np.ndarray
    """int64, ascending: the order of the shards."""
    skip_bad: int
    """Corrupt images to replace by others; one more ends the pass."""
    what: str
    """They are, on the line of progress."""
    log: Callable[[str], None] | None

    @property
    def spec(self) -> SampleSpec:
        return self.dataset.spec

    @property
    def count(self) -> int:
        return len(self.ids)

    def each_chunk(self, work: Work, stop: Callable[[], bool]) -> int:
        """See Images. Raises CorruptDataError and Stopped."""
        processes = self.processes
        size = chunk_size(self.spec)
        chunks = [self.ids[start : start + size] for start in range(0, self.count, size)]
        reader = Reader(self.dataset, skip_bad=self.skip_bad)
        corrupt: list[str] = []
        progress = ProgressBar(self.what, self.count, main=processes.is_main_process, log=self.log)
        mine = chunks[processes.rank :: processes.world_size]
        with contextlib.closing(ParallelMap(lambda chunk: (chunk, reader.read(chunk)), mine, threads=2)) as batches:

            def read(number: int) -> None:
                chunk, batch = next(batches)
                corrupt.extend(batch.corrupt)
                work(chunk, torch.from_numpy(batch.images).to(processes.device))
                progress.update((number + 1) * size)

            run_chunks(processes, len(chunks), read, stop)
        progress.close()
        return self.check_corrupt(corrupt)

    def check_corrupt(self, corrupt: list[str]) -> int:
        """Say which images were replaced, and return their number over all processes. Raises CorruptDataError."""
        for line in corrupt:
            print(f"distgan: skipped a corrupt image: {line}", file=sys.stderr, flush=True)
        replaced = self.processes.all_reduce_sum(len(corrupt))
        if replaced > self.skip_bad:
            raise CorruptDataError(f"more than {self.skip_bad} corrupt images (skip_bad) over all processes")
        return replaced
