"""A set of generated images, made by any program, in the place of those of a generator."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distgan.data.shardset import ShardSet
from distgan.errors import UsageError
from distgan.evaluation.extractor import Extractor
from distgan.evaluation.stored import StoredImages, Work
from distgan.rng import rng
from distgan.samples import SampleSpec


@dataclass(frozen=True)
class ImageSet:
    """Images of a dataset that are compared with those of another one, drawn at random and numbered as drawn."""

    stored: StoredImages
    """Those that are taken."""
    address: str
    numbers: np.ndarray
    """Of each image of the dataset, in the order they were drawn; -1: not taken; int64 [images of the dataset]."""

    @classmethod
    def draw(cls, stored: StoredImages, address: str, samples: int, seed: int) -> "ImageSet":
        """`samples` of the images of `stored`, at random. Raises UsageError if there are fewer."""
        total = stored.count
        if samples > total:
            raise UsageError(f"samples: {address} has {total:,} images; give at most so many, or leave it out for all")
        drawn = stored.ids[rng(seed, "generated").permutation(total)[:samples]]
        numbers = np.full(len(stored.dataset.columns["label"]), -1)
        numbers[drawn] = np.arange(samples)
        return cls(replace(stored, ids=np.sort(drawn)), address, numbers)

    @property
    def dataset(self) -> ShardSet:
        return self.stored.dataset

    @property
    def spec(self) -> SampleSpec:
        return self.dataset.spec

    @property
    def count(self) -> int:
        return self.stored.count

    def each_chunk(self, work: Work, stop: Callable[[], bool]) -> int:
        """See Images. Raises CorruptDataError and Stopped."""
        return self.stored.each_chunk(lambda ids, pixels: work(self.numbers[ids], pixels), stop)

    def has_classes_of(self, real: ShardSet) -> bool:
        """Whether it has labels, all of them names of the classes of the real images; some may have no image."""
        names = {each.name for each in self.dataset.classes}
        return bool(names) and names <= {each.name for each in real.classes}

    @cached_property
    def ids(self) -> np.ndarray:
        """Of the image with each number, int64 [count]."""
        return self.stored.ids[np.argsort(self.numbers[self.stored.ids])]

    def class_of(self, real: ShardSet) -> Callable[[np.ndarray, Tensor | None], Tensor]:
        """The ClassOf that maps the labels of the images, by their names, to the numbers of the real ones' classes."""
        places = {each.name: number for number, each in enumerate(real.classes)}
        known = np.array([places[each.name] for each in self.dataset.classes], np.int64)
        classes = known[self.dataset.columns["label"][self.ids]]
        return lambda numbers, logits: torch.from_numpy(classes[numbers])

    def describe(self) -> dict[str, Any]:
        """What a card says of them."""
        return {
            "address": self.address,
            "sha256": self.dataset.digest,
            "count": self.count,
            "spec": str(self.spec.unconditional()),
        }


def check_comparable(extractor: Extractor, images: ImageSet, real: SampleSpec) -> None:
    """Raises UsageError for images that the extractor cannot compare with real ones of the spec `real`."""
    spec = images.spec.unconditional()
    if extractor.any_size:
        if not spec.is_8bit:
            raise UsageError(f"generated: {images.address} has images {spec}; {extractor.name} takes 8-bit grey or RGB")
    elif not spec.same_images(real):
        channels = f" --channels {real.channels}" if spec.channels != real.channels else ""
        note = " (picture files are read as RGB)" if (spec.channels, real.channels) == (3, 1) else ""
        fix = f"`distgan shards make {images.address} DEST --size {real.height}x{real.width}{channels}`"
        fix = (
            f"make them alike with {fix} and give DEST" if spec.is_8bit and real.is_8bit else "give images of that kind"
        )
        raise UsageError(
            f"generated: {images.address} has images {spec}{note}, the dataset has {real.unconditional()}, and "
            f"{extractor.name} compares images of one size and kind; {fix}"
        )
