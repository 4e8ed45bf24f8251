"""The order of the images: a pure function of (seed, images seen), the same for every number of processes.

The sequence of epoch e is its permuted shards end to end, rotated by a random offset. It is cut into L equal lanes, and
inside a lane windows of samples are permuted. Global position p (images seen) belongs to lane p mod L, and process r of
W reads the lanes [r L/W, (r+1) L/W). So

- an epoch is an exact permutation of the dataset less at most L-1 samples, different ones each epoch;
- a global minibatch holds the same images for every W that divides L;
- a node reads about 1/nodes of the shards;
- seeking to any position takes constant time.
"""

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from distgan.errors import UsageError
from distgan.rng import rng

WINDOW = 1024  # samples of a lane that are permuted together


class Lanes:
    """The lanes [first, last) of `lanes` over shards with `counts` samples each. Sample ids count along the shards.

    Raises UsageError if the dataset has fewer images than lanes.
    """

    def __init__(self, counts: np.ndarray, seed: int, lanes: int, first: int = 0, last: int | None = None) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.seed = seed
        self.lanes = lanes
        self.local_lanes = range(first, lanes if last is None else last)
        """The lanes that this process reads."""
        self.total = int(self.starts[-1])
        self.length = self.total // lanes
        """Samples of a lane in an epoch."""
        self.epoch_images = self.length * lanes
        """Images of an epoch."""
        if not self.length:
            raise UsageError(f"data.lanes: {lanes} lanes need at least {lanes} images; the dataset has {self.total}")
        # Positions ascend, so that it suffices to cache the latest window and epoch.
        self._window = functools.lru_cache(1)(self._permuted_window)
        self._epoch = functools.lru_cache(1)(self._shard_sequence)

    def ids(self, position: int, count: int) -> np.ndarray:
        """Sample ids of the local lanes among the global positions [position, position + count), in their order.

        `position` and `count` are multiples of `lanes`. int64 [count / lanes * local lanes].
        """
        slot = position // self.lanes
        slots = count // self.lanes
        parts = []
        while slots:
            epoch, inner = divmod(slot, self.length)
            window, offset = divmod(inner, WINDOW)
            take = min(slots, WINDOW - offset, self.length - inner)
            parts.append(self._window(epoch, window)[offset : offset + take].ravel())
            slot += take
            slots -= take
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _permuted_window(self, epoch: int, window: int) -> np.ndarray:
        """Sample ids [slot in the window, local lane]."""
        columns = []
        for lane in self.local_lanes:
            start = lane * self.length + window * WINDOW
            ids = self._slice(epoch, start, min(start + WINDOW, (lane + 1) * self.length))
            columns.append(rng(self.seed, "window", epoch, lane, window).permutation(ids))
        return np.stack(columns, axis=1)

    def needs(self, position: int) -> Iterator[tuple[int, int, int]]:
        """(first, end, shard), without end: the local lanes read the shard at positions in [first, end).

        Ordered by `first`, from those on that are read at `position`. First and end are those of windows: inside one,
        any image may come first. A shard comes up again for each lane that reads a part of it, and in each epoch.
        """
        for epoch in itertools.count(position // self.lanes // self.length):
            shards, stops, _ = self._epoch(epoch)
            parts = []
            for lane in self.local_lanes:
                start = lane * self.length
                stop = start + self.length
                first, last = np.searchsorted(stops, [start, stop - 1], side="right")
                ends = np.minimum(stops[first : last + 1], stop) - start
                begins = np.concatenate([[0], ends[:-1]])
                first_slots = begins // WINDOW * WINDOW
                end_slots = np.minimum(-(-ends // WINDOW) * WINDOW, self.length)
                parts.append(np.stack([first_slots, end_slots, shards[first : last + 1]])[:, begins < ends])
            table = np.concatenate(parts, axis=1)
            table[:2] = (table[:2] + epoch * self.length) * self.lanes
            table = table[:, table[1] > position]
            yield from zip(*table[:, np.argsort(table[0], kind="stable")].tolist(), strict=True)

    def _shard_sequence(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The epoch's sequence as runs of consecutive ids: the shard of each, its end, and id less position in it."""
        generator = rng(self.seed, "shards", epoch)
        shards = generator.permutation(len(self.counts))
        ends = np.cumsum(self.counts[shards])
        offset = int(generator.integers(self.total))
        cut = int(np.searchsorted(ends, offset, side="right"))  # the rotation begins and ends in this shard
        shards = np.concatenate([shards[cut:], shards[: cut + 1]])
        stops = np.concatenate([ends[cut:], ends[: cut + 1] + self.total]) - offset
        shifts = self.starts[shards + 1] - stops
        stops[-1] = self.total
        return shards, stops, shifts

    def _slice(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Sample ids at [start, stop) of the epoch's sequence."""
        _, stops, shifts = self._epoch(epoch)
        first, last = np.searchsorted(stops, [start, stop - 1], side="right")
        lengths = np.diff(np.minimum(stops[first : last + 1], stop), prepend=start)
        return np.arange(start, stop) + np.repeat(shifts[first : last + 1], lengths)


def rank_rows(batch: int, lanes: int, rank: int, world: int) -> np.ndarray:
    """The rows of a global minibatch that process `rank` of `world` reads, in the order of its `Lanes.ids`.

    int64 [batch / world]. Raises UsageError if `world` does not divide `lanes`.
    """
    if lanes % world:
        divisors = [n for n in range(1, lanes + 1) if lanes % n == 0]
        below = max(n for n in divisors if n < world)
        above = min((n for n in divisors if n > world), default=None)
        nearest = f"{below} or {above}" if above else str(below)
        raise UsageError(f"{world} processes do not divide the {lanes} lanes of data.lanes; {nearest} would")
    local = lanes // world
    return (np.arange(0, batch, lanes)[:, None] + np.arange(rank * local, (rank + 1) * local)).ravel()
