"""The real images: their statistics, and their real-vs-real values, computed once for a dataset and an extractor."""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distgan.data.parallel import ParallelMap
from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.distributed.processes import Distributed
from distgan.errors import CorruptDataError
from distgan.evaluation.cache import StatisticsCache
from distgan.evaluation.chunks import run_chunks
from distgan.evaluation.classifier import is_stacked
from distgan.evaluation.features import Extractor, extract
from distgan.evaluation.progress import ProgressBar
from distgan.evaluation.scores import METRICS, Reference, Values, compute
from distgan.evaluation.statistics import Accumulator, Statistics
from distgan.rng import rng

CHUNK = 128
"""Images that pass through the networks together, on every number of processes: features depend on it in the last
bit."""
LEAST_STAND_INS = 11
"""Fewer have no 5 nearest neighbours."""


@dataclass(frozen=True)
class RealImages:
    """The real images, on the main process."""

    reference: Reference
    real_vs_real: Values
    """Metrics of `stand_ins` other real images in the place of generated ones."""
    stand_ins: int


@dataclass(frozen=True)
class Split:
    """How many images of the dataset, drawn at random, are used for what."""

    stand_ins: int
    """In the place of generated ones, for the real-vs-real values."""
    others: int
    """Without the stand-ins, which are compared with these."""
    shared: int
    """Stand-ins that are in the reference of generated images too, because the others are too few."""

    @classmethod
    def of(cls, total: int, samples: int, limit: int | None) -> "Split":
        """For a dataset of `total` images.

        `samples` stand-ins, at most half of the dataset, and a reference of `limit` images, or of all.
        """
        stand_ins = min(samples, total // 2)
        images = min(limit or total, total)
        others = min(images, total - stand_ins)
        return cls(stand_ins, others, images - others)


class SplitAccumulator:
    """Adds up the statistics of this process's images in the three sets of a split."""

    def __init__(self, total: int, split: Split, num_features: int) -> None:
        self.split = split
        drawn = rng(0, "reference").permutation(total)[: split.stand_ins + split.others]
        self.position = np.full(total, -1)
        """Of each image of the dataset in the order they were drawn: stand-ins come first, the shared ones leading."""
        self.position[drawn] = np.arange(len(drawn))
        self.ids = np.sort(drawn)
        """The images to read, in the order of the shards."""
        self.stand_ins = Accumulator(num_features)
        self.others = Accumulator(num_features)
        self.shared = self.stand_ins if split.shared == split.stand_ins else Accumulator(num_features)

    def add(self, ids: np.ndarray, features: Tensor, logits: Tensor | None) -> None:
        """Features [N, d] and logits [N, units, classes] of the images `ids` [N]."""
        positions = torch.from_numpy(self.position[ids])
        is_stand_in = positions < self.split.stand_ins
        kept_logits = logits[is_stand_in] if logits is not None else None
        self.stand_ins.add(positions[is_stand_in], features[is_stand_in], kept_logits)
        self.others.add(positions[~is_stand_in] - self.split.stand_ins, features[~is_stand_in], None)
        if self.shared is not self.stand_ins:
            is_shared = positions < self.split.shared
            self.shared.add(positions[is_shared], features[is_shared], None)

    def reduce(self, processes: Distributed) -> tuple[Statistics, Statistics, Statistics]:
        """Statistics of the stand-ins, the others and the shared images of all processes; called by all."""
        stand_ins = self.stand_ins.reduce(processes)
        others = self.others.reduce(processes)
        shared = stand_ins if self.shared is self.stand_ins else self.shared.reduce(processes)
        return stand_ins, others, shared


def class_frequencies(dataset: ShardSet) -> Tensor:
    """What the classes of generated images are compared with: uniform for StackedMNIST, else the dataset's labels."""
    counts = torch.tensor([one.samples for one in dataset.classes], dtype=torch.float64)
    counts = torch.ones_like(counts) if is_stacked(dataset) else counts.clamp(min=1)
    return counts / counts.sum()


def real_images(
    processes: Distributed,
    dataset: ShardSet,
    extractor: Extractor,
    split: Split,
    *,
    folder: Path,
    skip_bad: int,
    stop: Callable[[], bool],
    log: Callable[[str], None] | None,
) -> RealImages | None:
    """The real images, from the cache in `folder`, or by a pass over the dataset; None on all but the main process.

    Called by all processes. Up to `skip_bad` corrupt images are replaced by others, and then nothing is cached. Raises
    CorruptDataError, and Stopped when `stop` says so on one of the processes.
    """
    images = split.others + split.shared
    key = dict(manifest=dataset.digest, extractor=extractor.sha256, images=images, floor_images=split.stand_ins)
    cache = StatisticsCache(folder, key, log or (lambda line: print(line, flush=True)))
    cached: tuple[Statistics, Values] | None = None

    def look_up() -> bool:
        nonlocal cached
        cached = cache.read()
        return cached is not None

    frequencies = class_frequencies(dataset)
    if not processes.run_on_main(look_up):
        sets, replaced = measure(processes, dataset, extractor, split, skip_bad, stop, log)
        if processes.is_main_process:
            cached = join(*sets, frequencies, extractor)
            if not replaced:
                cache.write(*cached)
    if cached is None:
        return None
    statistics, real_vs_real = cached
    return RealImages(Reference(statistics, frequencies), real_vs_real, split.stand_ins)


def join(
    stand_ins: Statistics, others: Statistics, shared: Statistics, frequencies: Tensor, extractor: Extractor
) -> tuple[Statistics, Values]:
    """Statistics of the reference of generated images, and the real-vs-real values."""
    real_vs_real: Values = {}
    if stand_ins.n >= LEAST_STAND_INS:
        names = [name for name, metric in METRICS.items() if metric.needs in extractor.gives]
        real_vs_real = compute(names, stand_ins, Reference(others, frequencies), extractor.name)
    return others + shared, real_vs_real


def measure(
    processes: Distributed,
    dataset: ShardSet,
    extractor: Extractor,
    split: Split,
    skip_bad: int,
    stop: Callable[[], bool],
    log: Callable[[str], None] | None,
) -> tuple[tuple[Statistics, Statistics, Statistics], int]:
    """Statistics of the three sets of a split, and how many corrupt images were replaced by others."""
    accumulator = SplitAccumulator(len(dataset.columns["label"]), split, extractor.num_features)
    ids = accumulator.ids
    chunks = [ids[start : start + CHUNK] for start in range(0, len(ids), CHUNK)]
    reader = Reader(dataset, skip_bad=skip_bad)
    corrupt: list[str] = []
    progress = ProgressBar("statistics of the real images", len(ids), main=processes.is_main_process, log=log)
    mine = chunks[processes.rank :: processes.world_size]
    with contextlib.closing(ParallelMap(lambda chunk: (chunk, reader.read(chunk)), mine, threads=2)) as batches:

        def work(number: int) -> None:
            chunk, batch = next(batches)
            corrupt.extend(batch.corrupt)
            pixels = torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous().to(processes.device)
            accumulator.add(chunk, *extract(extractor, pixels))
            progress.update((number + 1) * CHUNK)

        run_chunks(processes, len(chunks), work, stop)
    progress.close()
    for line in corrupt:
        print(f"distgan: skipped a corrupt image: {line}", file=sys.stderr, flush=True)
    replaced = processes.all_reduce_sum(len(corrupt))
    if replaced > skip_bad:
        raise CorruptDataError(f"more than {skip_bad} corrupt images (skip_bad) over all processes")
    return accumulator.reduce(processes), replaced
