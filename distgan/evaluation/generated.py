"""Generated images, of a generator or of a set, and their statistics: of all of them, and of each class."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distgan.distributed.processes import Distributed
from distgan.evaluation.card import ImageSum
from distgan.evaluation.chunks import run_chunks
from distgan.evaluation.extractor import Extractor
from distgan.evaluation.features import extract
from distgan.evaluation.inputs import chunk_size, from_stored, image_sums, round_to_stored
from distgan.evaluation.progress import ProgressBar
from distgan.evaluation.scores import predicted_classes
from distgan.evaluation.statistics import Accumulator, Statistics
from distgan.evaluation.stored import Images, Work
from distgan.gan.outputs import images_of
from distgan.samples import SampleSpec

Inputs = Callable[[int, int], tuple[Tensor, Tensor | None]]
"""(number of the first image of a chunk, how many there are) -> latents and labels."""
ClassOf = Callable[[np.ndarray, Tensor | None], Tensor]
"""(numbers [N], logits [N, units, classes] or None) -> the class of each image, int64 [N]; -1: none."""


def classifier_classes(numbers: np.ndarray, logits: Tensor | None) -> Tensor:
    """The ClassOf of an extractor that classifies the dataset's classes."""
    assert logits is not None, "it gives labels"
    return predicted_classes(logits)


@dataclass(frozen=True)
class GeneratorImages:
    """The images that G makes of numbered latents; it is in evaluation mode meanwhile."""

    processes: Distributed
    G: nn.Module
    inputs: Inputs
    count: int
    spec: SampleSpec
    """Of the stored images that generated ones are rounded to."""
    log: Callable[[str], None] | None

    @torch.no_grad()
    def each_chunk(self, work: Work, stop: Callable[[], bool]) -> int:
        """See Images. Raises Stopped."""
        progress = ProgressBar("generated images", self.count, main=self.processes.is_main_process, log=self.log)
        size = chunk_size(self.spec)

        def make(chunk: int) -> None:
            first = chunk * size
            count = min(size, self.count - first)
            images = images_of(self.G(*self.inputs(first, count)))
            work(np.arange(first, first + count), round_to_stored(images, self.spec))
            progress.update(first + size)

        training = self.G.training
        self.G.eval()
        try:
            run_chunks(self.processes, -(-self.count // size), make, stop)
        finally:
            self.G.train(training)
        progress.close()
        return 0


class Generated(NamedTuple):
    """Of the images of all processes."""

    statistics: Statistics
    image_sum: ImageSum | None
    """With an extractor that sums images."""


class Kept(NamedTuple):
    """What is known of the images of a chunk of this process."""

    numbers: Tensor
    """int64 [N], on the CPU, as all of it."""
    features: Tensor
    """float32 [N, d]"""
    logits: Tensor | None
    """float32 [N, units, classes], where a metric needs them."""
    sums: Tensor | None
    """float64 [N], with an extractor that sums images."""
    classes: Tensor
    """int64 [N]; -1: none."""


class Sums:
    """Adds up what the statistics of images are made of."""

    def __init__(self, extractor: Extractor) -> None:
        self.features = Accumulator(extractor.num_features)
        self.images = Accumulator(1) if extractor.sums_images else None

    def add(self, numbers: Tensor, features: Tensor, logits: Tensor | None, sums: Tensor | None) -> None:
        """See Accumulator; the sums of images are float64 [N]."""
        self.features.add(numbers, features, logits)
        if self.images is not None and sums is not None:
            self.images.add(numbers, sums[:, None], None)

    def reduce(self, processes: Distributed) -> Generated:
        """Of all processes' images; called by all."""
        image_sum = self.images.reduce(processes).image_sum if self.images is not None else None
        return Generated(self.features.reduce(processes), image_sum)


class ImagesByClass:
    """The features of generated images, kept to be added up class by class.

    Each process keeps those of its own images, 4 bytes for each feature, so that no image is made or read twice.
    Built and called on all processes.
    """

    def __init__(self, processes: Distributed, extractor: Extractor, kept: list[Kept], count: int) -> None:
        self.processes = processes
        self.extractor = extractor
        self.kept = kept
        self.classes = np.full(count, -1)
        """Of each image by its number, int64 [count]; the same on all processes."""
        for parts in processes.all_gather_object([(each.numbers.numpy(), each.classes.numpy()) for each in kept]):
            for numbers, classes in parts:
                self.classes[numbers] = classes

    def count(self, number: int) -> int:
        """How many images are of the class with this number."""
        return int((self.classes == number).sum())

    def of(self, number: int) -> Generated:
        """Of the images of a class, which are numbered anew in their order."""
        within = torch.from_numpy(np.cumsum(self.classes == number) - 1)
        sums = Sums(self.extractor)
        for each in self.kept:
            chosen = each.classes == number
            logits = each.logits[chosen] if each.logits is not None else None
            sums_of_images = each.sums[chosen] if each.sums is not None else None
            sums.add(within[each.numbers[chosen]], each.features[chosen], logits, sums_of_images)
        return sums.reduce(self.processes)


@dataclass(frozen=True)
class GeneratedStatistics:
    """Measures generated images; called on all processes."""

    processes: Distributed
    extractor: Extractor
    keep_logits: bool
    """Whether a metric needs them."""

    def of(self, images: Images, stop: Callable[[], bool]) -> Generated:
        """Of all images. Raises Stopped, and CorruptDataError."""
        sums = Sums(self.extractor)
        images.each_chunk(partial(self.add, images.spec, sums, None, None), stop)
        return sums.reduce(self.processes)

    def by_class(self, images: Images, class_of: ClassOf, stop: Callable[[], bool]) -> tuple[Generated, ImagesByClass]:
        """Of all images, and what the statistics of each class are made of. Raises Stopped, and CorruptDataError."""
        sums = Sums(self.extractor)
        kept: list[Kept] = []
        images.each_chunk(partial(self.add, images.spec, sums, kept, class_of), stop)
        return sums.reduce(self.processes), ImagesByClass(self.processes, self.extractor, kept, images.count)

    def add(
        self,
        spec: SampleSpec,
        sums: Sums,
        kept: list[Kept] | None,
        class_of: ClassOf | None,
        numbers: np.ndarray,
        stored: Tensor,
    ) -> None:
        """Add a chunk to the sums, and keep what its classes need, if they are asked for."""
        features, logits = extract(self.extractor, from_stored(stored, spec))
        sums_of_images = image_sums(stored) if self.extractor.sums_images else None
        wanted = logits if self.keep_logits else None
        places = torch.from_numpy(numbers)
        sums.add(places, features, wanted, sums_of_images)
        if kept is not None and class_of is not None:
            classes = class_of(numbers, logits).cpu()
            kept.append(
                Kept(places, features.cpu(), wanted.cpu() if wanted is not None else None, sums_of_images, classes)
            )
