"""A run from its start to its end: build it, lock its folder, resume, train, and say how it ended."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed

from distgan.config.keys import Config, to_dict
from distgan.distributed.launch import unused_launcher_settings
from distgan.distributed.processes import Distributed
from distgan.errors import CorruptDataError, RunError, format_os_error
from distgan.logs.log import MetricsLogger
from distgan.logs.trackers import check_trackers, finish_trackers
from distgan.page.build import write_page
from distgan.plugins import import_user_modules
from distgan.runs.checkpoint import Checkpoints
from distgan.runs.folder import Changes, open_run_dir, write_run_info
from distgan.training.build import Run, build
from distgan.training.dry_run import describe_run, parameter_counts
from distgan.training.evaluation import Evaluate, describe_best, mark_best
from distgan.training.grids import save_real_grid
from distgan.training.loop import loop_with_rollback
from distgan.training.state import TrainState, restore_state
from distgan.training.stop import StopRequest

CONTROL_DIR = "DISTGAN_CONTROL_DIR"
"""Environment variable: the folder of the files that launch/train.sbatch and the run exchange."""


def run_training(
    config: Config,
    *,
    fresh: bool = False,
    dry_run: bool = False,
    make_evaluate: Callable[[Run, Callable[[], bool]], Evaluate] | None = None,
) -> None:
    """Train, or resume the run in `config.run_dir`. Raises UsageError and RunError, on every process.

    `make_evaluate` makes what `evaluate.every_epochs` calls, given what says whether the run was asked to stop; what it
    lacks, it says at the start of the run.
    """
    root = Path(config.run_dir)
    import_user_modules(config.imports)
    check_trackers(config.report.trackers)
    control = Path(os.environ[CONTROL_DIR]) if os.environ.get(CONTROL_DIR) else None
    with contextlib.ExitStack() as stack:
        # from here on a signal only sets a flag: a run that is asked to stop while it starts saves a checkpoint too
        stop = stack.enter_context(contextlib.closing(StopRequest([root, control] if control else [root])))
        processes = Distributed(config)
        checkpoints = Checkpoints(root / "checkpoints", config.checkpoint.keep, on_written=record_saved(control))
        stack.enter_context(contextlib.closing(checkpoints))
        stack.enter_context(readable_errors(processes, checkpoints))
        if not processes.is_main_process:
            stop.files.clear()  # one process polls the files, and the flags are reduced
        run, state = build(config, processes), TrainState()
        stack.enter_context(contextlib.closing(run.reader))
        evaluate = make_evaluate(run, stop.requested) if config.evaluate.every_epochs and make_evaluate else None
        if dry_run:
            return describe_run(run, state)
        newest, changes = processes.run_on_main(lambda: open_run_dir(run, fresh, stack))
        if newest is not None:
            processes.run_on_all(lambda: restore_state(run, state, newest))
        facts = processes.run_on_main(lambda: write_run_info(run))
        logger = stack.enter_context(contextlib.closing(MetricsLogger(run, state)))
        checkpoints.print_error = logger.print0
        log_run_header(run, logger, facts)
        log_resume(run, state, logger, newest, changes)
        if processes.is_main_process and state.images_seen == 0:
            save_real_grid(run, logger)
        processes.run_on_main(lambda: mark_best(run, logger, checkpoints))
        reason = loop_with_rollback(run, state, logger, checkpoints, stop, evaluate)
        processes.run_on_main(checkpoints.wait)
        report_end(run, state, logger, reason, control)
        finish_trackers(processes.accelerator)
        processes.shutdown()


def record_saved(control: Path | None) -> Callable[[int], None]:
    """Tells launch/train.sbatch of each checkpoint, by a file `saved`."""

    def on_written(images: int) -> None:
        if control:
            (control / "saved").write_text(f"{images}\n")

    return on_written


@contextlib.contextmanager
def readable_errors(processes: Distributed, checkpoints: Checkpoints) -> Iterator[None]:
    """One line for what breaks a run from outside: a lost process, a folder that cannot be written."""
    try:
        yield
    except BrokenPipeError:
        raise
    except CorruptDataError as error:
        fix = "`distgan shards verify` lists all corrupt images, --data.skip_bad N skips up to N"
        raise CorruptDataError(f"{error}; {fix}; {checkpoints.describe_latest()}") from None
    except OSError as error:
        raise RunError(
            f"{checkpoints.folder.parent}: {format_os_error(error)}; {checkpoints.describe_latest()}"
        ) from None
    except torch.OutOfMemoryError as error:
        message = str(error).splitlines()[0]
        raise RunError(
            f"{message} Try --micro_batch (gradient accumulation); {checkpoints.describe_latest()}"
        ) from None
    except (torch.distributed.DistError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RunError) or not (isinstance(error, torch.distributed.DistError) or "gloo" in text):
            raise
        if "Duplicate GPU detected" in text or "invalid usage" in text:  # NCCL was set up wrongly: no peer is lost
            reason = next((line for line in reversed(text.splitlines()) if line.strip()), text)
            raise RunError(f"the launch: NCCL cannot start: {reason.strip()[:200]}") from None
        raise processes.peer_failure(error, checkpoints.describe_latest()) from error


def log_run_header(run: Run, logger: MetricsLogger, facts: dict[str, Any]) -> None:
    """The first lines of a run: versions, processes and device, data and networks, the configuration."""
    dataset = run.dataset
    commit = facts["commit"] or "unknown"
    logger.print0(f"distgan {facts['distgan']} (commit {commit}), torch {facts['libraries']['torch']}")
    logger.print0(f"{run.processes.world_size} process(es), {facts['device']}, precision {run.config.precision}")
    if facts["cuda"]:
        switches = ("tf32", run.config.tf32), ("deterministic", run.config.deterministic)
        shown = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in switches)
        logger.print0(f"CUDA {facts['cuda']}, driver {facts['driver']}, NCCL {facts['nccl']}, {shown}")
    for line in unused_launcher_settings(run.config):
        logger.print0(line)
    logger.print0(
        f"{run.config.data.shards}: {dataset.manifest.samples:,} images {dataset.size}x{dataset.size}x"
        f"{dataset.channels}, {run.order.lanes} lanes, {run.order.epoch_images:,} images per epoch; "
        f"parameters: {parameter_counts(run)}"
    )
    logger.print0(json.dumps(to_dict(run.config)))


def log_resume(run: Run, state: TrainState, logger: MetricsLogger, newest: Path | None, changes: Changes) -> None:
    """Print what the run resumes from, and log the keys that an override changed."""
    if newest is not None:
        logger.print0(f"resuming from {newest}: {state.images_seen:,} of {run.total_images:,} images")
        if state.images_seen - run.config.iteration_images >= run.total_images:
            key = "images" if run.config.images is not None else "epochs"
            logger.print0(f"nothing to do: {key} {getattr(run.config, key)} is less than this run has done")
    for key, (old, new) in changes.items():
        logger.print0(f"override: {key} {old} -> {new}")
    if changes and run.processes.is_main_process:
        logger.append_metrics({"images": state.images_seen, "override": changes, "time": round(time.time(), 3)})


def report_end(run: Run, state: TrainState, logger: MetricsLogger, reason: str | None, control: Path | None) -> None:
    """Print how the run ended, and tell launch/train.sbatch whether to requeue it."""
    root = Path(run.config.run_dir)
    checkpoint = root / "checkpoints" / str(state.images_seen)
    if reason is None:
        grid = f"{logger.last_grid} ({'EMA of G' if run.ema else 'G'}), " if logger.last_grid else ""
        logger.print0(f"done: {state.images_seen:,} images; {grid}{checkpoint}")
        if run.processes.is_main_process and (best := describe_best(run, logger)):
            logger.print0(best)
        if run.processes.is_main_process and run.config.report.page:
            write_page(root)  # with the last card
        return
    progress = f"{state.images_seen:,} of {run.total_images:,} images"
    logger.print0(f"stopped at {progress} ({reason}); run the same command to resume")
    if run.processes.is_main_process and str(root / "stop") in reason:
        (root / "stop").unlink(missing_ok=True)  # the user's stop file: the cluster must not requeue the run
    elif run.processes.is_main_process and control:
        (control / "stopped").write_text(f"{state.images_seen}\n")
