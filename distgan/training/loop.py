"""The training loop: what is due before an iteration, the iteration, and what follows NaN or Inf."""

import time
from pathlib import Path

import torch
from torch import Tensor

from distgan.config.keys import is_adaptive
from distgan.distributed.batchnorm import average_running_stats
from distgan.gan.schedules import adapt_probability, iterations_averaged, value_at
from distgan.gan.step import Scalars, train_step
from distgan.logs.log import MetricsLogger
from distgan.page.build import write_page
from distgan.runs.checkpoint import Checkpoints
from distgan.training.batches import iterations
from distgan.training.build import Run
from distgan.training.due import REQUESTED_ELSEWHERE, CollapseError, actions_due
from distgan.training.evaluation import Evaluate, evaluate_generator
from distgan.training.finite import FiniteCheck, NonFiniteError, checksum
from distgan.training.grids import save_fake_grid
from distgan.training.state import TrainState, restore_state, save_state
from distgan.training.stop import StopRequest


def train_loop(
    run: Run,
    state: TrainState,
    logger: MetricsLogger,
    checkpoints: Checkpoints,
    stop: StopRequest,
    evaluate: Evaluate | None = None,
) -> str | None:
    """Train to the end, or to a stop; returns the reason of a stop. Raises NonFiniteError and RunError.

    Maintenance comes first and the iteration last: a new run, a resumed one and its end take the same path.
    """
    config, gan, processes = run.config, run.gan, run.processes
    batches = iterations(run, state, logger.record_batch)
    check = FiniteCheck(run.raw_G, gan.raw_D)
    start = last_saved = state.images_seen
    while True:
        # agree with the other processes on what is due
        due = actions_due(run, state, logger, check, stop, start, last_saved)
        # once in a while: save a grid of generated images
        if due.sample and processes.is_main_process:
            save_fake_grid(run, state, logger)
        # once in a while: log the metrics; a logging interval never spans a checkpoint
        if due.log:
            logger.log_metrics()
            check_in_sync(run, state)
        # after each grid: write the page of the run
        if due.sample and processes.is_main_process and config.report.page:
            write_page(Path(config.run_dir))
        # once in a while, at the end and at a stop: save a checkpoint
        if due.save:
            last_saved, start_time = state.images_seen, time.perf_counter()
            if processes.is_main_process:
                save_state(run, state, checkpoints)
                if config.checkpoint.wait:
                    checkpoints.wait()
            logger.save_seconds += time.perf_counter() - start_time
        # once in a while, and at the end: metrics of generated images
        if due.evaluate and evaluate and not evaluate_generator(run, state, logger, checkpoints, evaluate):
            return stop.reason or REQUESTED_ELSEWHERE
        # stop at the end of the run, or when asked to
        if due.done:
            stopped = state.images_seen < run.total_images
            return (stop.reason or REQUESTED_ELSEWHERE) if stopped else None
        # set what changes with the images seen
        run.running_stats.set_momentum(state.images_seen // config.iteration_images)
        set_learning_rates(run, state.images_seen)
        # one iteration: update D, then G
        norms = check.param_norms()
        scalars = train_step(gan, next(batches), run.penalties_due(state.images_seen), augment_probability(run, state))
        # update the averages, the adaptive probability and the clock
        average_running_stats([run.raw_G, gan.raw_D], processes.accelerator)
        if run.ema:
            run.ema.update(run.raw_G, config.iteration_images, state.images_seen)
        adapt_augmentation(run, state, scalars)
        state.images_seen += config.iteration_images
        # keep the scalars, on the device, for the log and for the check for NaN and Inf
        logger.add(scalars)
        check.record(norms, scalars, state.images_seen)


def set_learning_rates(run: Run, images_seen: int) -> None:
    """Give both optimizers the learning rate and the beta2 of their schedules."""
    config, gan = run.config, run.gan
    for optimizer, row in ((gan.g_optimizer, config.g_optimizer), (gan.d_optimizer, config.d_optimizer)):
        for group in optimizer.param_groups:
            group["lr"] = value_at(row.lr, images_seen)
            group["betas"] = (row.betas[0], value_at(row.betas[1], images_seen))


def augment_probability(run: Run, state: TrainState) -> Tensor | float:
    """The probability of augmentation now; on the device if it is adaptive."""
    if is_adaptive(run.config):
        return state.augment_p
    return value_at(run.config.augment_p, state.images_seen)


def adapt_augmentation(run: Run, state: TrainState, scalars: Scalars) -> None:
    """Move an adaptive probability after an iteration, by the real images of all processes; does not wait."""
    if not is_adaptive(run.config):
        return
    config, rule = run.config, run.config.augment_p
    sign = run.processes.accelerator.reduce(scalars["d_sign"], "mean")
    assert isinstance(sign, Tensor) and isinstance(rule, dict)
    state.augment_sign = sign + state.augment_sign
    iteration, averaged = state.images_seen // config.iteration_images, iterations_averaged(config.iteration_images)
    if (iteration + 1) % averaged:
        return
    p = torch.as_tensor(state.augment_p, dtype=torch.float32, device=sign.device)
    mean, step = state.augment_sign / averaged, averaged * config.iteration_images
    state.augment_p = adapt_probability(p, mean, target=rule["target"], images=rule["images"], step=step)
    state.augment_sign = 0.0


def loop_with_rollback(
    run: Run,
    state: TrainState,
    logger: MetricsLogger,
    checkpoints: Checkpoints,
    stop: StopRequest,
    evaluate: Evaluate | None = None,
) -> str | None:
    """The loop; after NaN or Inf it resumes from the newest checkpoint, up to `guard.rollbacks` times."""
    processes, limit = run.processes, run.config.guard.rollbacks
    while True:
        try:
            return train_loop(run, state, logger, checkpoints, stop, evaluate)
        except CollapseError:
            if processes.is_main_process and run.config.report.page:
                write_page(Path(run.config.run_dir))  # with the alarms
            raise
        except NonFiniteError as error:
            processes.drain_pending()
            processes.run_on_main(checkpoints.wait)
            newest = processes.run_on_main(checkpoints.newest)
            if state.rollbacks >= limit or newest is None:
                raise NonFiniteError(f"{error}; {processes.run_on_main(checkpoints.describe_latest)}") from None
            rollbacks = state.rollbacks + 1
            logger.print0(f"{error}; rollback {rollbacks} of {limit} to {newest}")
            restore_state(run, state, newest)
            state.rollbacks = rollbacks
            logger.rewind()


def check_in_sync(run: Run, state: TrainState) -> None:
    """Raises RunError if the weights differ between processes."""
    if run.processes.world_size > 1:
        what = f"processes out of sync after {state.images_seen:,} images: the weights"
        run.processes.check_same_on_all_ranks(what, checksum([run.raw_G, run.gan.raw_D]))
