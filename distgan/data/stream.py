"""Minibatches without end: a planned source, threads that read and decode, whole uint8 arrays out."""

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from PIL import Image

from distgan import CorruptDataError, UsageError
from distgan.data.order import Lanes
from distgan.data.shardset import PIL_FORMATS, ShardSet

OPEN_FILES = 512


class ImageBatch(NamedTuple):
    images: Any
    """uint8 [N, size, size, channels], a NumPy array or what the reader's `allocate` gave."""
    labels: np.ndarray
    """int64 [N]; -1 if the dataset has no labels."""
    corrupt: list[str]
    """The corrupt images that others were read in place of."""
    noise: dict[str, Any]
    """Random numbers for these images, by name."""

    def digest(self) -> int:
        """A sum over rows of hashes of image and numbers: minibatches that hold the same rows, shared out among any
        number of processes, have sums that add up to the same. Below 2**40 a row."""
        pairs = zip(np.asarray(self.images), np.asarray(self.noise["z"]), strict=True)
        return sum(xxhash.xxh3_64_intdigest(image.tobytes() + z.tobytes()) >> 24 for image, z in pairs)


class Reader:
    """Reads images of a set by sample id. Threads share one reader.

    Every image is checked against the hash in the index before it is used. A bad one raises CorruptDataError; with a budget
    of `skip_bad`, up to that many are replaced by the next good image of the set, and named in the minibatch.
    """

    def __init__(
        self,
        shards: ShardSet,
        *,
        decoder: str = "pillow",
        skip_bad: int = 0,
        allocate: Callable[[tuple[int, ...]], Any] = lambda shape: np.empty(shape, np.uint8),
    ) -> None:
        self.shards, self.skip_bad, self.allocate = shards, skip_bad, allocate
        self.starts = np.concatenate([[0], np.cumsum(shards.counts)])
        self.shape = (shards.size, shards.size, shards.channels)
        self.decode = decoders()[decoder]
        self._files: dict[int, Handle] = {}
        self._lock = threading.Lock()

    def read(self, ids: np.ndarray) -> ImageBatch:
        """The images of `ids`, in that order."""
        images = self.allocate((len(ids), *self.shape))
        array = np.asarray(images)  # the same memory
        columns = self.shards.columns
        shards = np.searchsorted(self.starts, ids, side="right") - 1
        offsets, sizes, checks = (columns[name][ids].tolist() for name in ("offset", "size", "check"))
        fill = self._fill_raw if self.shards.encoding == "npy" else self._fill_image
        bad: list[str] = []
        for row, (shard, offset, size, check) in enumerate(zip(shards.tolist(), offsets, sizes, checks, strict=True)):
            try:
                fill(array[row], shard, offset, size, check)
            except CorruptDataError as damaged:
                self._note(damaged, bad)
                ids = ids.copy()
                ids[row] = self._replace(array[row], int(ids[row]), fill, bad)
        return ImageBatch(images, columns["label"][ids].astype(np.int64), bad, {})

    def _fill_raw(self, out: np.ndarray, shard: int, offset: int, size: int, check: int) -> None:
        file = self._file(shard)
        try:
            got = os.preadv(file.number, [out.data], offset)
        except OSError as error:
            raise self.damaged(shard, offset, error.strerror or str(error)) from None
        if got != size or xxhash.xxh3_64_intdigest(out.data) != check:
            raise self.damaged(shard, offset, "the image's bytes are not those that were indexed")

    def _fill_image(self, out: np.ndarray, shard: int, offset: int, size: int, check: int) -> None:
        file = self._file(shard)
        try:
            data = os.pread(file.number, size, offset)
        except OSError as error:
            raise self.damaged(shard, offset, error.strerror or str(error)) from None
        if len(data) != size or xxhash.xxh3_64_intdigest(data) != check:
            raise self.damaged(shard, offset, "the image's bytes are not those that were indexed")
        try:
            image = self.decode(data, self.shape)
        except Exception as error:  # decoders raise whatever they like
            raise self.damaged(shard, offset, f"the image does not decode ({error})") from error
        if image.shape != self.shape:
            raise self.damaged(shard, offset, f"the image is {image.shape}, the set {self.shape}")
        out[:] = image

    def _replace(self, out: np.ndarray, id: int, fill: Callable[..., None], bad: list[str]) -> int:
        """Fill in the next good image: a rule that is the same for every number of processes."""
        while True:
            id = (id + 1) % int(self.starts[-1])
            shard = int(np.searchsorted(self.starts, id, side="right")) - 1
            try:
                fill(out, shard, *(int(self.shards.columns[name][id]) for name in ("offset", "size", "check")))
                return id
            except CorruptDataError as damaged:
                self._note(damaged, bad)

    def _note(self, damaged: CorruptDataError, bad: list[str]) -> None:
        bad.append(str(damaged))
        if len(bad) > self.skip_bad:
            raise damaged

    def damaged(self, shard: int, offset: int, what: str) -> CorruptDataError:
        try:
            key = self.shards.keys(shard)(offset)
        except (CorruptDataError, OSError) as error:
            key = f"unknown ({error})"
        return CorruptDataError(f"{self.shards.shard_path(shard)}, byte {offset}, key {key}: {what}")

    def _file(self, shard: int) -> "Handle":
        handle = self._files.get(shard)
        if handle is None:
            row = self.shards.manifest["shards"][shard]
            path = self.shards.shard_path(shard)
            for attempt in range(3):  # a full cache may drop a copy between its fetch and its opening
                try:
                    handle = Handle(path)
                    break
                except OSError as error:
                    if attempt == 2 or not isinstance(error, FileNotFoundError):
                        raise CorruptDataError(f"{path}: {error.strerror}") from None
                    path = self.shards.shard_path(shard)
            assert handle is not None
            size = os.fstat(handle.number).st_size
            if size != row["bytes"]:
                raise CorruptDataError(f"{path}: {size} bytes, {row['bytes']} in the manifest")
            with self._lock:
                while len(self._files) >= OPEN_FILES:
                    self._files.pop(next(iter(self._files)))
                self._files[shard] = handle
        return handle


class Handle:
    """An open file that closes when the last thread that reads from it lets go of it."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


def decode_pillow(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=PIL_FORMATS) as image:
        if image.size != shape[1::-1]:  # before a pixel is decoded: a small file can claim a huge image
            raise ValueError(f"{image.size[0]}x{image.size[1]} pixels")
        array = np.asarray(image.convert("L" if shape[2] == 1 else "RGB"))
    return array.reshape(shape) if shape[2] == 1 else array


def decode_simplejpeg(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    import simplejpeg

    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if (height, width) != shape[:2]:
        raise ValueError(f"{width}x{height} pixels")
    return simplejpeg.decode_jpeg(data, colorspace="GRAY" if shape[2] == 1 else "RGB")


def decoders() -> dict[str, Callable[[bytes, tuple[int, ...]], np.ndarray]]:
    return {"pillow": decode_pillow, "simplejpeg": decode_simplejpeg}


def check_decoder(decoder: str, encoding: str) -> None:
    """Raises UsageError where the decoder is not installed or cannot read the set."""
    if decoder == "simplejpeg":
        if encoding != "jpg":
            raise UsageError(f"data.decoder: simplejpeg reads JPEG; the set is {encoding}")
        try:
            import simplejpeg  # noqa: F401
        except ImportError:
            raise UsageError("data.decoder: simplejpeg is not installed; pip install 'distgan[fast]'") from None


def stream(
    order: Lanes,
    reader: Reader,
    draw: Callable[[int], dict[str, Any]],
    *,
    batch: int,
    position: int,
    threads: int,
) -> Iterator[ImageBatch]:
    """The minibatches of `order`'s lanes from global `position` (images seen) on; `batch` is the global one.

    `draw` maps the position of a minibatch to the random numbers that go with it.
    """
    import webdataset as wds  # imports torch, which `shards verify` does without

    def plan() -> Iterator[tuple[int, np.ndarray]]:
        at = position
        while True:
            yield at, order.ids(at, batch)
            at += batch

    def read(planned: tuple[int, np.ndarray]) -> ImageBatch:
        at, ids = planned
        return reader.read(ids)._replace(noise=draw(at))

    if reader.shards.encoding == "npy":  # nothing to decode: one thread reads faster than two that wait for each other
        threads = min(threads, 1)
    return iter(wds.pipeline.DataPipeline(plan, threaded(read, threads)))


def threaded(function: Callable, threads: int) -> Callable[[Iterable], Iterator]:
    """A pipeline stage that maps in threads, a few items ahead, and keeps the order."""

    def stage(items: Iterable) -> Iterator:
        if not threads:
            yield from map(function, items)
            return
        pool = ThreadPoolExecutor(threads, thread_name_prefix="distgan-read")
        ahead: deque[Future] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    return stage
