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

import numpy as np

from distgan import UsageError
from distgan.rng import rng

WINDOW = 1024  # samples of a lane that are permuted together


class Lanes:
    """The lanes [first, last) of `lanes` over shards with `counts` samples each. Sample ids count along the shards.

    Raises UsageError if the dataset has fewer images than lanes.
    """

    def __init__(self, counts: np.ndarray, seed: int, lanes: int, first: int = 0, last: int | None = None) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.seed, self.lanes = seed, lanes
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
        self._epoch = functools.lru_cache(1)(self._permuted_shards)

    def ids(self, position: int, count: int) -> np.ndarray:
        """Sample ids of the local lanes among the global positions [position, position + count), in their order.

        `position` and `count` are multiples of `lanes`. int64 [count / lanes * local lanes].
        """
        slot, slots = position // self.lanes, count // self.lanes
        parts = []
        while slots:
            epoch, inner = divmod(slot, self.length)
            window, offset = divmod(inner, WINDOW)
            take = min(slots, WINDOW - offset, self.length - inner)
            parts.append(self._window(epoch, window)[offset : offset + take].ravel())
            slot, slots = slot + take, slots - take
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _permuted_window(self, epoch: int, window: int) -> np.ndarray:
        """Sample ids [slot in the window, local lane]."""
        columns = []
        for lane in self.local_lanes:
            start = lane * self.length + window * WINDOW
            ids = self._slice(epoch, start, min(start + WINDOW, (lane + 1) * self.length))
            columns.append(rng(self.seed, "window", epoch, lane, window).permutation(ids))
        return np.stack(columns, axis=1)

    def _permuted_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The shards in the epoch's order, the end of each in the unrotated sequence, and the rotation's offset."""
        generator = rng(self.seed, "shards", epoch)
        shards = generator.permutation(len(self.counts))
        return shards, np.cumsum(self.counts[shards]), int(generator.integers(self.total))

    def _slice(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Sample ids at [start, stop) of the epoch's sequence."""
        offset, length = self._epoch(epoch)[2], stop - start
        start = (start + offset) % self.total
        head = self._unrotated(epoch, start, min(start + length, self.total))
        wrapped = start + length - self.total
        return head if wrapped <= 0 else np.concatenate([head, self._unrotated(epoch, 0, wrapped)])

    def _unrotated(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Sample ids at [start, stop) of the epoch's sequence before its rotation."""
        shards, ends, _ = self._epoch(epoch)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        ends, shards = ends[first : last + 1], shards[first : last + 1]
        lengths = np.diff(np.minimum(ends, stop), prepend=start)
        return np.arange(start, stop) + np.repeat(self.starts[shards + 1] - ends, lengths)


def rank_rows(batch: int, lanes: int, rank: int, world: int) -> np.ndarray:
    """The rows of a global minibatch that process `rank` of `world` reads, in the order of its `Lanes.ids`.

    int64 [batch / world]. Raises UsageError if `world` does not divide `lanes`.
    """
    if lanes % world:
        divisors = [n for n in range(1, lanes + 1) if lanes % n == 0]
        below, above = max(n for n in divisors if n < world), min((n for n in divisors if n > world), default=None)
        nearest = f"{below} or {above}" if above else str(below)
        raise UsageError(f"{world} processes do not divide the {lanes} lanes of data.lanes; {nearest} would")
    local = lanes // world
    return (np.arange(0, batch, lanes)[:, None] + np.arange(rank * local, (rank + 1) * local)).ravel()
