"""Verifying and describing datasets."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from distgan.data.manifest import channel_stats
from distgan.data.order import Lanes
from distgan.data.remote.cache import UnavailableError
from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.dataset_tool.latent_scan import scan_latents
from distgan.dataset_tool.scan import Scan
from distgan.errors import CorruptDataError
from distgan.files import sha256_file

Progress = Callable[[Any], Any]
"""Wraps an iterable to show progress."""


def verify(shards: ShardSet, progress: Progress = iter) -> Iterator[str]:
    """Every error of a dataset, one line each: sizes, hashes, tar headers, and every image is decoded."""
    index = shards.storage.path("index.npz")
    if sha256_file(index) != shards.manifest.index.sha256:
        yield f"{index}: the sha256 does not match the manifest"
    sources = None
    try:
        sources = shards.sources()
    except (CorruptDataError, UnavailableError) as error:
        yield str(error)
    reader = Reader(shards, images=shards.images is not None)
    start = 0
    for shard, recorded in enumerate(progress(shards.manifest.shards)):
        ids = np.arange(start, start + recorded.samples)
        start += recorded.samples
        try:
            yield from verify_shard(shards, reader, shard, ids, sources)
        except (CorruptDataError, UnavailableError) as error:
            yield str(error)
        except OSError as error:
            yield f"{recorded.name}: {error.strerror}"


def verify_shard(
    shards: ShardSet, reader: Reader, shard: int, ids: np.ndarray, sources: list[str] | None
) -> Iterator[str]:
    """Every error of a shard with the samples `ids`, one line each; `sources` are the lines of sources.txt, if any."""
    recorded = shards.manifest.shards[shard]
    path = shards.shard_path(shard)
    if not path.exists():
        yield f"{path}: missing"
        return
    if path.stat().st_size != recorded.bytes:
        yield f"{path}: {path.stat().st_size} bytes, {recorded.bytes} in the manifest"
    elif sha256_file(path) != recorded.sha256:
        yield f"{path}: the sha256 does not match the manifest"
    else:
        for id in ids:
            verify_image(reader, id, sources)
        return
    # The file is corrupt: locate the first corrupt image, then compare the headers with the index.
    for id in ids:
        try:
            verify_image(reader, id, sources)
        except CorruptDataError as error:
            yield str(error)
            break
    if shards.spec.latents is None:
        columns = Scan(path).arrays()
    else:
        columns = scan_latents(path, shards.spec, images=shards.images is not None)
    if any(not np.array_equal(column, shards.columns[name][ids]) for name, column in columns.items()):
        yield f"{path}: its samples do not match the index"


def verify_image(reader: Reader, id: int, sources: list[str] | None) -> None:
    """Raises CorruptDataError, with the name of the source file if it is known."""
    try:
        reader.read(np.array([id]))
    except CorruptDataError as error:
        if sources is None:
            raise
        raise CorruptDataError(f"{error}; made from {sources[id]}") from None


class Statistics(NamedTuple):
    values: dict[str, Any]
    """Mean and std per channel, of stored pixels or of latents drawn from stored moments, and the number of samples
    that are equal to an earlier one."""
    duplicates: list[list[int]]
    """Groups of sample ids with equal images, ascending."""
    images: np.ndarray
    """The first samples, [at most `preview`, *stored_shape] as they are stored."""


def statistics(shards: ShardSet, progress: Progress = iter, preview: int = 64) -> Statistics:
    """Read all images once. Raises CorruptDataError."""
    reader = Reader(shards)
    start = 0
    spec = shards.spec
    sums = np.zeros(spec.channels)
    squares = np.zeros(spec.channels)
    first_ids: dict[bytes, int] = {}
    groups: dict[int, list[int]] = {}
    first: list[np.ndarray] = []
    for shard in progress(shards.manifest.shards):
        stop = start + shard.samples
        for at in range(start, stop, 256):
            images = reader.read(np.arange(at, min(at + 256, stop))).images
            if spec.latents is None:
                flat = images.reshape(-1, spec.channels).astype(np.float64)
                totals = flat.sum(0), (flat**2).sum(0)
            else:
                totals = sum_latents(images)
            sums += totals[0]
            squares += totals[1]
            first += list(images[: max(0, preview - len(first))])
            for id, image in enumerate(images, at):
                digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                if (earlier := first_ids.setdefault(digest, id)) != id:
                    groups.setdefault(earlier, [earlier]).append(id)
        start = stop
    stats = channel_stats(sums, squares, start * spec.height * spec.width, spec.dtype)
    return Statistics(stats | {"duplicate_images": start - len(first_ids)}, sorted(groups.values()), np.stack(first))


def sum_latents(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sums per channel, float64 [C], of latents drawn from moments [N, encodings, 2C, h, w], and of their squares.

    In expectation over the draws, of the first encoding: E x = mean, E x^2 = mean^2 + std^2.
    """
    mean, std = np.split(stored[:, 0].astype(np.float64), 2, axis=1)
    return mean.sum((0, 2, 3)), (mean**2 + std**2).sum((0, 2, 3))


def sample_names(shards: ShardSet) -> Callable[[int], str]:
    """A function from a sample id to the path of its source file, or to its key if the dataset has no sources.txt.

    Raises CorruptDataError.
    """
    sources = shards.sources()
    if sources is not None:
        return sources.__getitem__
    key = sample_keys(shards)
    return lambda id: key(np.array([id]))[0]


def sample_keys(shards: ShardSet) -> Callable[[np.ndarray], list[str]]:
    """A function from sample ids to their keys."""
    starts = np.concatenate([[0], np.cumsum(shards.counts)])
    keys = functools.cache(shards.keys)

    def of(ids: np.ndarray) -> list[str]:
        rows = zip(np.searchsorted(starts, ids, side="right") - 1, shards.columns["offset"][ids], strict=True)
        return [keys(int(shard))(int(offset)) for shard, offset in rows]

    return of


def minibatch_keys(shards: ShardSet, order: Lanes, batch: int, start: int, count: int) -> Iterator[list[str]]:
    """The sample keys of the local lanes in `count` minibatches from global position `start` on."""
    keys = sample_keys(shards)
    for position in range(start, start + count * batch, batch):
        yield keys(order.ids(position, batch))
