"""Minibatches: the sample ids come from the data order, threads read and decode, arrays of pixels come out."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import xxhash

from distgan.data.decode import DECODERS
from distgan.data.open_files import MAX_OPEN_FILES, open_shard, raise_file_limit
from distgan.data.order import Lanes
from distgan.data.parallel import ParallelMap
from distgan.data.remote.ahead import FetchAhead
from distgan.data.remote.cache import RemoteStorage
from distgan.data.shardset import ShardSet
from distgan.errors import CorruptDataError

LOCATION = ("offset", "size", "check")
"""The columns of the index that reading an image needs."""


class ImageBatch(NamedTuple):
    images: Any
    """[N, *stored_shape] of the dataset's spec, as they are stored: a NumPy array or what the reader's `allocate`
    returned. Latents are moments, float16 [N, encodings, 2C, h, w]."""
    labels: np.ndarray
    """As networks get them: `ShardSet.labels`."""
    corrupt: list[str]
    """Messages about the corrupt images that were replaced."""
    random_inputs: dict[str, Any]
    """Random numbers for these images, by name."""
    wait_seconds: float = 0.0
    """How long the loop waited for them."""
    pixels: Any = None
    """The images beside the latents, uint8 [N, height, width, channels], of a reader that reads both."""

    def digest(self) -> int:
        """The sum over rows of a 40-bit hash of image and latent: digests of the parts of a global minibatch add up to
        the same number for every number of processes. Of a sample with `pixels` they are hashed too."""
        fields = [self.images, self.random_inputs["z"], *([] if self.pixels is None else [self.pixels])]
        rows = zip(*(np.asarray(field) for field in fields), strict=True)
        return sum(xxhash.xxh3_64_intdigest(b"".join(part.tobytes() for part in row)) >> 24 for row in rows)


class Reader:
    """Reads images of a dataset by sample id. Thread-safe.

    Every image is checked against its hash in the index. A corrupt one raises CorruptDataError; up to `skip_bad` of
    them per minibatch are replaced by the next good image of the dataset, and reported in the minibatch.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        decoder: str = "pillow",
        skip_bad: int = 0,
        allocate: Callable[[tuple[int, ...], str], Any] = np.empty,
        images: bool = False,
    ) -> None:
        """With `images`, of a dataset of latents that has kept them, minibatches have `pixels` too."""
        raise_file_limit()
        self.shards = shards
        self.skip_bad = skip_bad
        self.allocate = allocate
        self.starts = np.concatenate([[0], np.cumsum(shards.counts)])
        """The first sample id of each shard, and the number of samples."""
        self.views = [shards]
        """The fields of a sample that are read."""
        if images:
            assert shards.images is not None, "the dataset has no images beside its latents"
            self.views.append(shards.images)
        self.decode = DECODERS[decoder]
        self.is_raw = [view.encoding == "npy" for view in self.views]
        self.raw = all(self.is_raw)
        """Whether there is nothing to decode."""
        self.fetcher = FetchAhead(shards, shards.storage) if isinstance(shards.storage, RemoteStorage) else None
        opened = functools.lru_cache(MAX_OPEN_FILES)(functools.partial(open_shard, shards))
        self._open = self.fetcher.open if self.fetcher else opened
        self.stream: Stream | None = None
        """The stream that reads with it, until that ends."""
        self.waited_seconds = 0.0
        """How long the loop has waited for images, of all streams."""

    def close(self) -> None:
        """End the stream that reads with it; waits for no download."""
        if self.stream is not None:
            self.stream.close()

    def read(self, ids: np.ndarray) -> ImageBatch:
        """The images of `ids` [N], in that order."""
        fields = [self.allocate((len(ids), *view.spec.stored_shape), view.spec.dtype) for view in self.views]
        arrays = [np.asarray(field).view(np.uint8) for field in fields]  # share memory with `fields`
        shards = (np.searchsorted(self.starts, ids, side="right") - 1).tolist()
        if self.fetcher:
            self.fetcher.want(dict.fromkeys(shards))  # lets the fetcher download them in parallel
        located = [zip(*(view.columns[name][ids].tolist() for name in LOCATION), strict=True) for view in self.views]
        corrupt: list[str] = []
        for place, (shard, *locations) in enumerate(zip(shards, *located, strict=True)):
            rows = [array[place] for array in arrays]
            try:
                self._read_sample(rows, shard, locations)
            except CorruptDataError as error:
                self._count(error, corrupt)
                ids = ids.copy()
                ids[place] = self._replace(rows, int(ids[place]), corrupt)
        return ImageBatch(fields[0], self.shards.labels(ids), corrupt, {}, pixels=fields[1] if fields[1:] else None)

    def _read_sample(self, rows: list[np.ndarray], shard: int, locations: list[tuple[int, int, int]]) -> None:
        """Read its fields into `rows`. Raises CorruptDataError."""
        for out, location, raw in zip(rows, locations, self.is_raw, strict=True):
            self._read_image(out, shard, *location, raw)

    def _read_image(self, out: np.ndarray, shard: int, offset: int, size: int, xxh3: int, raw: bool) -> None:
        """Read, check and decode one image into `out`. Raises CorruptDataError."""
        file = self._open(shard)  # referenced until the read is done: eviction from the cache would close it
        try:
            data: Any = out.data if raw else os.pread(file.fd, size, offset)
            received = os.preadv(file.fd, [data], offset) if raw else len(data)
        except OSError as error:
            raise self._error(shard, offset, error.strerror or str(error)) from None
        if received != size or xxhash.xxh3_64_intdigest(data) != xxh3:
            raise self._error(shard, offset, "the image's bytes do not match the index")
        if raw:
            return
        try:
            self.decode(data, out)
        except Exception as error:  # decoders document no exceptions
            raise self._error(shard, offset, f"the image cannot be decoded ({error})") from error

    def _replace(self, rows: list[np.ndarray], id: int, corrupt: list[str]) -> int:
        """Read the next good image in place of `id`; returns its id, which does not depend on the process count."""
        while True:
            id = (id + 1) % int(self.starts[-1])
            shard = int(np.searchsorted(self.starts, id, side="right")) - 1
            located = [[int(view.columns[name][id]) for name in LOCATION] for view in self.views]
            try:
                self._read_sample(rows, shard, [(offset, size, xxh3) for offset, size, xxh3 in located])
                return id
            except CorruptDataError as error:
                self._count(error, corrupt)

    def _count(self, error: CorruptDataError, corrupt: list[str]) -> None:
        corrupt.append(str(error))
        if len(corrupt) > self.skip_bad:
            raise error

    def _error(self, shard: int, offset: int, message: str) -> CorruptDataError:
        try:
            key = self.shards.keys(shard)(offset)
        except (CorruptDataError, OSError) as error:
            key = f"unknown ({error})"
        return CorruptDataError(f"{self.shards.shard_path(shard)}, byte {offset}, key {key}: {message}")


class Stream(Iterator[ImageBatch]):
    """Minibatches of `order`'s local lanes from global `position` (images seen) up to `stop`, or without end.

    An error in reading one is raised where it is due, and ends the stream.
    """

    def __init__(
        self,
        order: Lanes,
        reader: Reader,
        draw: Callable[[int], dict[str, Any]],
        *,
        batch: int,
        position: int,
        threads: int,
        stop: int | None = None,
    ) -> None:
        """Ends the reader's previous stream: a reader serves one at a time.

        Args:
            draw: Maps the position of a minibatch to the random numbers for it.
            batch: Images of a global minibatch.
            stop: Nothing is read or fetched for what comes after it.
        """
        reader.close()
        if reader.raw:  # nothing to decode: a second thread only contends for the GIL
            threads = min(threads, 1)
        if reader.fetcher:
            reader.fetcher.follow(order, position, stop, images_in_flight(batch, threads))
        positions = itertools.count(position, batch) if stop is None else range(position, stop, batch)

        def read(planned: tuple[int, np.ndarray]) -> ImageBatch:
            at, ids = planned
            return reader.read(ids)._replace(random_inputs=draw(at))

        plan = ((at, order.ids(at, batch)) for at in positions)
        interrupted = reader.fetcher.interrupted if reader.fetcher else contextlib.nullcontext
        self.batches = ParallelMap(read, plan, threads, interrupted)
        self.batch = batch
        self.position = position
        """Images seen before the next minibatch."""
        self.reader = reader
        reader.stream = self

    def __next__(self) -> ImageBatch:
        start = time.perf_counter()
        try:
            images = next(self.batches)
            self.position += self.batch
            if self.reader.fetcher:
                self.reader.fetcher.advance(self.position)
        except BaseException:  # the stop too
            self.close()
            raise
        waited = time.perf_counter() - start
        self.reader.waited_seconds += waited
        return images._replace(wait_seconds=waited)

    def close(self) -> None:
        """End the threads; waits for no download."""
        self.batches.close()
        if self.reader.stream is self:
            self.reader.stream = None


def images_in_flight(batch: int, threads: int) -> int:
    """The most images that `threads` threads read, and hold read, ahead of the loop."""
    return (2 * threads + 1) * batch
