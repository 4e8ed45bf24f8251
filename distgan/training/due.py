"""When things are due: progress in images seen, and what a run does before its next iteration."""

import math
from dataclasses import dataclass
from enum import IntEnum

from distgan.config.keys import Config
from distgan.errors import RunError


class Flag(IntEnum):
    """What a process asks of all of them; the largest over ranks counts."""

    GO_ON = 0
    STOP = 1
    COLLAPSED = 2
    NON_FINITE = 3


REQUESTED_ELSEWHERE = "requested on another rank"
ROUNDING = 1e-9
"""Added before truncation: 1792 / (0.1 * 1792) comes out slightly below 10 in floating point."""


class CollapseError(RunError):
    """An alarm ended the run."""

    on_all_ranks = True


@dataclass(frozen=True)
class Actions:
    """What is due before the next iteration; the same on every process."""

    log: bool
    sample: bool
    snapshot: bool
    """Of the averages of G by power functions."""
    save: bool
    evaluate: bool
    done: bool
    """Whether the run ends here, at its length or at a stop."""


@dataclass(frozen=True)
class Clock:
    """Converts images seen, the clock of a run, to epochs and iterations, and knows the length of the run."""

    iteration_images: int
    """Images that D sees in one iteration."""
    epoch_images: int
    """Images in one pass through the dataset."""
    total_images: int
    """Length of the run."""

    @classmethod
    def of(cls, config: Config, epoch_images: int) -> "Clock":
        """The clock of a configuration on a dataset with `epoch_images` images per epoch."""
        total_images = config.images if config.images is not None else (config.epochs or 0) * epoch_images
        return cls(config.iteration_images, epoch_images, total_images)

    def iterations_left(self, images_seen: int) -> int:
        return math.ceil((self.total_images - images_seen) / self.iteration_images)

    def crossed(self, every_epochs: float, images_seen: int) -> bool:
        """Whether the last iteration crossed a multiple of `every_epochs`."""
        every_images = every_epochs * self.epoch_images
        before = images_seen - self.iteration_images
        return int(images_seen / every_images + ROUNDING) > int(before / every_images + ROUNDING)

    @property
    def epochs(self) -> int:
        """Length of the run in epochs, rounded up."""
        return math.ceil(self.total_images / self.epoch_images)

    def epoch(self, images_seen: int, batch: int) -> int:
        """The epoch, from 1, of the first image of the minibatch of `batch` images that ended at `images_seen`."""
        return (images_seen - batch) // self.epoch_images + 1
