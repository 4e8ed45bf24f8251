"""How many images are generated for a bin, and which real ones they are compared with."""

import math
from dataclasses import dataclass

import numpy as np

from distgan.evaluation.bins import Bin
from distgan.evaluation.reference import Population
from distgan.evaluation.split import Split

LEAST_IMAGES = 20
"""Generated or real ones, that metrics need."""


@dataclass(frozen=True)
class Shares:
    """The images of an evaluation, and the share of each bin."""

    total: int
    """Real images of the dataset."""
    samples: int
    """Generated images."""
    reference_images: int | None
    """Real images to compare with; None: all."""

    def whole(self) -> Population:
        """All of the real images, and how they are split."""
        return Population(np.arange(self.total), Split.of(self.total, self.samples, self.reference_images))

    def samples_of(self, part: Bin) -> int:
        """How many of the generated images are for a bin."""
        return round(self.samples * len(part.ids) / self.total)

    def population(self, part: Bin, samples: int) -> Population:
        """The real images that `samples` generated ones of a bin are compared with.

        A distance depends on the number of images: the floor is that of the bin's share of them, doubled or halved
        until it is as near to `samples` as that comes, so that few different statistics are cached.
        """
        images = len(part.ids)
        share = max(self.samples_of(part), 1)
        stand_ins = round(share * 2.0 ** round(math.log2(max(samples, 1) / share)))
        wanted = self.reference_images
        limit = None if wanted is None else max(round(wanted * images / self.total), 1)
        return Population(part.ids, Split.of(images, max(stand_ins, 1), limit), part.definition)


def enough(samples: int, real: Population) -> bool:
    """Whether there are images enough for metrics, generated and real."""
    return min(samples, real.split.others + real.split.shared) >= LEAST_IMAGES
