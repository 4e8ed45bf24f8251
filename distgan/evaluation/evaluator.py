"""An evaluation on all processes: generated images, their features, the metrics, and the card."""

import importlib.metadata
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distgan import __version__
from distgan.data.shardset import ShardSet
from distgan.distributed.processes import Distributed
from distgan.environment import git_commit
from distgan.errors import UsageError
from distgan.evaluation.card import Card
from distgan.evaluation.chunks import run_chunks
from distgan.evaluation.classifier import is_stacked
from distgan.evaluation.features import Extractor, extract, open_extractor
from distgan.evaluation.progress import ProgressBar
from distgan.evaluation.reference import CHUNK, RealImages, Split, real_images
from distgan.evaluation.scores import METRICS, check_library, class_histogram, compute
from distgan.evaluation.statistics import ROWS, Accumulator, Statistics
from distgan.files import cache_folder
from distgan.rng import normal_rows, philox, uniform_rows

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
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.processes = processes
        self.dataset = dataset
        self.seed = seed
        self.skip_bad = skip_bad
        self.path = path
        self.log = log
        self.cache = cache or cache_folder()
        self.extractor = processes.run_on_all(lambda: open_extractor(extractor, dataset, processes.device, self.cache))
        processes.check_same_on_all_ranks(f"extractor: the sha256 of {extractor}", self.extractor.sha256)
        self.metrics = choose_metrics(metrics, self.extractor)
        check_library()
        total = len(dataset.columns["label"])
        self.samples = samples if samples is not None else default_samples(dataset)
        self.split = Split.of(total, self.samples, reference_images)
        if min(self.samples, reference_images or total, total) < LEAST_IMAGES:
            raise UsageError(f"samples: metrics need {LEAST_IMAGES} images or more, generated and real")
        self.prepared = False
        self.real: RealImages | None = None

    def prepare(self, stop: Callable[[], bool] = never) -> None:
        """Read or compute the statistics of the real images; the first evaluation does it otherwise. Raises Stopped."""
        if not self.prepared:
            self.real = real_images(
                self.processes,
                self.dataset,
                self.extractor,
                self.split,
                folder=self.cache / "statistics",
                skip_bad=self.skip_bad,
                stop=stop,
                log=self.log,
            )
            self.prepared = True

    def __call__(
        self,
        G: nn.Module,
        *,
        z_dim: int,
        conditional: bool = False,
        images: int | None = None,
        ema: bool | None = None,
        file: str | None = None,
        stop: Callable[[], bool] = never,
    ) -> Card:
        """Evaluate G, which makes images in [-1, 1] of z [N, z_dim] and labels [N] or None, on each process's device.

        Returns the same card on all processes. A conditional G is given labels at the frequencies of the dataset.
        `images` seen, `ema` and `file` are for the card. Raises Stopped on all processes soon after `stop()` is true
        on one.
        """
        self.prepare(stop)
        start = time.perf_counter()
        generated = self.generated(G, z_dim, conditional, stop)
        about = {"file": file, "images": images, "ema": ema}
        return self.processes.run_on_main(lambda: self.card(generated, about, start))

    @torch.no_grad()
    def generated(self, G: nn.Module, z_dim: int, conditional: bool, stop: Callable[[], bool]) -> Statistics:
        """Statistics of the images of G, of which each process makes its share."""
        accumulator = Accumulator(self.extractor.num_features)
        keep_logits = any(METRICS[name].needs != "features" for name in self.metrics)
        is_main = self.processes.is_main_process
        progress = ProgressBar("generated images", self.samples, main=is_main, log=self.log)

        def work(chunk: int) -> None:
            first = chunk * CHUNK
            count = min(CHUNK, self.samples - first)
            z, labels = self.latents(first, count, z_dim, conditional)
            features, logits = extract(self.extractor, to_pixels(G(z, labels)))
            accumulator.add(torch.arange(first, first + count), features, logits if keep_logits else None)
            progress.update(first + CHUNK)

        training = G.training
        G.eval()
        try:
            run_chunks(self.processes, -(-self.samples // CHUNK), work, stop)
        finally:
            G.train(training)
        progress.close()
        return accumulator.reduce(self.processes)

    def latents(self, first: int, count: int, z_dim: int, conditional: bool) -> tuple[Tensor, Tensor | None]:
        """Latents [count, z_dim] and labels of the images from number `first` on, on the device."""
        device = self.processes.device
        z = torch.from_numpy(normal_rows(philox(self.seed, "evaluate"), first, count, z_dim)).to(device)
        if not conditional:
            return z, None
        uniform = uniform_rows(philox(self.seed, "evaluate-labels"), first, count, 1)[:, 0]
        return z, torch.from_numpy(self.dataset.draw_labels(uniform)).to(device)

    def card(self, generated: Statistics, generator: dict[str, Any], start: float) -> Card:
        """The card of an evaluation that began at `start`, of time.perf_counter; called on the main process."""
        assert self.real is not None, "prepared"
        real = self.real
        reference_count = real.reference.statistics.n
        values = compute(self.metrics, generated, real.reference, self.extractor.name)
        histogram = class_histogram(generated).long().tolist() if "modes" in self.metrics else []
        class_names = [one.name for one in self.dataset.classes]
        return Card(
            metrics=values,
            floor={name: value for name, value in real.real_vs_real.items() if name in values},
            counts={
                "generated": generated.n,
                "reference": reference_count,
                "rows": min(ROWS, generated.n, reference_count),
                "floor": real.stand_ins,
            },
            extractor=describe_extractor(self.extractor),
            data={"path": self.path, **describe_dataset(self.dataset)},
            generator=generator,
            seed=self.seed,
            histogram=histogram,
            missing=[name for name, count in zip(class_names, histogram, strict=False) if count == 0],
            code=code_versions() | {"device": self.processes.device.type, "processes": self.processes.world_size},
            time=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.perf_counter() - start, 3),
        )


def default_samples(dataset: ShardSet) -> int:
    """Generated images: 26,000 for StackedMNIST, as in PacGAN, else as many as the dataset has, up to 50,000."""
    return 26_000 if is_stacked(dataset) else min(len(dataset.columns["label"]), 50_000)


def describe_extractor(extractor: Extractor) -> dict[str, Any]:
    """What a card says of the extractor."""
    return {
        "name": extractor.name,
        "sha256": extractor.sha256,
        "resize": extractor.resize,
        "accuracy": extractor.accuracy,
        "trained_on": extractor.trained_on,
    }


def describe_dataset(dataset: ShardSet) -> dict[str, Any]:
    """What a card says of the dataset of the real images, beside its path."""
    return {
        "manifest": dataset.digest,
        "resize": (dataset.manifest.options or {}).get("resize"),
        "kl_to": "uniform" if is_stacked(dataset) else "the dataset's labels",
    }


def code_versions() -> dict[str, Any]:
    """Of distgan and of the libraries that the numbers depend on."""
    fidelity = importlib.metadata.version("torch-fidelity")
    return {"version": __version__, "commit": git_commit(), "torch": torch.__version__, "torch_fidelity": fidelity}


def choose_metrics(metrics: Sequence[str], extractor: Extractor) -> list[str]:
    """The metrics to compute, in the order of METRICS. Raises UsageError."""
    for name in metrics:
        if name not in METRICS:
            raise UsageError(f"metrics: unknown metric {name!r}; choose from {', '.join(METRICS)}")
        if METRICS[name].needs not in extractor.gives:
            need = {"logits": "classes", "labels": "a classifier of the dataset's own labels"}[METRICS[name].needs]
            raise UsageError(f"metrics: {name} needs {need}, which the extractor {extractor.name} does not give")
    chosen = set(metrics) or {"fid", "precision_recall", *(["modes"] if "labels" in extractor.gives else [])}
    return [name for name in METRICS if name in chosen]


def to_pixels(images: Tensor) -> Tensor:
    """float [N, C, S, S] in [-1, 1] -> uint8, rounded; values outside are clipped."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5 + 0.5).to(torch.uint8)
