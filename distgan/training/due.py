"""What is due before an iteration."""

from dataclasses import dataclass

from distgan.errors import RunError
from distgan.logs.log import MetricsLogger
from distgan.training.build import Run
from distgan.training.evaluation import describe_best
from distgan.training.finite import FiniteCheck, NonFiniteError
from distgan.training.state import TrainState
from distgan.training.stop import StopRequest

STOP, COLLAPSED, NON_FINITE = 1, 2, 3  # flags of a process, max-reduced over ranks
REQUESTED_ELSEWHERE = "requested on another rank"


@dataclass(frozen=True)
class Actions:
    """What is due before the next iteration; the same on every process."""

    log: bool
    sample: bool
    save: bool
    evaluate: bool
    done: bool
    """Whether the run ends here, at its length or at a stop."""


def actions_due(
    run: Run, state: TrainState, logger: MetricsLogger, check: FiniteCheck, stop: StopRequest, start: int, saved: int
) -> Actions:
    """What is due at `state.images_seen`, in a loop that began at `start` and saved last at `saved`.

    Raises NonFiniteError on all processes if one found NaN or Inf; nothing is saved then.
    """
    config, processes, images_seen = run.config, run.processes, state.images_seen
    at_end = images_seen >= run.total_images
    collapsed = config.guard.stop_on_collapse and logger.alarms.collapsed
    own = NON_FINITE if check.fault else COLLAPSED if collapsed else STOP if stop.requested() else 0
    flag = processes.delayed_all_reduce_max(own)
    done = at_end or flag == STOP
    every = config.evaluate.every_epochs
    evaluate = every > 0 and images_seen > logger.last_evaluated and (at_end or run.crossed(every, images_seen))
    evaluate = evaluate and (at_end or flag != STOP)  # the resumed run does it first
    save = images_seen > saved and (done or evaluate or run.crossed(config.checkpoint.every_epochs, images_seen))
    if save:  # check what would be saved now, not an iteration later
        check.check_weights(images_seen)
        flag = max(flag, *processes.all_gather_object(NON_FINITE if check.fault else 0))
    if flag == NON_FINITE:
        faults = processes.all_gather_object(check.fault)
        raise NonFiniteError(next(fault for fault in faults if fault is not None))
    if flag == COLLAPSED:
        raise CollapseError(processes.run_on_main(lambda: describe_collapse(run, logger)))
    return Actions(
        log=logger.due() or ((done or save) and logger.count > 0),
        sample=images_seen > start and (done or run.crossed(config.samples.every_epochs, images_seen)),
        save=save,
        evaluate=evaluate,
        done=done,
    )


class CollapseError(RunError):
    """An alarm ended the run."""

    on_all_ranks = True


def describe_collapse(run: Run, logger: MetricsLogger) -> str:
    """What was seen, and the best checkpoint; called on the main process."""
    best = describe_best(run, logger) or "no checkpoint was evaluated (evaluate.every_epochs)"
    return f"guard.stop_on_collapse: the run collapsed (see the warnings above); {best}"
