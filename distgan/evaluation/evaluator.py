"""An evaluation on all processes: generated images, their features, the metrics, and the card."""

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distgan.data.shardset import ShardSet
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.evaluation.bins import Bin, check_conditioned_on, choose_bin_metrics, split_into_bins
from distgan.evaluation.card import Card, describe_sums
from distgan.evaluation.classifier import is_stacked
from distgan.evaluation.describe import choose_metrics, code_versions, describe_dataset, describe_extractor
from distgan.evaluation.fake_labels import FakeLabels
from distgan.evaluation.features import open_extractor
from distgan.evaluation.generated import Generated, GeneratedStatistics
from distgan.evaluation.reference import Population, RealImages, RealImageStatistics
from distgan.evaluation.scores import METRICS, check_library, class_histogram, compute
from distgan.evaluation.split import Split
from distgan.evaluation.statistics import ROWS
from distgan.files import cache_folder
from distgan.rng import normal_rows, philox
from distgan.samples import SampleSpec

LEAST_IMAGES = 20


def never() -> bool:
    """Nobody asks to stop."""
    return False


class Evaluator:
    """Metrics of a generator against the images of a dataset. Built and called on all processes.

    The number of processes changes the speed only: images go through the networks in the same chunks, and latents are
    a function of the seed and of the image's number.

    Args:
        extractor: An entry of EXTRACTORS, or a classifier's file.
        metrics: Entries of METRICS. Default: fid, precision_recall, and modes where the extractor gives classes.
        samples: Generated images. Default: 26,000 for StackedMNIST, else as many as the dataset has, up to 50,000.
        seed: Of the latents.
        reference_images: Real images to compare with, drawn at random. Default: all.
        skip_bad: Corrupt images of the dataset to replace by others; one more ends the evaluation.
        path: Of the dataset, for the card.
        cache: Folder of extractors and statistics. Default: ~/.cache/distgan.
        by: A condition of the dataset, or `class`: the card tells the metrics of each bin of images by it too.
        bins: How many bins of a condition, with about as many images in each. Default: 5.
        balanced: As many generated images of each class of the dataset, in place of its frequencies.
        log: Where lines on progress go. Default: a bar on a terminal, else standard output.

    Raises UsageError for anything missing: unknown metrics, weights, packages, labels.
    """

    def __init__(
        self,
        processes: Distributed,
        dataset: ShardSet,
        *,
        extractor: str = "classifier",
        metrics: Sequence[str] = (),
        samples: int | None = None,
        seed: int = 0,
        reference_images: int | None = None,
        skip_bad: int = 0,
        path: str = "",
        cache: Path | None = None,
        by: str | None = None,
        bins: int | None = None,
        balanced: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.processes = processes
        self.dataset = dataset
        self.seed = seed
        self.path = path
        self.cache = cache or cache_folder()
        self.extractor = processes.run_on_all(lambda: open_extractor(extractor, dataset, processes.device, self.cache))
        processes.check_same_on_all_ranks(f"extractor: the sha256 of {extractor}", self.extractor.sha256)
        self.metrics = choose_metrics(metrics, self.extractor)
        check_library()
        total = self.total = len(dataset.columns["label"])
        self.samples = samples if samples is not None else default_samples(dataset)
        self.split = Split.of(total, self.samples, reference_images)
        if min(self.samples, reference_images or total, total) < LEAST_IMAGES:
            raise UsageError(f"samples: metrics need {LEAST_IMAGES} images or more, generated and real")
        self.reference_images = reference_images
        self.by = by
        self.bins = split_into_bins(dataset, by, bins)
        self.fake_labels = FakeLabels(dataset, seed, balanced)
        self.bin_metrics = choose_bin_metrics(self.metrics, by)
        folder = self.cache / "statistics"
        self.real_images = RealImageStatistics(processes, dataset, self.extractor, folder, skip_bad, log)
        keep_logits = any(METRICS[name].needs != "features" for name in self.metrics)
        self.generated_images = GeneratedStatistics(processes, self.extractor, dataset.spec, keep_logits, log)
        self.prepared = False
        self.real: RealImages | None = None

    def prepare(self, stop: Callable[[], bool] = never) -> None:
        """Read or compute the statistics of the real images; the first evaluation does it otherwise. Raises Stopped."""
        if not self.prepared:
            self.real = self.real_images.of(Population(np.arange(self.total), self.split), stop)
            self.prepared = True

    def prepare_bins(self, stop: Callable[[], bool] = never) -> None:
        """Cache the statistics of the real images of each bin. Raises Stopped."""
        for each in self.bins:
            samples, population = self.share(each)
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
        check_conditioned_on(spec, self.by)
        labels = self.fake_labels.describe(spec)
        self.prepare(stop)
        start = time.perf_counter()
        inputs = self.inputs(z_dim, spec, None)
        generated = self.generated_images.of(G, inputs, self.samples, stop)
        rows = [self.bin_row(each, G, self.inputs(z_dim, spec, each), stop) for each in self.bins]
        about = {"file": file, "images": images, "ema": ema, "truncation_psi": truncation_psi, "labels": labels}
        if ema_width is not None:
            about["ema_width"] = ema_width
        return self.processes.run_on_main(lambda: self.card(generated, rows, about, start))

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
        device = self.processes.device
        place = () if within is None else (within.place,)
        z = torch.from_numpy(normal_rows(philox(self.seed, "evaluate", *place), first, count, z_dim)).to(device)
        if spec is None or not spec.conditional:
            return z, None
        return z, torch.from_numpy(self.fake_labels.draw(first, count, spec, within)).to(device)

    def share(self, part: Bin) -> tuple[int, Population]:
        """How many images are generated for a bin, and the real ones they are compared with: its share of all."""
        images = len(part.ids)
        samples = round(self.samples * images / self.total)
        limit = None if self.reference_images is None else max(round(self.reference_images * images / self.total), 1)
        return samples, Population(part.ids, Split.of(images, samples, limit), part.definition)

    def bin_row(
        self, part: Bin, G: nn.Module, inputs: Callable[[int, int], tuple[Tensor, Tensor | None]], stop: Callable
    ) -> dict[str, Any]:
        """What the card says of a bin; called on all processes, complete on the main one."""
        samples, population = self.share(part)
        if not enough(samples, population):
            counts = {"generated": samples, "reference": population.split.others + population.split.shared}
            return part.edges | {"metrics": {}, "floor": {}, "counts": counts, "too_few": LEAST_IMAGES}
        real = self.real_images.of(population, stop)
        generated = self.generated_images.of(G, inputs, samples, stop)
        return part.edges | (self.scores(self.bin_metrics, generated, real) if real is not None else {})

    def scores(self, metrics: Sequence[str], generated: Generated, real: RealImages) -> dict[str, Any]:
        """The values of the metrics, of generated and of real images, and their counts."""
        values = compute(metrics, generated.statistics, real.reference, self.extractor.name)
        images = real.reference.statistics.n
        counts = {
            "generated": generated.statistics.n,
            "reference": images,
            "rows": min(ROWS, generated.statistics.n, images),
            "floor": real.stand_ins,
        }
        floor = {name: value for name, value in real.real_vs_real.items() if name in values}
        sums = describe_sums(generated.image_sum, real.image_sum)
        return {"metrics": values, "floor": floor, "counts": counts} | sums

    def card(self, generated: Generated, rows: list[dict[str, Any]], generator: dict[str, Any], start: float) -> Card:
        """The card of an evaluation that began at `start`, of time.perf_counter; called on the main process."""
        assert self.real is not None, "prepared"
        histogram = class_histogram(generated.statistics).long().tolist() if "modes" in self.metrics else []
        class_names = [one.name for one in self.dataset.classes]
        return Card(
            **self.scores(self.metrics, generated, self.real),
            extractor=describe_extractor(self.extractor),
            data={"path": self.path, **describe_dataset(self.dataset)},
            generator=generator,
            seed=self.seed,
            histogram=histogram,
            missing=[name for name, count in zip(class_names, histogram, strict=False) if count == 0],
            code=code_versions() | {"device": self.processes.device.type, "processes": self.processes.world_size},
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - start, 3),
            by=self.by,
            bins=rows,
        )


def enough(samples: int, real: Population) -> bool:
    """Whether there are images enough for metrics, generated and real."""
    return min(samples, real.split.others + real.split.shared) >= LEAST_IMAGES


def default_samples(dataset: ShardSet) -> int:
    """Generated images: 26,000 for StackedMNIST, as in PacGAN, else as many as the dataset has, up to 50,000."""
    return 26_000 if is_stacked(dataset) else min(len(dataset.columns["label"]), 50_000)
