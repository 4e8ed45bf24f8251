"""An evaluation on all processes: generated images, their features, the metrics, and the card."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

from torch import Tensor, nn

from distgan.data.shardset import ShardSet
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.evaluation.bins import (
    CLASS,
    Bin,
    ClassesFrom,
    check_conditioned_on,
    choose_bin_metrics,
    classes_from,
    split_into_bins,
)
from distgan.evaluation.card import Card
from distgan.evaluation.classifier import is_stacked
from distgan.evaluation.describe import choose_metrics, code_versions, describe_dataset, describe_extractor
from distgan.evaluation.fake_labels import FakeLabels, draw_inputs
from distgan.evaluation.features import open_extractor
from distgan.evaluation.generated import (
    ClassOf,
    Generated,
    GeneratedStatistics,
    GeneratorImages,
    classifier_classes,
)
from distgan.evaluation.image_set import ImageSet, check_comparable
from distgan.evaluation.reference import RealImages, RealImageStatistics
from distgan.evaluation.results import score
from distgan.evaluation.scores import METRICS, check_library, class_histogram
from distgan.evaluation.settings import Settings
from distgan.evaluation.shares import LEAST_IMAGES, Shares, enough
from distgan.evaluation.stored import Images
from distgan.files import cache_folder
from distgan.samples import SampleSpec


def never() -> bool:
    """Nobody asks to stop."""
    return False


class Evaluator:
    """Metrics of generated images against the images of a dataset. Built and called on all processes.

    The number of processes changes the speed only: images go through the networks in the same chunks, and latents are
    a function of the seed and of the image's number.

    Args:
        dataset: The real images.
        path: Of the dataset, for the card.
        log: Where lines on progress go. Default: a bar on a terminal, else standard output.

    Raises UsageError for anything missing: unknown metrics, weights, packages, labels.
    """

    def __init__(
        self,
        processes: Distributed,
        dataset: ShardSet,
        settings: Settings | None = None,
        *,
        path: str = "",
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.processes = processes
        self.dataset = dataset
        self.settings = settings = settings or Settings()
        self.path = path
        self.log = log
        self.cache = settings.cache or cache_folder()
        options: dict[str, Any] = {"weights": settings.extractor_weights, "resize": settings.resize}
        self.extractor = processes.run_on_all(
            lambda: open_extractor(settings.extractor, dataset, processes.device, self.cache, **options)
        )
        processes.check_same_on_all_ranks(f"extractor: the sha256 of {settings.extractor}", self.extractor.sha256)
        if self.extractor.note is not None and processes.is_main_process:
            print(f"distgan: {self.extractor.note}", flush=True)
        self.metrics = choose_metrics(settings.metrics, self.extractor)
        check_library()
        total = len(dataset.columns["label"])
        self.samples = settings.samples if settings.samples is not None else default_samples(dataset)
        self.shares = Shares(total, self.samples, settings.reference_images)
        if not enough(self.samples, self.shares.whole()):
            real = min(settings.reference_images or total, total)
            counts = f"there are {self.samples:,} generated and {real:,} real ones"
            raise UsageError(f"samples: metrics need {LEAST_IMAGES} images or more, generated and real; {counts}")
        self.bins = split_into_bins(dataset, settings.by, settings.bins)
        self.fake_labels = FakeLabels(dataset, settings.seed, settings.balanced)
        self.bin_metrics = choose_bin_metrics(self.metrics, settings.by)
        self.real_images = RealImageStatistics(
            processes, dataset, self.extractor, self.cache / "statistics", settings.skip_bad, log
        )
        keep_logits = any(METRICS[name].needs != "features" for name in self.metrics)
        self.generated_images = GeneratedStatistics(processes, self.extractor, keep_logits)
        self.prepared = False
        self.real: RealImages | None = None

    def prepare(self, stop: Callable[[], bool] = never) -> None:
        """Read or compute the statistics of the real images; the first evaluation does it otherwise. Raises Stopped."""
        if not self.prepared:
            self.real = self.real_images.of(self.shares.whole(), stop)
            self.prepared = True

    def prepare_bins(self, stop: Callable[[], bool] = never) -> None:
        """Cache the statistics of the real images of each bin. Raises Stopped."""
        for each in self.bins:
            samples = self.shares.samples_of(each)
            population = self.shares.population(each, samples)
            if enough(samples, population):
                self.real_images.of(population, stop)

    def __call__(
        self,
        G: nn.Module,
        *,
        z_dim: int,
        spec: SampleSpec | None = None,
        images: int | None = None,
        ema: bool | None = None,
        ema_width: float | None = None,
        file: str | None = None,
        truncation_psi: float = 1.0,
        stop: Callable[[], bool] = never,
    ) -> Card:
        """Evaluate G, which makes images in [-1, 1] of z [N, z_dim] and labels [N, ...] or None.

        Called on each process, with G on its device; returns the same card on all. `spec` is of G's samples: if it is
        conditional, G is given labels of the dataset, standardized by it; default: no labels. `images` seen, `ema`,
        `ema_width` of an average by a power function, `file` and the psi that G is truncated by are for the card.

        Raises UsageError for bins by what G is not conditioned on, and for balanced classes of a G without, and Stopped
        on all processes soon after `stop()` is true on one.
        """
        source = self.check_bins(spec)
        class_of = classifier_classes if source == "classifier" else None
        labels = self.fake_labels.describe(spec)
        about = {"file": file, "images": images, "ema": ema, "truncation_psi": truncation_psi, "labels": labels}
        if ema_width is not None:
            about["ema_width"] = ema_width

        def make(samples: int, within: Bin | None = None) -> GeneratorImages:
            inputs = self.inputs(z_dim, spec, within)
            return GeneratorImages(self.processes, G, inputs, samples, self.dataset.spec, self.log)

        return self.evaluate(make(self.samples), about, source, class_of, stop, make)

    def check_bins(self, spec: SampleSpec | None) -> ClassesFrom | None:
        """What tells the class of an image of a G of samples `spec`, for bins by class. Raises UsageError."""
        by = self.settings.by
        return None if by is None else check_conditioned_on(spec, by, self.extractor)

    def evaluate_set(self, images: ImageSet, stop: Callable[[], bool] = never) -> Card:
        """Evaluate a set of images that were generated before: `samples` of the settings is their number.

        Called on each process; returns the same card on all. Raises UsageError for images that cannot be compared with
        the real ones, and for bins by what tells nothing of them; CorruptDataError, and Stopped as `__call__`.
        """
        assert images.count == self.samples, "the shares of bins are of the samples"
        check_comparable(self.extractor, images, self.dataset.spec)
        by = self.settings.by
        if by is None:
            return self.evaluate(images, images.describe(), None, None, stop)
        if by != CLASS:
            raise UsageError(f"by: the images of a set are told apart by class only, not by {by!r}; give --by class")
        labelled = images.has_classes_of(self.dataset)
        source = classes_from(labelled, self.extractor, f"{images.address} has no labels of the dataset's classes")
        class_of = images.class_of(self.dataset) if labelled else classifier_classes
        return self.evaluate(images, images.describe(), source, class_of, stop)

    def evaluate(
        self,
        images: Images,
        about: dict[str, Any],
        source: ClassesFrom | None,
        class_of: ClassOf | None,
        stop: Callable[[], bool],
        make: Callable[[int, Bin], Images] | None = None,
    ) -> Card:
        """The card of images; called on all processes.

        For the bins they are sorted by `class_of`, or other ones are made of each: `make(samples, bin)`.
        """
        self.prepare(stop)
        start = time.perf_counter()
        if class_of is not None:
            generated, by_class = self.generated_images.by_class(images, class_of, stop)
            rows = [
                self.bin_row(each, by_class.count(each.place), partial(by_class.of, each.place), stop)
                for each in self.bins
            ]
        else:
            generated = self.generated_images.of(images, stop)
            rows = [self.bin_row(each, *self.made_for(each, make, stop), stop) for each in self.bins]
        card = partial(self.card, generated, rows, about, source, start)
        return self.processes.run_on_main(card)

    def made_for(
        self, part: Bin, make: Callable[[int, Bin], Images] | None, stop: Callable[[], bool]
    ) -> tuple[int, Callable[[], Generated]]:
        """How many images G makes for a bin, and what makes and measures them."""
        assert make is not None, "sets are sorted"
        samples = self.shares.samples_of(part)
        return samples, lambda: self.generated_images.of(make(samples, part), stop)

    def inputs(
        self, z_dim: int, spec: SampleSpec | None, within: Bin | None
    ) -> Callable[[int, int], tuple[Tensor, Tensor | None]]:
        """Maps the number of an image and a count to the latents and labels of so many images from there on."""
        return lambda first, count: self.latents(first, count, z_dim, spec, within)

    def latents(
        self, first: int, count: int, z_dim: int, spec: SampleSpec | None = None, within: Bin | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Latents [count, z_dim] and labels of the images from number `first` on, on the device.

        Labels are those of images of the dataset, or of a bin of it.
        """
        return draw_inputs(self.fake_labels, first, count, z_dim, spec, self.processes.device, within)

    def bin_row(
        self, part: Bin, samples: int, measure: Callable[[], Generated], stop: Callable[[], bool]
    ) -> dict[str, Any]:
        """What the card says of a bin with `samples` generated images; called on all, complete on the main process."""
        population = self.shares.population(part, samples)
        if not enough(samples, population):
            counts = {"generated": samples, "reference": population.split.others + population.split.shared}
            return part.edges | {"metrics": {}, "floor": {}, "counts": counts, "too_few": LEAST_IMAGES}
        real = self.real_images.of(population, stop)
        generated = measure()
        return part.edges | (score(self.bin_metrics, generated, real, self.extractor.name) if real is not None else {})

    def card(
        self,
        generated: Generated,
        rows: list[dict[str, Any]],
        generator: dict[str, Any],
        source: ClassesFrom | None,
        start: float,
    ) -> Card:
        """The card of an evaluation that began at `start`, of time.perf_counter; called on the main process."""
        assert self.real is not None, "prepared"
        histogram = class_histogram(generated.statistics).long().tolist() if "modes" in self.metrics else []
        class_names = [one.name for one in self.dataset.classes]
        return Card(
            **score(self.metrics, generated, self.real, self.extractor.name),
            extractor=describe_extractor(self.extractor),
            data={"path": self.path, **describe_dataset(self.dataset)},
            generator=generator,
            seed=self.settings.seed,
            histogram=histogram,
            missing=[name for name, count in zip(class_names, histogram, strict=False) if count == 0],
            code=code_versions() | {"device": self.processes.device.type, "processes": self.processes.world_size},
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - start, 3),
            by=self.settings.by,
            classes_from=source,
            bins=rows,
        )


def default_samples(dataset: ShardSet) -> int:
    """Generated images: 26,000 for StackedMNIST, as in PacGAN, else as many as the dataset has, up to 50,000."""
    return 26_000 if is_stacked(dataset) else min(len(dataset.columns["label"]), 50_000)
