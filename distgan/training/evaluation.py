"""Evaluations during a run: when, what is logged, and which checkpoint is the best."""

import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from distgan.errors import RunError, UsageError
from distgan.evaluation.card import better
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.rounds import Stopped
from distgan.evaluation.scores import value_names
from distgan.logs.log import MetricsLogger
from distgan.runs.checkpoint import Best, Checkpoints, read_best
from distgan.training.build import Run
from distgan.training.state import TrainState


class Card(Protocol):
    """The result of an evaluation, with all that must be known to compare it; see distgan/metrics/card.py."""

    @property
    def metrics(self) -> dict[str, float]: ...

    def to_json(self) -> str: ...

    def line(self) -> str: ...


Evaluate = Callable[[nn.Module, int], Card | None]
"""(G for sampling, images seen) -> the same card on all processes; None on all if one was asked to stop meanwhile."""


def evaluate_generator(
    run: Run, state: TrainState, logger: MetricsLogger, checkpoints: Checkpoints, evaluate: Evaluate
) -> bool:
    """Evaluate the generator, log the card, and keep its checkpoint if it is the best; called on all processes.

    Returns whether it came to its end; a stop ends it early, and the resumed run evaluates again.
    """
    start = time.monotonic()
    card = evaluate(run.G_for_sampling, state.images_seen)
    if card is None:
        return False
    run.processes.run_on_main(checkpoints.wait)  # a best checkpoint must be on disk
    if run.processes.is_main_process:
        logger.log_card(json.loads(card.to_json()), card.line(), time.monotonic() - start)
        mark_best(run, logger, checkpoints)
    logger.last_evaluated = state.images_seen
    logger.pause(time.monotonic() - start)
    return True


def mark_best(run: Run, logger: MetricsLogger, checkpoints: Checkpoints) -> None:
    """Keep the checkpoint with the best of the cards logged so far; on the main process. Raises RunError."""
    cards = logger.cards()
    best = best_of(cards, run.config.evaluate.best, checkpoints.all())
    if best is None and cards:
        return  # with another metric or extractor than before: the best so far is kept until there is a new card
    if best != checkpoints.best:
        try:
            checkpoints.mark_best(best)
        except OSError as error:
            raise RunError(f"{checkpoints.folder}: {error.strerror or error}") from None


def best_of(cards: Sequence[tuple[int, dict[str, Any]]], metric: str | None, kept: Collection[int]) -> Best | None:
    """The best of (images, card) by `metric`, by default the first one of the newest card; None if there is none.

    Of the checkpoints that are `kept`, and of the cards that the newest one can be compared with. NaN is never best.
    """
    if not cards:
        return None
    newest = cards[-1][1]
    name = metric or next(iter(newest["metrics"]))
    lower, best = better(name) == "lower", None
    for images, card in cards:
        value = card["metrics"].get(name, math.nan)
        if images not in kept or math.isnan(value) or measured_by(card) != measured_by(newest):
            continue
        if best is None or (value < best.value if lower else value > best.value):
            best = Best(images, name, value)
    return best


def measured_by(card: dict[str, Any]) -> list[Any]:
    """What two cards must agree in to be compared."""
    return [card["extractor"], card["data"]["manifest"], card["counts"], card["seed"]]


def describe_best(run: Run, logger: MetricsLogger) -> str | None:
    """The best checkpoint and the last value of its metric; None without evaluations."""
    root, cards = Path(run.config.run_dir), logger.cards()
    best = read_best(root)
    if best is None or not cards:
        return None
    last = cards[-1][1]["metrics"].get(best.metric, math.nan)
    return f"{root / 'checkpoints' / str(best.images)}: {best}; the last value is {last:.5g}"


def evaluation_of(run: Run, stop: Callable[[], bool]) -> Callable[[nn.Module, int], Card | None]:
    """The evaluation during a run that `config.evaluate` describes; it gives None if `stop` said so meanwhile.

    Raises UsageError for anything it lacks.
    """
    keys = run.config.evaluate
    evaluator = Evaluator(
        run.processes,
        run.dataset,
        extractor=keys.extractor,
        metrics=keys.metrics,
        samples=keys.samples,
        reference_images=keys.reference_images,
        skip_bad=run.config.data.skip_bad,
        path=run.config.data.shards,
        cache=Path(keys.cache_dir) if keys.cache_dir else None,
        log=lambda line: None,
    )
    names = value_names(evaluator.metrics, evaluator.extractor.name)
    if keys.best is not None and keys.best not in names:
        raise UsageError(f"evaluate.best: unknown metric {keys.best!r}; choose from {', '.join(names)}")
    z_dim, conditional, ema = run.config.model.latent, run.num_classes > 0, run.ema is not None

    def evaluate(G: nn.Module, images_seen: int) -> Card | None:
        try:
            return evaluator(G, z_dim=z_dim, conditional=conditional, images=images_seen, ema=ema, stop=stop)
        except Stopped:
            return None

    return evaluate
