"""The order of the images: a pure function of (seed, images seen), the same for every number of processes.

Epoch e permutes the shards, lays them end to end, turns that line by a random offset and cuts it into L equal lanes;
inside a lane, windows of samples are permuted. Global position p (images seen) is lane p mod L. Process r of W serves
lanes [r L/W, (r+1) L/W): an epoch is an exact permutation less at most L-1 samples (others each epoch), a global
minibatch is the same set for every W that divides L, one node reads about 1/nodes of the shards, and any position is
found at once.
"""

import numpy as np

from distgan import UsageError
from distgan.rng import rng

WINDOW = 1024  # samples of a lane that are permuted together


class Lanes:
    """The lanes [first, last) of L over shards with `counts` samples each. Sample ids count along the shards."""

    def __init__(self, counts: np.ndarray, seed: int, lanes: int, first: int = 0, last: int | None = None) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.counts)])
        self.seed, self.lanes = seed, lanes
        self.mine = range(first, lanes if last is None else last)
        self.total = int(self.starts[-1])
        self.length = self.total // lanes
        """Samples of a lane in an epoch."""
        self.epoch_images = self.length * lanes
        """Images of an epoch."""
        if not self.length:
            raise UsageError(f"data.lanes: {lanes} lanes need at least {lanes} images; the set has {self.total}")
        self._table: tuple[tuple[int, int], np.ndarray] | None = None
        self._line: tuple[int, np.ndarray, np.ndarray, int] | None = None

    def ids(self, position: int, count: int) -> np.ndarray:
        """Sample ids of these lanes among the global positions [position, position + count), in their order.

        `position` and `count` are multiples of the number of lanes; returns [count / lanes * own lanes].
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

    def _window(self, epoch: int, window: int) -> np.ndarray:
        """Sample ids [slot in the window, own lane]."""
        if self._table is None or self._table[0] != (epoch, window):
            first = window * WINDOW
            columns = []
            for lane in self.mine:
                start = lane * self.length + first
                ids = self._span(epoch, start, min(start + WINDOW, (lane + 1) * self.length))
                columns.append(rng(self.seed, "window", epoch, lane, window).permutation(ids))
            self._table = (epoch, window), np.stack(columns, axis=1)
        return self._table[1]

    def _span(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Sample ids at places [start, stop) of the epoch's line of permuted shards."""
        if self._line is None or self._line[0] != epoch:
            order = rng(self.seed, "shards", epoch)
            shards = order.permutation(len(self.counts))
            ends = np.cumsum(self.counts[shards])
            self._line = epoch, shards, ends, int(order.integers(self.total))
        turn = self._line[3]
        start, length = (start + turn) % self.total, stop - start
        whole = self._straight(start, min(start + length, self.total))
        over = start + length - self.total
        return whole if over <= 0 else np.concatenate([whole, self._straight(0, over)])

    def _straight(self, start: int, stop: int) -> np.ndarray:
        """Sample ids at places [start, stop) of the line before it was turned."""
        assert self._line is not None
        _, shards, ends, _ = self._line
        first, last = np.searchsorted(ends, [start, stop - 1], side="right")
        ends, shards = ends[first : last + 1], shards[first : last + 1]
        lengths = np.diff(np.minimum(ends, stop), prepend=start)
        return np.arange(start, stop) + np.repeat(self.starts[shards + 1] - ends, lengths)


def rows(batch: int, lanes: int, rank: int, world: int) -> np.ndarray:
    """The rows of a global minibatch that process `rank` of `world` serves, in its own order."""
    if lanes % world:
        fits = [n for n in range(1, lanes + 1) if lanes % n == 0]
        below, above = max(n for n in fits if n < world), min((n for n in fits if n > world), default=None)
        near = f"{below} or {above}" if above else str(below)
        raise UsageError(f"{world} processes do not divide the {lanes} lanes of data.lanes; {near} would")
    return np.arange(batch).reshape(-1, world, lanes // world)[:, rank].ravel()
