"""The real images: their statistics, and their real-vs-real values, computed once for a dataset and an extractor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distgan.data.shardset import ShardSet
from distgan.distributed.processes import Distributed
from distgan.evaluation.cache import Measured, StatisticsCache
from distgan.evaluation.card import ImageSum
from distgan.evaluation.classifier import is_stacked
from distgan.evaluation.features import Extractor, extract
from distgan.evaluation.inputs import from_stored
from distgan.evaluation.reading import read_in_chunks
from distgan.evaluation.scores import METRICS, Reference, Values, compute
from distgan.evaluation.split import Sets, Split, SplitAccumulator

LEAST_STAND_INS = 11
"""Fewer have no 5 nearest neighbours."""


@dataclass(frozen=True)
class RealImages:
    """The real images, on the main process."""

    reference: Reference
    real_vs_real: Values
    """Metrics of `stand_ins` other real images in the place of generated ones."""
    stand_ins: int
    image_sum: ImageSum | None
    """Of the reference, with an extractor that sums images."""


@dataclass(frozen=True)
class Population:
    """The images of a dataset that generated ones are compared with, and how these are split."""

    ids: np.ndarray
    """Ascending."""
    split: Split
    definition: dict[str, Any] = field(default_factory=dict)
    """What tells it from the whole dataset, in the keys of the cache."""


def class_frequencies(dataset: ShardSet, ids: np.ndarray) -> Tensor:
    """What the classes of generated images are compared with: uniform for StackedMNIST, else the labels of `ids`."""
    labels = dataset.columns["label"][ids]
    counts = torch.bincount(torch.from_numpy(labels.astype(np.int64)).clamp(min=0), minlength=len(dataset.classes))
    counts = counts[: len(dataset.classes)].double()
    counts = torch.ones_like(counts) if is_stacked(dataset) else counts.clamp(min=1)
    return counts / counts.sum()


@dataclass(frozen=True)
class RealImageStatistics:
    """Measures the images of a dataset, once: they are read from the cache in `folder` the next time."""

    processes: Distributed
    dataset: ShardSet
    extractor: Extractor
    folder: Path
    skip_bad: int
    """Corrupt images to replace by others; then nothing is cached."""
    log: Callable[[str], None] | None

    def of(self, population: Population, stop: Callable[[], bool]) -> RealImages | None:
        """None on all but the main process; called by all.

        Raises CorruptDataError, and Stopped when `stop` says so on one of the processes.
        """
        split = population.split
        cache = self.cache(population)
        cached: Measured | None = None

        def look_up() -> bool:
            nonlocal cached
            cached = cache.read()
            return cached is not None

        frequencies = class_frequencies(self.dataset, population.ids)
        if not self.processes.run_on_main(look_up):
            sets, replaced = self.measure(population, stop)
            if self.processes.is_main_process:
                cached = join(sets, frequencies, self.extractor)
                if not replaced:
                    cache.write(cached)
        if cached is None:
            return None
        reference = Reference(cached.statistics, frequencies)
        return RealImages(reference, cached.real_vs_real, split.stand_ins, cached.image_sum)

    def cache(self, population: Population) -> StatisticsCache:
        """The file of a population's statistics."""
        split = population.split
        key = dict(
            manifest=self.dataset.digest,
            extractor=self.extractor.sha256,
            images=split.others + split.shared,
            floor_images=split.stand_ins,
            **population.definition,
        )
        return StatisticsCache(self.folder, key, self.log or (lambda line: print(line, flush=True)))

    def measure(self, population: Population, stop: Callable[[], bool]) -> tuple[Sets, int]:
        """Statistics of the sets of a split, and how many corrupt images were replaced by others."""
        processes = self.processes
        accumulator = SplitAccumulator(
            population.ids,
            len(self.dataset.columns["label"]),
            population.split,
            self.extractor.num_features,
            image_sums=self.extractor.sums_images,
        )

        def add(_: int, ids: np.ndarray, stored: Tensor) -> None:
            images = from_stored(stored, self.dataset.spec)
            accumulator.add(ids, stored, *extract(self.extractor, images))

        about: dict[str, Any] = {"title": "statistics of the real images", "skip_bad": self.skip_bad, "log": self.log}
        replaced = read_in_chunks(processes, self.dataset, accumulator.ids, add, **about, stop=stop)
        return accumulator.reduce(processes), replaced


def join(sets: Sets, frequencies: Tensor, extractor: Extractor) -> Measured:
    """Statistics of the reference of generated images, and the real-vs-real values."""
    real_vs_real: Values = {}
    if sets.stand_ins.n >= LEAST_STAND_INS:
        names = [name for name, metric in METRICS.items() if metric.needs in extractor.gives]
        real_vs_real = compute(names, sets.stand_ins, Reference(sets.others, frequencies), extractor.name)
    return Measured(sets.others + sets.shared, real_vs_real, sets.image_sum)
