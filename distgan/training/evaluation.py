"""Evaluations during a run: when, what is logged, and which checkpoint is the best."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import nn

from distgan import RunError
from distgan.training.build import Run
from distgan.training.checkpoint import Best, Checkpoints
from distgan.training.logger import MetricsLogger
from distgan.training.state import TrainState

LOWER_IS_BETTER = ("fid", "fd_", "kid", "kd_", "kl", "missing")


class Card(Protocol):
    """The result of an evaluation, with all that must be known to compare it; see distgan/metrics/card.py."""

    @property
    def metrics(self) -> dict[str, float]: ...

    def to_json(self) -> str: ...

    def line(self) -> str: ...


Evaluate = Callable[[nn.Module, int], Card]
"""(G for sampling, images seen) -> the same card on all processes."""


def evaluate_generator(
    run: Run, state: TrainState, logger: MetricsLogger, checkpoints: Checkpoints, evaluate: Evaluate
) -> None:
    """Evaluate the generator, log the card, and keep its checkpoint if it is the best; called on all processes."""
    start = time.monotonic()
    card = evaluate(run.G_for_sampling, state.images_seen)
    run.dist.run_on_main(checkpoints.wait)  # a best checkpoint must be on disk
    if run.dist.is_main_process:
        logger.log_card(json.loads(card.to_json()), card.line(), time.monotonic() - start)
        mark_best(run, logger, checkpoints)
    logger.last_evaluated = state.images_seen
    logger.pause(time.monotonic() - start)


def mark_best(run: Run, logger: MetricsLogger, checkpoints: Checkpoints) -> None:
    """Keep the checkpoint with the best of the cards logged so far; on the main process. Raises RunError."""
    best = best_of(logger.cards(), run.config.evaluate.best)
    if best != checkpoints.best:
        try:
            checkpoints.mark_best(best)
        except OSError as error:
            raise RunError(f"{checkpoints.folder}: {error.strerror or error}") from None


def best_of(cards: list[tuple[int, dict[str, float]]], metric: str | None) -> Best | None:
    """The best of (images, metrics) by `metric`, or by the first metric of each. NaN is never best; None if none is."""
    best = None
    for images, metrics in cards:
        name = metric or next(iter(metrics))
        if name not in metrics:
            continue
        value = metrics[name]
        if math.isnan(value):
            continue
        if best is None or (value < best.value if name.startswith(LOWER_IS_BETTER) else value > best.value):
            best = Best(images, name, value)
    return best


def describe_best(run: Run, logger: MetricsLogger) -> str | None:
    """The best checkpoint and the last value of its metric; None without evaluations."""
    cards = logger.cards()
    best = best_of(cards, run.config.evaluate.best)
    if best is None:
        return None
    last = cards[-1][1].get(best.metric, float("nan"))
    path = Path(run.config.run_dir) / "checkpoints" / str(best.images)
    return f"{path}: {best}; the last value is {last:.5g}"
