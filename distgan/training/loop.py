"""The training loop: what is due before an iteration, the iteration, and what follows NaN or Inf."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distgan import RunError
from distgan.gan.schedules import adapt_probability, iterations_averaged, value_at
from distgan.gan.step import Scalars, generate, train_step
from distgan.rng import rng
from distgan.training.alarms import spread
from distgan.training.batches import iterations, normalize
from distgan.training.batchnorm import average_running_stats
from distgan.training.build import Run
from distgan.training.checkpoint import Checkpoints
from distgan.training.combinations import is_adaptive
from distgan.training.evaluation import Evaluate, describe_best, evaluate_generator
from distgan.training.finite import FiniteCheck, NonFiniteError, checksum
from distgan.training.logger import MetricsLogger
from distgan.training.report_page import write_page
from distgan.training.state import TrainState, restore_state, save_state
from distgan.training.stop import StopRequest

STOP, COLLAPSED, NON_FINITE = 1, 2, 3  # flags of a process, max-reduced over ranks
REQUESTED_ELSEWHERE = "requested on another rank"


LEAST_IMAGES = 16
"""Images that a spread is taken of."""


@dataclass(frozen=True)
class Actions:
    """What is due before the next iteration; the same on every process."""

    log: bool
    sample: bool
    save: bool
    evaluate: bool
    done: bool
    """Whether the run ends here, at its length or at a stop."""


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
    config, gan, dist = run.config, run.gan, run.dist
    batches = iterations(run, state, logger.record_batch)
    check = FiniteCheck(run.raw_G, gan.raw_D)
    start = last_saved = state.images_seen
    while True:
        # agree with the other processes on what is due
        due = actions_due(run, state, logger, check, stop, start, last_saved)
        # once in a while: save a grid of generated images
        if due.sample and dist.is_main_process:
            save_fake_grid(run, state, logger)
        # once in a while: log the metrics; a logging interval never spans a checkpoint
        if due.log:
            logger.log_metrics()
            check_in_sync(run, state)
        # after each grid: write the page of the run
        if due.sample and dist.is_main_process and config.report.page:
            write_page(Path(config.run_dir))
        # once in a while, at the end and at a stop: save a checkpoint
        if due.save:
            last_saved, start_time = state.images_seen, time.perf_counter()
            if dist.is_main_process:
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
        average_running_stats([run.raw_G, gan.raw_D], dist.accelerator)
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
    sign = run.dist.accelerator.reduce(scalars["d_sign"], "mean")
    assert isinstance(sign, Tensor) and isinstance(rule, dict)
    state.augment_sign = sign + state.augment_sign
    iteration, averaged = state.images_seen // config.iteration_images, iterations_averaged(config.iteration_images)
    if (iteration + 1) % averaged:
        return
    p = torch.as_tensor(state.augment_p, dtype=torch.float32, device=sign.device)
    mean, step = state.augment_sign / averaged, averaged * config.iteration_images
    state.augment_p = adapt_probability(p, mean, target=rule["target"], images=rule["images"], step=step)
    state.augment_sign = 0.0


def actions_due(
    run: Run, state: TrainState, logger: MetricsLogger, check: FiniteCheck, stop: StopRequest, start: int, saved: int
) -> Actions:
    """What is due at `state.images_seen`, in a loop that began at `start` and saved last at `saved`.

    Raises NonFiniteError on all processes if one found NaN or Inf; nothing is saved then.
    """
    config, dist, images_seen = run.config, run.dist, state.images_seen
    at_end = images_seen >= run.total_images
    collapsed = config.guard.stop_on_collapse and logger.alarms.collapsed
    own = NON_FINITE if check.fault else COLLAPSED if collapsed else STOP if stop.requested() else 0
    flag = dist.delayed_all_reduce_max(own)
    done = at_end or flag == STOP
    every = config.evaluate.every_epochs
    evaluate = every > 0 and images_seen > logger.last_evaluated and (at_end or run.crossed(every, images_seen))
    evaluate = evaluate and (at_end or flag != STOP)  # the resumed run does it first
    save = images_seen > saved and (done or evaluate or run.crossed(config.checkpoint.every_epochs, images_seen))
    if save:  # check what would be saved now, not an iteration later
        check.check_weights(images_seen)
        flag = max(flag, *dist.all_gather_object(NON_FINITE if check.fault else 0))
    if flag == NON_FINITE:
        faults = dist.all_gather_object(check.fault)
        raise NonFiniteError(next(fault for fault in faults if fault is not None))
    if flag == COLLAPSED:
        raise CollapseError(dist.run_on_main(lambda: describe_collapse(run, logger)))
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


def loop_with_rollback(
    run: Run,
    state: TrainState,
    logger: MetricsLogger,
    checkpoints: Checkpoints,
    stop: StopRequest,
    evaluate: Evaluate | None = None,
) -> str | None:
    """The loop; after NaN or Inf it resumes from the newest checkpoint, up to `guard.rollbacks` times."""
    dist, limit = run.dist, run.config.guard.rollbacks
    while True:
        try:
            return train_loop(run, state, logger, checkpoints, stop, evaluate)
        except CollapseError:
            if dist.is_main_process and run.config.report.page:
                write_page(Path(run.config.run_dir))  # with the alarms
            raise
        except NonFiniteError as error:
            dist.drain_pending()
            dist.run_on_main(checkpoints.wait)
            newest = dist.run_on_main(checkpoints.newest)
            if state.rollbacks >= limit or newest is None:
                raise NonFiniteError(f"{error}; {dist.run_on_main(checkpoints.describe_latest)}") from None
            rollbacks = state.rollbacks + 1
            logger.print0(f"{error}; rollback {rollbacks} of {limit} to {newest}")
            restore_state(run, state, newest)
            state.rollbacks = rollbacks
            logger.rewind()


def check_in_sync(run: Run, state: TrainState) -> None:
    """Raises RunError if the weights differ between processes."""
    if run.dist.world_size > 1:
        what = f"processes out of sync after {state.images_seen:,} images: the weights"
        run.dist.check_same_on_all_ranks(what, checksum([run.raw_G, run.gan.raw_D]))


def save_fake_grid(run: Run, state: TrainState, logger: MetricsLogger) -> None:
    """Generated images of fixed latents, as samples/fake-EPOCH.png; 0001_5 is one epoch and a half."""
    config, device = run.config, run.dist.device
    shape = (config.samples.count, config.model.latent)
    z = torch.from_numpy(rng(config.seed, "samples").standard_normal(shape, np.float32)).to(device)
    labels = torch.arange(len(z), device=device) % run.num_classes if run.num_classes else None
    epoch, fraction = f"{state.images_seen / run.order.epoch_images:.4f}".split(".")
    name = f"fake-{int(epoch):04d}" + (f"_{fraction.rstrip('0')}" if int(fraction) else "")
    images = generate(run.G_for_sampling, z, labels)
    logger.save_grid(name, images)
    # the grid of an end or a stop between two others is not in the log: an uninterrupted run has none there
    if run.crossed(config.samples.every_epochs, state.images_seen) and len(images) >= LEAST_IMAGES:
        logger.diversity = spread(images) / max(spread(first_images(run, len(images))), 1e-6)


def save_real_grid(run: Run, logger: MetricsLogger) -> None:
    """The first images that the main process trains on."""
    logger.save_grid("real", first_images(run, run.config.samples.count))


def first_images(run: Run, count: int) -> Tensor:
    """Up to `count` of the first images that this process trains on, in [-1, 1], on the CPU."""
    count = min(count, run.order.epoch_images)
    slots = min(-(-count // len(run.order.local_lanes)), run.order.length)
    images = run.reader.read(run.order.ids(0, slots * run.order.lanes)[:count]).images
    return normalize(images, channels_last=False)
