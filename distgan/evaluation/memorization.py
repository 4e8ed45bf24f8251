"""Whether a generator has memorized its training set: its images and held-out ones against the training images."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.errors import UsageError
from distgan.evaluation.copying import Copying, compare_distances
from distgan.evaluation.generated import GeneratorImages, Inputs
from distgan.evaluation.nearest import Nearest, NearestSearch, Queries, features_of, hash_images
from distgan.evaluation.originals import RealImageSet
from distgan.evaluation.stored import Images, StoredImages
from distgan.images import grid
from distgan.pixels import normalize, to_picture
from distgan.rng import rng

HELD_OUT = 1000
"""Held-out images, or as many as the generated ones if those are more, or all that there are."""
LEAST_IMAGES = 20
"""Of a distribution of distances, generated and held out."""
SHEET_ROWS = 16
OTHERS = "training images against the others"


class Memorization(NamedTuple):
    """M generated images, closest to the training set first, and what they say; the same on all processes."""

    numbers: np.ndarray
    """Of the generated images, int64 [M]; of images of a dataset, their sample ids."""
    nearest: Nearest
    copying: Copying
    held_out: dict[str, Any]
    """What a card says of the held-out images."""
    sheet: Tensor
    """float32 [rows (1 + K), C, H, W] in [-1, 1]: each generated image and its nearest training images."""


class Measured(NamedTuple):
    """The images of a chunk."""

    numbers: np.ndarray
    """int64 [N]"""
    features: Tensor
    """float32 [N, d], on the CPU."""
    stored: np.ndarray
    """Pixels [N, H, W, C]."""


class Features(NamedTuple):
    """Of the images of all processes, in the order of their numbers."""

    numbers: np.ndarray
    """int64 [N]"""
    features: Tensor
    """float32 [N, d], on the CPU."""


class MemorizationTest:
    """Compares generated images with the training images of `search`. Called on all processes.

    Args:
        held_out: Images that G was not trained on. Default: training images, each against the others that are not equal
            to it.
        seed: Of the choice of held-out images.
        rows: Generated images on the sheet, the closest ones.

    Raises UsageError, which names `held_out`, for too few of them or images of another kind.
    """

    def __init__(
        self, search: NearestSearch, held_out: RealImageSet | None, *, seed: int = 0, rows: int = SHEET_ROWS
    ) -> None:
        self.search = search
        self.processes = search.processes
        self.held_out = held_out
        self.seed = seed
        self.rows = rows
        self.held_out_distances = np.empty(0)
        """Of the held-out images, after a first test; of a training image without another one inf."""
        check_held_out(search.dataset, held_out)

    def of_generator(self, G: nn.Module, inputs: Inputs, samples: int, stop: Callable[[], bool]) -> Memorization:
        """Of `samples` images that G makes, in evaluation mode. Raises CorruptDataError and Stopped."""
        spec = self.search.dataset.spec
        images = GeneratorImages(self.processes, G, inputs, samples, spec, self.search.log)
        return self.compare(self.measure(images, stop), stop)

    def of_dataset(self, dataset: ShardSet, samples: int, stop: Callable[[], bool]) -> Memorization:
        """Of `samples` images of a dataset, or all if it has fewer. Raises CorruptDataError and Stopped."""
        return self.compare(self.read(dataset, samples, "generated images", stop), stop)

    def compare(self, own: Sequence[Measured], stop: Callable[[], bool]) -> Memorization:
        """The test of the images of all processes, of which this one measured `own`."""
        generated = self.gather(own)
        count = len(generated.numbers)
        queries = Queries(generated.features, np.empty((0, 2), np.uint64))
        first = not len(self.held_out_distances)
        if first:
            queries = queries.before(self.held_out_queries(count, stop))
        nearest = self.search.nearest(queries, stop)
        if first:
            self.held_out_distances = nearest.distances[count:, 0]
        order = np.argsort(nearest.distances[:count, 0], kind="stable")
        closest = Nearest(*(each[:count][order] for each in nearest))
        numbers = generated.numbers[order]
        held_out = self.held_out_distances[np.isfinite(self.held_out_distances)]
        if len(held_out) < LEAST_IMAGES:
            raise UsageError(
                f"held_out: {len(held_out)} training images have others that are not equal to them, the test needs "
                f"{LEAST_IMAGES}; give held-out images"
            )
        about = self.describe_held_out(len(held_out))
        copying = compare_distances(closest.distances[:, 0], held_out)
        return Memorization(numbers, closest, copying, about, self.sheet(own, numbers[: self.rows], closest))

    def held_out_queries(self, generated: int, stop: Callable[[], bool]) -> Queries:
        """Of held-out images, drawn at random: as many as `generated`, or HELD_OUT if that is more, or all."""
        dataset = self.search.dataset if self.held_out is None else self.held_out.dataset
        parts = self.read(dataset, max(generated, HELD_OUT), "held-out images", stop)
        measured = self.gather(parts)
        if self.held_out is not None:
            return Queries(measured.features, np.empty((0, 2), np.uint64))
        stored = [part.stored for part in parts]
        mirrored = [each[:, :, ::-1] if self.search.flip else each for each in stored]
        hashes = [np.stack([hash_images(a), hash_images(b)], 1) for a, b in zip(stored, mirrored, strict=True)]
        gathered = self.processes.all_gather_object([(p.numbers, h) for p, h in zip(parts, hashes, strict=True)])
        numbers, own = (np.concatenate(each) for each in zip(*sum(gathered, []), strict=True))
        return Queries(measured.features, own[np.argsort(numbers)])

    def read(self, dataset: ShardSet, count: int, title: str, stop: Callable[[], bool]) -> list[Measured]:
        """This process's chunks of `count` images of a dataset, drawn at random; of all, if it has fewer."""
        total = len(dataset.columns["label"])
        ids = np.sort(rng(self.seed, title).choice(total, min(count, total), replace=False))
        images = StoredImages(self.processes, dataset, ids, self.search.skip_bad, title, self.search.log)
        return self.measure(images, stop)

    def measure(self, images: Images, stop: Callable[[], bool]) -> list[Measured]:
        """This process's chunks of images. Raises CorruptDataError and Stopped."""
        parts: list[Measured] = []

        def work(numbers: np.ndarray, stored: Tensor) -> None:
            features = features_of(self.search.extractor, stored, images.spec).cpu()
            parts.append(Measured(numbers, features, stored.cpu().numpy()))

        images.each_chunk(work, stop)
        return parts

    def gather(self, own: Sequence[Measured]) -> Features:
        """The features of all processes, in the order of their numbers."""
        gathered = self.processes.all_gather_object([(part.numbers, part.features.numpy()) for part in own])
        numbers, features = (np.concatenate(each) for each in zip(*sum(gathered, []), strict=True))
        order = np.argsort(numbers)
        return Features(numbers[order], torch.from_numpy(features[order]))

    def describe_held_out(self, images: int) -> dict[str, Any]:
        """What a card says of the held-out images, of which there are so many."""
        if self.held_out is None:
            return {"held_out": OTHERS, "images": images}
        return {"held_out": self.held_out.address, "manifest": self.held_out.dataset.digest, "images": images}

    def sheet(self, own: Sequence[Measured], numbers: np.ndarray, nearest: Nearest) -> Tensor:
        """Of the generated images `numbers`, the first rows of `nearest`: see `Memorization.sheet`."""
        wanted = set(numbers.tolist())
        found = {
            number: image
            for part in own
            for number, image in zip(part.numbers.tolist(), part.stored, strict=True)
            if number in wanted
        }
        generated: dict[int, np.ndarray] = {}
        for each in self.processes.all_gather_object(found):
            generated |= each
        dataset = self.search.dataset

        def read_rows() -> Tensor:
            reader = Reader(dataset, skip_bad=self.search.skip_bad)
            rows = []
            for row, number in enumerate(numbers.tolist()):
                images = reader.read(nearest.ids[row]).images
                turned = nearest.mirrored[row][:, None, None, None]
                rows.append(np.concatenate([generated[number][None], np.where(turned, images[:, :, ::-1], images)]))
            return normalize(torch.from_numpy(np.concatenate(rows)), dataset.spec)

        return self.processes.run_on_main(read_rows)


def check_held_out(dataset: ShardSet, held_out: RealImageSet | None) -> None:
    """Raises UsageError, which names `held_out`, unless there are held-out images like those of `dataset`."""
    if held_out is not None and not dataset.spec.same_images(held_out.dataset.spec):
        raise UsageError(
            f"held_out: {held_out.address} has images {held_out.dataset.spec}, the training set has {dataset.spec}"
        )
    images = len((dataset if held_out is None else held_out.dataset).columns["label"])
    if images < LEAST_IMAGES:
        what = "held-out images" if held_out is not None else "training images, without held-out ones,"
        raise UsageError(f"held_out: {images} {what} are too few to compare with; the test needs {LEAST_IMAGES}")


def sheet_picture(found: Memorization, show: Sequence[int]) -> np.ndarray:
    """The sheet as uint8 [H, W, 3], with the channels `show` of the images: a row for each generated image."""
    return grid(to_picture(found.sheet.numpy(), show), columns=1 + found.nearest.ids.shape[1])
