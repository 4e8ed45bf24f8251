"""Progress of a pass over images: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

EVERY_SECONDS = 10.0


class ProgressBar:
    """Counts up to `total` images; `update` is called with those done so far. Silent on all but the main process.

    Without `log` a bar, if standard error is a terminal; else lines through `log`, or to standard output.
    """

    def __init__(self, what: str, total: int, *, main: bool = True, log: Callable[[str], None] | None = None) -> None:
        self.what = what
        self.total = total
        self.main = main
        self.log = log or (lambda line: print(line, flush=True))
        on_terminal = main and log is None and sys.stderr.isatty()
        self.bar = tqdm(total=total, desc=what, unit=" images", unit_scale=True) if on_terminal else None
        self.start = time.monotonic()
        self.last = self.start

    def update(self, done: int) -> None:
        done = min(done, self.total)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if not self.main or not done or now - self.last < EVERY_SECONDS:
            return
        self.last = now
        rate = done / (now - self.start)
        minutes, seconds = divmod(round((self.total - done) / rate), 60)
        rest = f"{rate:,.0f} images/s, ETA {minutes}:{seconds:02d}"
        self.log(f"{self.what}: {done:,} of {self.total:,} images, {rest}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
