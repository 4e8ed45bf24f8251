"""Statistics of the real images, and the floor: computed once for a dataset and an extractor, cached on disk."""

import contextlib
import fcntl
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from distgan.data.shardset import ShardSet
from distgan.data.stream import ImageBatch, Reader, threaded
from distgan.distributed.processes import Distributed
from distgan.errors import CorruptDataError, format_os_error
from distgan.evaluation.classifier import hash_tensors, is_stacked
from distgan.evaluation.features import Extractor, extract
from distgan.evaluation.progress import Progress
from distgan.evaluation.rounds import run_in_rounds
from distgan.evaluation.scores import METRICS, Reference, Values, compute
from distgan.evaluation.statistics import Accumulator, Statistics
from distgan.files import atomic_write
from distgan.rng import rng

METADATA, FORMAT = "distgan_statistics", 1
CHUNK = 128
"""Images that pass through the networks together, on every number of processes: features depend on it in the last
bit."""


@dataclass(frozen=True)
class RealImages:
    """The real images, on the main process."""

    reference: Reference
    floor: Values
    """Metrics of `floor_images` other real images in the place of generated ones."""
    floor_images: int


def class_frequencies(dataset: ShardSet) -> Tensor:
    """What the classes of generated images are compared with: uniform for StackedMNIST, else the dataset's labels."""
    counts = torch.tensor([row.samples for row in dataset.classes], dtype=torch.float64)
    counts = torch.ones_like(counts) if is_stacked(dataset) else counts.clamp(min=1)
    return counts / counts.sum()


def real_images(
    processes: Distributed,
    dataset: ShardSet,
    extractor: Extractor,
    *,
    samples: int,
    limit: int | None,
    folder: Path,
    skip_bad: int,
    stop: Callable[[], bool],
    log: Callable[[str], None] | None,
) -> RealImages | None:
    """From the cache in `folder`, or by a pass over the dataset; called by all processes, None on all but the main one.

    The floor takes `samples` images, drawn at random, at most half of the dataset, in the place of generated ones, and
    compares them with others, as many as there are, or `limit`. The reference of generated images is all images, or
    `limit`: these others, and images of the floor where there are too few. Up to `skip_bad` corrupt images are
    replaced. Raises CorruptDataError, and Stopped when `stop` says so on one of the processes.
    """
    total = len(dataset.columns["label"])
    floor_images, images = min(samples, total // 2), min(limit or total, total)
    others_count = min(images, total - floor_images)
    key = {
        "format": FORMAT,
        "manifest": dataset.digest,
        "extractor": extractor.sha256,
        "images": images,
        "floor_images": floor_images,
    }
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    path = folder / f"{name}.safetensors"
    say = log or (lambda line: print(line, flush=True))
    cached: list[tuple[Statistics, Values]] = []

    def look_up() -> bool:
        found = read_statistics(path, key, say)
        cached.extend([found] if found else [])
        return found is not None

    frequencies = class_frequencies(dataset)
    if processes.run_on_main(look_up):
        return RealImages(Reference(cached[0][0], frequencies), cached[0][1], floor_images) if cached else None
    counts = floor_images, others_count, images - others_count
    first, others, shared, replaced = measure(processes, dataset, extractor, counts, skip_bad, stop, log)
    if not processes.is_main_process:
        return None
    statistics, floor = others + shared, {}
    if floor_images > 10:  # fewer have no 5 nearest neighbours
        names = [name for name, metric in METRICS.items() if metric.needs in extractor.gives]
        floor = compute(names, first, Reference(others, frequencies), extractor.name)
    if not replaced:
        write_statistics(path, key, statistics, floor, say)
    return RealImages(Reference(statistics, frequencies), floor, floor_images)


def measure(
    processes: Distributed,
    dataset: ShardSet,
    extractor: Extractor,
    counts: tuple[int, int, int],
    skip_bad: int,
    stop: Callable[[], bool],
    log: Callable[[str], None] | None,
) -> tuple[Statistics, Statistics, Statistics, int]:
    """Statistics of random images of the dataset, and how many corrupt ones were replaced by others.

    `counts` are those of a first set, of a second one without images of the first, and of a part of the first.
    """
    first_count, others_count, shared_count = counts
    count = first_count + others_count
    order = rng(0, "reference").permutation(len(dataset.columns["label"]))[:count]
    position = np.full(len(dataset.columns["label"]), -1)
    position[order] = np.arange(count)
    ids = np.sort(order)  # read in the order of the shards
    chunks = [ids[start : start + CHUNK] for start in range(0, count, CHUNK)]
    first, others = Accumulator(extractor.num_features), Accumulator(extractor.num_features)
    shared = first if shared_count == first_count else Accumulator(extractor.num_features)
    reader = Reader(dataset, skip_bad=skip_bad)
    corrupt: list[str] = []

    def add(chunk: np.ndarray, batch: ImageBatch) -> None:
        corrupt.extend(batch.corrupt)
        pixels = torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous().to(processes.device)
        features, logits = extract(extractor, pixels)
        positions = torch.from_numpy(position[chunk])
        early = positions < first_count
        parts = [(first, early, 0, logits), (others, ~early, first_count, None)]
        if shared is not first:
            parts.append((shared, positions < shared_count, 0, None))
        for accumulator, rows, offset, kept in parts:
            accumulator.add(positions[rows] - offset, features[rows], kept[rows] if kept is not None else None)

    progress = Progress("statistics of the real images", count, main=processes.is_main_process, log=log)
    mine = chunks[processes.rank :: processes.world_size]
    read: Any = threaded(lambda chunk: (chunk, reader.read(chunk)), 2)(mine)
    with contextlib.closing(read) as batches:

        def work(number: int) -> None:
            add(*next(batches))
            progress.update((number + 1) * CHUNK)

        run_in_rounds(processes, len(chunks), work, stop)
    progress.close()
    for line in corrupt:
        print(f"distgan: skipped a corrupt image: {line}", file=sys.stderr, flush=True)
    replaced = processes.all_reduce_sum(len(corrupt))
    if replaced > skip_bad:
        raise CorruptDataError(f"more than {skip_bad} corrupt images (skip_bad) over all processes")
    found = first.reduce(processes), others.reduce(processes)
    return *found, found[0] if shared is first else shared.reduce(processes), replaced


def read_statistics(path: Path, key: dict[str, Any], say: Callable[[str], None]) -> tuple[Statistics, Values] | None:
    """Cached statistics and floor; None, after saying so, if the file is corrupt or is of other images."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA])
            tensors = {name: file.get_tensor(name) for name in ("total", "outer", "rows")}
        if metadata["key"] != key:
            raise ValueError("they are of another dataset or extractor")
        if metadata["sha256"] != hash_tensors(tensors):
            raise ValueError("the sha256 of the tensors does not match")
        return Statistics(key["images"], **tensors), metadata["floor"]
    except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        say(f"cached statistics {path} are not used: {error}; they are computed again")
        return None


def write_statistics(
    path: Path, key: dict[str, Any], statistics: Statistics, floor: Values, say: Callable[[str], None]
) -> None:
    """Cache statistics and floor, atomically. A cache that cannot be written costs time only: it is said.

    Runs that start together write the same file, one after another: the lock is on the folder.
    """
    tensors = {name: getattr(statistics, name).contiguous() for name in ("total", "outer", "rows")}
    metadata = {"key": key, "floor": floor, "sha256": hash_tensors(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.parent / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            atomic_write(path, safetensors.torch.save(tensors, {METADATA: json.dumps(metadata)}))
    except OSError as error:
        say(f"the statistics of the real images are not cached: {format_os_error(error)}")
