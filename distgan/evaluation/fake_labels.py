"""What generated images are made of: latents, and labels at the frequencies of the dataset or as many of each class."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distgan.data.shardset import ShardSet
from distgan.errors import UsageError
from distgan.evaluation.bins import Bin
from distgan.evaluation.card import AS_IN_THE_DATASET, BALANCED
from distgan.rng import normal_rows, philox, uniform_rows
from distgan.samples import SampleSpec


class ByClass(NamedTuple):
    """Images of a dataset, or of a bin of it, class by class."""

    ids: np.ndarray
    """int64 [images]"""
    starts: np.ndarray
    """Of each class that they have, in `ids`; int64 [classes]."""
    sizes: np.ndarray
    """Images of each class, int64 [classes]."""


class FakeLabels:
    """Labels of real images, a function of the seed and of the generated image's number.

    Balanced: the classes take turns, so that their numbers of generated images differ by one at most, and an image of
    the class is drawn, whose conditions go with it. Else any image is drawn.
    """

    def __init__(self, dataset: ShardSet, seed: int, balanced: bool) -> None:
        self.dataset = dataset
        self.seed = seed
        self.balanced = balanced
        self.sorted: dict[int | None, ByClass] = {}
        """By the place of a bin; None: of the dataset."""

    def describe(self, spec: SampleSpec | None) -> str | None:
        """What a card says of them: None for a G, of samples `spec`, that takes none.

        Raises UsageError for balanced classes of a G that takes no class.
        """
        if self.balanced and not (spec and spec.num_classes):
            raise UsageError("balanced: the generator takes no classes; leave it out")
        if spec is None or not spec.conditional:
            return None
        return BALANCED if self.balanced else AS_IN_THE_DATASET

    def draw(self, first: int, count: int, spec: SampleSpec, within: Bin | None = None) -> np.ndarray:
        """The labels of `count` images from number `first` on, as networks for `spec` take them.

        Those of images of the dataset, or of a bin of it.
        """
        place = () if within is None else (within.place,)
        uniform = uniform_rows(philox(self.seed, "evaluate-labels", *place), first, count, 1)[:, 0]
        if self.balanced:
            images = self.by_class(within)
            turn = np.arange(first, first + count) % len(images.sizes)
            drawn = images.ids[images.starts[turn] + (uniform * images.sizes[turn]).astype(np.int64)]
            return self.dataset.labels(drawn, spec)
        if within is None:
            return self.dataset.draw_labels(uniform, spec)
        return self.dataset.labels(within.ids[(uniform * len(within.ids)).astype(np.int64)], spec)

    def by_class(self, within: Bin | None) -> ByClass:
        """The images of the dataset, or of a bin of it; sorted once."""
        place = None if within is None else within.place
        if place not in self.sorted:
            labels = self.dataset.columns["label"]
            ids = np.arange(len(labels)) if within is None else within.ids
            ids = ids[np.argsort(labels[ids], kind="stable")]
            _, starts, sizes = np.unique(labels[ids], return_index=True, return_counts=True)
            self.sorted[place] = ByClass(ids, starts, sizes)
        return self.sorted[place]


def draw_inputs(
    labels: FakeLabels,
    first: int,
    count: int,
    z_dim: int,
    spec: SampleSpec | None,
    device: torch.device,
    within: Bin | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Latents [count, z_dim] and labels of the images from number `first` on, on the device.

    Both are functions of the seed of `labels` and of an image's number. Labels are those of images of the dataset, or
    of a bin of it; None for a G, of samples `spec`, that takes none.
    """
    place = () if within is None else (within.place,)
    z = torch.from_numpy(normal_rows(philox(labels.seed, "evaluate", *place), first, count, z_dim)).to(device)
    if spec is None or not spec.conditional:
        return z, None
    return z, torch.from_numpy(labels.draw(first, count, spec, within)).to(device)
