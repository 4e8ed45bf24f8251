"""A pass over images of a dataset: read ahead and in chunks, each process its share."""

import contextlib
import sys
from collections.abc import Callable, Sequence

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


def read_in_chunks(
    processes: Distributed,
    dataset: ShardSet,
    ids: np.ndarray,
    work: Callable[[int, np.ndarray, Tensor], None],
    *,
    title: str,
    skip_bad: int,
    log: Callable[[str], None] | None,
    stop: Callable[[], bool],
) -> int:
    """Call `work(chunk, ids, stored pixels)` for this process's chunks of the images `ids`; called on all processes.

    Stored pixels [n, H, W, C] are on the device of the process. `title` names the pass in its progress. Returns how
    many corrupt images were replaced by others. Raises CorruptDataError for more than `skip_bad` of them, and Stopped
    when `stop` says so on one of the processes.
    """
    size = chunk_size(dataset.spec)
    chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
    reader = Reader(dataset, skip_bad=skip_bad)
    corrupt: list[str] = []
    progress = ProgressBar(title, len(ids), main=processes.is_main_process, log=log)
    mine = chunks[processes.rank :: processes.world_size]
    with contextlib.closing(ParallelMap(lambda chunk: (chunk, reader.read(chunk)), mine, threads=2)) as batches:

        def work_on_next(number: int) -> None:
            chunk, batch = next(batches)
            corrupt.extend(batch.corrupt)
            work(number, chunk, torch.from_numpy(batch.images).to(processes.device))
            progress.update((number + 1) * size)

        run_chunks(processes, len(chunks), work_on_next, stop)
    progress.close()
    return check_corrupt(processes, corrupt, skip_bad)


def check_corrupt(processes: Distributed, corrupt: Sequence[str], skip_bad: int) -> int:
    """Say which images were replaced, and return their number over all processes. Raises CorruptDataError."""
    for line in corrupt:
        print(f"distgan: skipped a corrupt image: {line}", file=sys.stderr, flush=True)
    replaced = processes.all_reduce_sum(len(corrupt))
    if replaced > skip_bad:
        raise CorruptDataError(f"more than {skip_bad} corrupt images (skip_bad) over all processes")
    return replaced
