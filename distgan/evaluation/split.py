"""What the real images are used for: a reference of generated ones, and stand-ins for these, drawn at random."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distgan.distributed.processes import Distributed
from distgan.evaluation.card import ImageSum
from distgan.evaluation.inputs import image_sums
from distgan.evaluation.statistics import Accumulator, Statistics
from distgan.rng import rng


@dataclass(frozen=True)
class Split:
    """How many images of the dataset, drawn at random, are used for what."""

    stand_ins: int
    """In the place of generated ones, for the real-vs-real values."""
    others: int
    """Without the stand-ins, which are compared with these."""
    shared: int
    """Stand-ins that are in the reference of generated images too, because the others are too few."""

    @classmethod
    def of(cls, total: int, samples: int, limit: int | None) -> "Split":
        """For a dataset of `total` images.

        `samples` stand-ins, at most half of the dataset, and a reference of `limit` images, or of all.
        """
        stand_ins = min(samples, total // 2)
        images = min(limit or total, total)
        others = min(images, total - stand_ins)
        return cls(stand_ins, others, images - others)


class Sets(NamedTuple):
    """Statistics of the images of a split."""

    stand_ins: Statistics
    others: Statistics
    shared: Statistics
    image_sum: ImageSum | None
    """Of the others and the shared images, if asked for."""


class SplitAccumulator:
    """Adds up the statistics of this process's images in the three sets of a split.

    Args:
        ids: The images to draw from, ascending.
        total: Images of the dataset.
        image_sums: Whether to add up the sums of images too.
    """

    def __init__(self, ids: np.ndarray, total: int, split: Split, num_features: int, *, image_sums: bool) -> None:
        self.split = split
        drawn = ids[rng(0, "reference").permutation(len(ids))[: split.stand_ins + split.others]]
        self.position = np.full(total, -1)
        """Of each image of the dataset in the order they were drawn: stand-ins come first, the shared ones leading."""
        self.position[drawn] = np.arange(len(drawn))
        self.ids = np.sort(drawn)
        """The images to read, in the order of the shards."""
        self.stand_ins = Accumulator(num_features)
        self.others = Accumulator(num_features)
        self.shared = self.stand_ins if split.shared == split.stand_ins else Accumulator(num_features)
        self.sums = Accumulator(1) if image_sums else None

    def add(self, ids: np.ndarray, stored: Tensor, features: Tensor, logits: Tensor | None) -> None:
        """Pixels [N, H, W, C], features [N, d] and logits [N, units, classes] of the images `ids` [N]."""
        positions = torch.from_numpy(self.position[ids])
        is_stand_in = positions < self.split.stand_ins
        kept_logits = logits[is_stand_in] if logits is not None else None
        self.stand_ins.add(positions[is_stand_in], features[is_stand_in], kept_logits)
        self.others.add(positions[~is_stand_in] - self.split.stand_ins, features[~is_stand_in], None)
        if self.shared is not self.stand_ins:
            is_shared = positions < self.split.shared
            self.shared.add(positions[is_shared], features[is_shared], None)
        if self.sums is not None:
            in_reference = ~is_stand_in | (positions < self.split.shared)
            self.sums.add(positions[in_reference], image_sums(stored)[in_reference, None], None)

    def reduce(self, processes: Distributed) -> Sets:
        """The statistics of all processes' images; called by all."""
        stand_ins = self.stand_ins.reduce(processes)
        others = self.others.reduce(processes)
        shared = stand_ins if self.shared is self.stand_ins else self.shared.reduce(processes)
        return Sets(stand_ins, others, shared, self.sums.reduce(processes).image_sum if self.sums else None)
