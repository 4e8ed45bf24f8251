"""The open shards of a remote dataset: fetched by threads, several at once, in the order in which they are needed."""

import atexit
import contextlib
import heapq
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future

import numpy as np

from distgan.data.open_files import MAX_OPEN_FILES, OpenFile, open_shard
from distgan.data.order import WINDOW, Lanes
from distgan.data.remote.cache import EXITING, RemoteStorage
from distgan.data.shardset import ShardSet
from distgan.errors import RunError, UsageError

REPORT_SECONDS = 2.0
"""Between two lines about the progress of the first shards."""
EXIT_SECONDS = 2.0
"""How long the end of the process waits for the threads that fetch."""
WORKERS: set[threading.Thread] = set()
"""All threads that fetch."""


class FetchAhead:
    """Opens the shards of a remote dataset. Thread-safe.

    After `follow`, the shards that are needed next are fetched ahead, up to the storage's `fetch_ahead` shards of each
    lane and within its cache. A shard stays open, which keeps it in the cache, until it is read for the last time.
    """

    def __init__(self, shards: ShardSet, storage: RemoteStorage) -> None:
        self.shards = shards
        self.storage = storage
        self.sizes: list[int] = [shard.bytes for shard in shards.manifest.shards]
        self.lock = threading.RLock()
        """Held wherever an attribute below is changed."""
        self.files: dict[int, Future[OpenFile]] = {}
        """By shard: every shard that is open, or is being fetched, or waits to be fetched."""
        self.opened: dict[int, OpenFile] = {}
        """The shards of `files` that are open. Every image looks its shard up here, without the lock."""
        self.pending: set[Future[OpenFile]] = set()
        """The futures without a result, including those of shards that `files` has dropped meanwhile."""
        self.bytes = 0
        """Size of the shards in `files`."""
        self.ends: dict[int, int] = {}
        """By shard of `files`: the position from which on it is not needed."""
        self.by_end: list[tuple[int, int]] = []
        """A heap of (end, shard); an entry is outdated if `ends` has a later one."""
        self.waiting: deque[tuple[int, Future[OpenFile]]] = deque()
        """The shards that wait for a thread, the next one first."""
        self.workers = 0
        """Threads that fetch."""
        self.position = 0
        """Everything before it has been read."""
        self.following = False
        """Whether `follow` was called."""
        self.first: list[int] = []
        """The shards that the first images wait for."""
        self.report_time = 0.0
        """When their progress was printed last."""

    def open(self, shard: int) -> OpenFile:
        """A shard; waits for its download. Raises CorruptDataError or RunError."""
        file = self.opened.get(shard)
        if file is None:
            with self.lock:
                future = self._add(shard, self.position, self.waiting.appendleft)
                self._start_workers()
            file = future.result()
        return file

    def want(self, shards: Iterable[int]) -> None:
        """Fetch shards before all those that are fetched ahead."""
        new = [shard for shard in shards if shard not in self.files]
        if not new:
            return
        with self.lock:
            for shard in reversed(new):
                self._add(shard, self.position, self.waiting.appendleft)
            if not self.following:
                self.first = new
                self.report_time = time.monotonic()
            self._start_workers()

    def follow(self, order: Lanes, position: int, stop: int | None, reading: int) -> None:
        """Fetch ahead for `order` from `position` to `stop`, both in images seen, as is the argument of `advance`.

        `reading` is how many images, after the position that `advance` was given last, may be read.
        """
        with self.lock:
            self.needs = order.needs(position)
            self.next_need = next(self.needs)
            self.stop = math.inf if stop is None else stop
            self.reading = reading
            self.ahead = 0  # first only what is read at once
            self.following = True
            self.advance(position)
            self.first = list(self.files)
            self.report_time = time.monotonic()
            self.ahead = self.storage.fetch_ahead * int(order.counts.max()) * order.lanes
            self._fetch_due()

    @contextlib.contextmanager
    def interrupted(self) -> Iterator[None]:
        """Until the end of the `with`, downloads end, and what waits for one fails instead."""
        with self.lock:
            self.storage.stopping.set()
            self.waiting.clear()
            for shard in [shard for shard, future in self.files.items() if future in self.pending]:
                self._forget(shard)
            for future in self.pending:
                future.set_exception(self._interruption())
            self.pending.clear()
        try:
            yield
        finally:
            self.storage.stopping = threading.Event()

    def _interruption(self) -> RunError:
        return RunError(f"{self.storage.address}: interrupted")

    def advance(self, position: int) -> None:
        """Everything before `position` has been read: close what is not needed any more, fetch what comes next."""
        with self.lock:
            self.position = position
            self.first = []
            while self.by_end and self.by_end[0][0] <= position:
                self._close_first()
            self._fetch_due()

    def _fetch_due(self) -> None:
        """Fetch what may be read now, and what is within reach and fits into the cache."""
        while True:
            first, end, shard = self.next_need
            full = self._is_full(0 if shard in self.files else self.sizes[shard])
            if first >= min(self.position + self.reading + (0 if full else self.ahead), self.stop):
                break
            self._add(shard, end, self.waiting.append)
            self.next_need = next(self.needs)
        self._start_workers()

    def _add(self, shard: int, end: int, enqueue: Callable[[tuple[int, Future]], None]) -> Future[OpenFile]:
        """The future of a shard that is needed until `end`; enqueues it if it is new, and makes room for it.

        Those whose need ends first are closed, while too many are open; and, while the cache is full, those that were
        asked for out of order, whose need ended when they were added.
        """
        future = self.files.get(shard)
        if future is None:
            if self.storage.stopping.is_set():
                raise self._interruption()
            future = self.files[shard] = Future()
            self.pending.add(future)
            self.bytes += self.sizes[shard]
            enqueue((shard, future))
        if end > self.ends.get(shard, -1):
            self.ends[shard] = end
            heapq.heappush(self.by_end, (end, shard))
        while self.by_end:
            unscheduled = self.by_end[0][0] <= self.position
            if len(self.files) <= MAX_OPEN_FILES and not (unscheduled and self._is_full()):
                break
            self._close_first()
        return future

    def _is_full(self, more: int = 0) -> bool:
        """Whether the open shards, and so many bytes more, exceed this process's share of the cache."""
        return 0 < self.storage.share < self.bytes + more

    def _close_first(self) -> None:
        """Close the shard whose need ends first."""
        end, shard = heapq.heappop(self.by_end)
        if self.ends.get(shard) == end:
            del self.ends[shard]
            self._forget(shard)

    def _forget(self, shard: int) -> None:
        """Close a shard once nobody reads it, or drop it before it is fetched."""
        if self.files.pop(shard, None):
            self.bytes -= self.sizes[shard]
            self.opened.pop(shard, None)

    def _start_workers(self) -> None:
        """Start as many threads as there is work for, up to the storage's `fetch_threads`."""
        for _ in range(min(len(self.waiting), self.storage.fetch_threads - self.workers)):
            self.workers += 1
            worker = threading.Thread(target=self._work, name="distgan-fetch", daemon=True)
            WORKERS.add(worker)
            worker.start()

    def _work(self) -> None:
        """Fetch until nothing waits."""
        while True:
            with self.lock:
                if not self.waiting or EXITING.is_set():
                    self.workers -= 1
                    WORKERS.discard(threading.current_thread())
                    return
                waiting = self.waiting.popleft()
            self._fetch(*waiting)
            del waiting  # the future has the open file
            self._report_progress()

    def _fetch(self, shard: int, future: Future[OpenFile]) -> None:
        """Fetch and open a shard; its file, or the error, becomes the result of `future`."""
        try:
            file = open_shard(self.shards, shard)
        except Exception as error:  # raised where the shard is read; another read tries again
            with self.lock:
                if self.files.get(shard) is future:
                    self._forget(shard)
                if future in self.pending:  # it is not if it was interrupted
                    self.pending.remove(future)
                    future.set_exception(error)
            return
        with self.lock:
            if self.files.get(shard) is future:
                self.opened[shard] = file
            if future in self.pending:
                self.pending.remove(future)
                future.set_result(file)

    def _report_progress(self) -> None:
        """Print how many of the first shards are there, until all of them are."""
        with self.lock:
            sizes = [(self.sizes[shard], self.files[shard].done()) for shard in self.first if shard in self.files]
            done = [size for size, is_done in sizes if is_done]
            if len(done) == len(sizes) or time.monotonic() < self.report_time + REPORT_SECONDS:
                return
            self.report_time = time.monotonic()
        if os.environ.get("RANK", "0") == "0":
            total = sum(size for size, _ in sizes) / 1e6
            line = f"fetched {len(done)} of the first {len(sizes)} shards, {sum(done) / 1e6:.0f} of {total:.0f} MB"
            with contextlib.suppress(OSError, ValueError):  # a closed stderr does not end a download
                print(f"distgan: {line}", file=sys.stderr, flush=True)


def check_cache(shards: ShardSet, order: Lanes, reading: int) -> None:
    """Raises UsageError if the cache cannot hold what the lanes of this node may have open at once.

    A lane that reads a range of samples has open the shards in it, and those that it touches at its two ends. `reading`
    is how many images may be read at a time.
    """
    storage = shards.storage
    sizes = np.array([shard.bytes for shard in shards.manifest.shards])
    if not isinstance(storage, RemoteStorage) or not storage.cache_bytes or storage.cache_bytes >= sizes.sum():
        return
    slots = reading // order.lanes
    ranges = -(-(slots - 1) // order.length) + 1  # the end of an epoch and the beginning of the next are apart
    samples = WINDOW if slots == 1 else slots + 2 * WINDOW  # whole windows
    lane = ranges * 2 * sizes.max() + samples * (sizes / np.maximum(order.counts, 1)).max()
    lanes = len(order.local_lanes) * storage.processes
    need = min(lanes * lane, sizes.sum())
    if storage.cache_bytes < need:
        raise UsageError(
            f"data.cache_gb: {storage.cache_bytes / 1e9:g} is too small: the {lanes} lanes of this node may read "
            f"{need / 1e9:.3g} GB of shards at a time; set it to {math.ceil(need / 1e6) / 1e3:g}, or to 0 for no limit"
        )


@atexit.register
def stop_workers() -> None:
    """End the downloads. A thread that came back from obstore while the interpreter is torn down would abort the
    process; one that waits for a stalled server does not come back so soon."""
    EXITING.set()
    deadline = time.monotonic() + EXIT_SECONDS
    for worker in list(WORKERS):
        worker.join(max(0.0, deadline - time.monotonic()))
