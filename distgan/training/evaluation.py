"""Evaluations during a run: when, what they need, and which checkpoint is the best."""

import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from distgan.config.keys import Config
from distgan.data.dataset import open_dataset
from distgan.distributed.processes import Distributed
from distgan.errors import RunError, UsageError
from distgan.evaluation.card import better, measured_by
from distgan.evaluation.chunks import Stopped
from distgan.evaluation.estimate import estimate
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.memorization import Memorization, sheet_picture
from distgan.evaluation.originals import RealImageSet, check_same_kind, real_images_of
from distgan.evaluation.scores import value_names
from distgan.evaluation.settings import Settings
from distgan.logs.log import RunLog
from distgan.runs.checkpoint import Best, Checkpoints, read_best
from distgan.samples import SampleSpec
from distgan.training.copying import CopyingTest
from distgan.training.data import Data
from distgan.training.due import Clock
from distgan.training.grids import grid_name

Cards = Sequence[tuple[int, dict[str, Any]]]
"""(images seen, metric card) of every evaluation so far."""
OPTIONS = (
    *("extractor", "extractor_weights", "resize", "metrics", "samples", "reference_images", "data", "by", "balanced"),
)
"""Of `distgan evaluate`, that are keys of `evaluate` too."""
COPYING = ("copied", "copied_expected", "closer", "copying_z")
"""Of `Copying`, what the log has."""


def open_evaluator(config: Config, processes: Distributed, data: Data) -> Evaluator | None:
    """The evaluator that `config.evaluate` describes, if any. Raises UsageError for anything it lacks."""
    keys = config.evaluate
    if not keys.every_epochs:
        return None
    try:
        evaluator = make_evaluator(config, processes, data)
    except UsageError as error:
        if str(error).partition(":")[0] in OPTIONS:
            raise UsageError(f"evaluate.{error}") from None
        raise
    names = value_names(evaluator.metrics, evaluator.extractor.name)
    if keys.best is not None and keys.best not in names:
        raise UsageError(f"evaluate.best: unknown metric {keys.best!r}; choose from {', '.join(names)}")
    return evaluator


def make_evaluator(config: Config, processes: Distributed, data: Data) -> Evaluator:
    """Raises UsageError, which names the options of `distgan evaluate`."""
    keys = config.evaluate
    real = processes.run_on_all(lambda: real_images(config, data))
    processes.check_same_on_all_ranks(f"the manifest of {real.address}", real.dataset.digest)
    if keys.balanced and not data.spec.num_classes:
        raise UsageError("balanced: G takes no classes; set it to false, or data.labels to true")
    settings = Settings(
        extractor=keys.extractor,
        extractor_weights=keys.extractor_weights,
        resize=keys.resize,
        metrics=keys.metrics,
        samples=keys.samples,
        reference_images=keys.reference_images,
        skip_bad=config.data.skip_bad,
        by=keys.by,
        balanced=keys.balanced,
        cache=Path(keys.cache_dir) if keys.cache_dir else None,
    )
    evaluator = Evaluator(processes, real.dataset, settings, path=real.address, log=lambda line: None)
    evaluator.check_bins(data.spec)
    return evaluator


def real_images(config: Config, data: Data) -> RealImageSet:
    """The images that a run's evaluations compare with. Raises UsageError, which names `data`."""
    given = config.evaluate.data
    keys = asdict(config.data)
    dataset = data.dataset if given is None else open_dataset(given, keys)
    real = real_images_of(dataset, given or config.data.shards, keys)
    classes = [each.name for each in data.dataset.classes] if data.spec.num_classes else []
    check_same_kind(data.spec.pixels, classes, *real)
    return real


class Evaluations:
    """The evaluations of a run: when, their cards in its log, and the checkpoint that is the best by them."""

    def __init__(
        self,
        config: Config,
        processes: Distributed,
        clock: Clock,
        log: RunLog,
        checkpoints: Checkpoints,
        evaluator: Evaluator | None,
        copying: CopyingTest | None,
    ) -> None:
        self.config = config
        self.processes = processes
        self.clock = clock
        self.log = log
        self.checkpoints = checkpoints
        self.evaluator = evaluator
        self.copying = copying
        self.last = 0
        """Images seen at the last evaluation; the same on all processes."""
        self.announced = False
        """Whether the time of an evaluation was printed."""

    def rewind(self, last: int) -> None:
        """Go on from a log whose last evaluation was at `last` images seen."""
        self.last = last

    def due(self, images_seen: int) -> bool:
        """Whether this is the place of an evaluation that was not made yet."""
        every_epochs = self.config.evaluate.every_epochs
        if self.evaluator is None or images_seen <= self.last:
            return False
        return images_seen >= self.clock.total_images or self.clock.crossed(every_epochs, images_seen)

    def evaluate(
        self,
        G: nn.Module,
        images_seen: int,
        *,
        spec: SampleSpec,
        ema: bool,
        of_grids: nn.Module,
        stop: Callable[[], bool],
    ) -> bool:
        """Evaluate G, log the card, and keep its checkpoint if it is the best; called on all processes.

        G makes images of `spec`, truncated as the configuration says, and `of_grids` those of grids, which are not
        truncated: `Trainer.image_generator`.

        Returns whether it came to its end; `stop` ends it early, and the resumed run evaluates again.
        """
        assert self.evaluator is not None, "due only with an evaluator"
        if not self.announced:
            self.announce(G, spec)
        start = time.monotonic()
        about: dict[str, Any] = {"images": images_seen, "ema": ema}
        about["truncation_psi"] = self.config.evaluate.truncation_psi
        try:
            card = self.evaluator(G, z_dim=self.config.model.latent, spec=spec, **about, stop=stop)
            seconds = time.monotonic() - start
            found = self.copying(of_grids, spec, stop) if self.copying is not None else None
        except Stopped:
            return False
        self.processes.run_on_main(self.checkpoints.wait)  # a best checkpoint must be on disk
        if self.processes.is_main_process:
            self.log.terminal.print0(card.line())
            epoch = round(images_seen / self.clock.epoch_images, 4)
            if found is not None:  # before the card, by which a resumed run sees that the evaluation is complete
                self.log_copying(found, images_seen, epoch, time.monotonic() - start - seconds)
            self.log.card(images_seen, epoch, json.loads(card.to_json()), seconds)
            self.mark_best()
        self.last = images_seen
        return True

    def log_copying(self, found: Memorization, images_seen: int, epoch: float, seconds: float) -> None:
        """Log whether G copies, with the sheet of the generated images that are nearest to the training set."""
        picture = sheet_picture(found, self.config.samples.show)
        name = grid_name(images_seen / self.clock.epoch_images, "nearest")
        values = {key: value for key, value in found.copying._asdict().items() if key in COPYING}
        self.log.copying(images_seen, epoch, values, seconds, name=name, picture=picture)

    def announce(self, G: nn.Module, spec: SampleSpec) -> None:
        """Print how long an evaluation will take, once; on all processes."""
        assert self.evaluator is not None, "due only with an evaluator"
        line = estimate(self.evaluator, G, z_dim=self.config.model.latent, spec=spec).line("evaluate.")
        self.announced = True
        if line is not None:
            self.log.terminal.print0(f"an evaluation takes {line}")

    def mark_best(self) -> None:
        """Keep the checkpoint with the best of the cards so far; on the main process. Raises RunError.

        Without evaluations of its own a run leaves it to `distgan evaluate --follow` to mark one.
        """
        if self.evaluator is None:
            return
        mark_best(self.checkpoints, self.log.metrics_file.cards(), self.config.evaluate.best)

    def describe_best(self) -> str | None:
        """The best checkpoint and the last value of its metric; None without evaluations. On the main process."""
        return describe_best(Path(self.config.run_dir), self.log.metrics_file.cards())


def mark_best(checkpoints: Checkpoints, cards: Cards, metric: str | None) -> None:
    """Keep the checkpoint with the best of the cards logged so far; on the main process. Raises RunError."""
    best = best_of(cards, metric, checkpoints.all())
    if best is None and cards:
        return  # with another metric or extractor than before: the best so far is kept until there is a new card
    if best != checkpoints.best:
        try:
            checkpoints.mark_best(best)
        except OSError as error:
            raise RunError(f"{checkpoints.folder}: {error.strerror or error}") from None


def best_of(cards: Cards, metric: str | None, kept: Collection[int]) -> Best | None:
    """The best of the cards by `metric`, by default the first one of the newest card; None if there is none.

    Of the checkpoints that are `kept`, and of the cards that the newest one can be compared with. NaN is never best.
    """
    if not cards:
        return None
    newest = cards[-1][1]
    name = metric or next(iter(newest["metrics"]))
    lower = better(name) == "lower"
    best = None
    for images, card in cards:
        value = card["metrics"].get(name, math.nan)
        if images not in kept or math.isnan(value) or measured_by(card) != measured_by(newest):
            continue
        if best is None or (value < best.value if lower else value > best.value):
            best = Best(images, name, value)
    return best


def describe_best(run_dir: Path, cards: Cards) -> str | None:
    """The best checkpoint and the last value of its metric; None without evaluations."""
    best = read_best(run_dir)
    if best is None or not cards:
        return None
    last = cards[-1][1]["metrics"].get(best.metric, math.nan)
    return f"{run_dir / 'checkpoints' / str(best.images)}: {best}; the last value is {last:.5g}"
