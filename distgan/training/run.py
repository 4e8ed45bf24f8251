"""A run from its start to its end: build it, lock its folder, resume, train, and say how it ended."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed

from distgan.config.keys import Config, to_dict
from distgan.distributed.launch import unused_launcher_settings
from distgan.distributed.processes import Distributed
from distgan.errors import CorruptDataError, RunError, format_os_error
from distgan.gan.parts import GAN
from distgan.logs.log import Terminal
from distgan.logs.trackers import check_trackers, finish_trackers
from distgan.plugins import import_user_modules
from distgan.runs.checkpoint import Checkpoints
from distgan.runs.folder import Changes, open_run_dir, write_run_info
from distgan.training.build import build, parameter_counts
from distgan.training.copying import open_copying_test
from distgan.training.data import Data
from distgan.training.decoding import describe_decoding
from distgan.training.evaluation import open_evaluator
from distgan.training.frozen_features import describe_network
from distgan.training.loop import Trainer
from distgan.training.stop import Requeue, StopRequest
from distgan.training.warm_start import WarmStart, open_warm_start


def run_training(config: Config, *, fresh: bool = False, dry: bool = False, profile: int | None = None) -> None:
    """Train, or resume the run in `config.run_dir`. Raises UsageError and RunError, on every process.

    `fresh` moves an existing run aside. `dry` builds everything, runs two iterations and writes nothing.
    `profile` is how many iterations to profile.
    """
    root = Path(config.run_dir)
    import_user_modules(config.imports)
    check_trackers(config.report.trackers)
    requeue = Requeue()
    # one process polls the files, and the flags are reduced
    folders = requeue.folders(root) if os.environ.get("RANK", "0") == "0" else []
    with contextlib.ExitStack() as stack:
        # from here on a signal only sets a flag: a run that is asked to stop while it starts saves a checkpoint too
        stop = stack.enter_context(contextlib.closing(StopRequest(folders)))
        processes = Distributed(config)
        terminal = stack.enter_context(contextlib.closing(Terminal(processes.is_main_process)))
        checkpoints = Checkpoints(
            root / "checkpoints", config.checkpoint.keep, on_written=requeue.saved, print_error=terminal.warn
        )
        stack.enter_context(contextlib.closing(checkpoints))
        stack.enter_context(readable_errors(processes, checkpoints))
        start = open_warm_start(config, processes, fresh)
        data, gan = build(config, processes, start)
        stack.enter_context(contextlib.closing(data.reader))
        evaluator = open_evaluator(config, processes, data)
        copying = open_copying_test(config, processes, data, evaluator)
        if dry:
            from distgan.training.dry_run import (
                dry_run,  # it imports what fake tensors need, which other runs do without
            )

            dry_run(config, processes, data, gan, start)
            return processes.shutdown()
        places: dict[str, Any] = dict(terminal=terminal, checkpoints=checkpoints, stop=stop)
        trainer = Trainer(config, processes, data, gan, **places, evaluator=evaluator, copying=copying, start=start)
        begin(trainer, start, fresh, stack)
        if profile is None or not processes.is_main_process:
            reason = trainer.train()
        else:
            reason = train_profiled(trainer, profile)
        finish(trainer, reason, requeue)


def begin(trainer: Trainer, start: WarmStart | None, fresh: bool, stack: contextlib.ExitStack) -> None:
    """Lock the run folder, restore its newest checkpoint, if any, and print the first lines of the log.

    Raises UsageError on all processes.
    """
    config = trainer.config
    processes = trainer.processes
    digest = trainer.data.dataset.digest
    networks = trainer.data.networks
    newest, changes = processes.run_on_main(lambda: open_run_dir(config, digest, networks, fresh, stack))
    if newest is not None:
        processes.run_on_all(lambda: trainer.restore(newest))
    elif start is None and config.init_from is not None:
        raise RunError(f"run_dir: the checkpoints in {config.run_dir} were removed meanwhile; start the run again")
    facts = processes.run_on_main(lambda: write_run_info(config, processes.device, processes.world_size))
    trainer.start()
    lines = [*header(config, processes, trainer.data, trainer.gan, facts), *resumption(trainer, newest, changes)]
    for line in [*lines, *(start.lines if start is not None and newest is None else [])]:
        trainer.terminal.print0(line)
    if processes.is_main_process and changes:
        trainer.log.override(trainer.state.images_seen, changes)
    if processes.is_main_process and trainer.state.images_seen == 0:
        trainer.save_real_grid()
    processes.run_on_main(trainer.evaluations.mark_best)


def train_profiled(trainer: Trainer, count: int) -> str | None:
    """`trainer.train()`, with `count` of its iterations profiled."""
    from distgan.training.profiling import Profiler  # other runs do without it

    with contextlib.closing(Profiler(trainer, count)) as profiler:
        trainer.profiler = profiler
        reason = trainer.train()
        profiler.finish()
        return reason


def finish(trainer: Trainer, reason: str | None, requeue: Requeue) -> None:
    """Wait for the last checkpoint, print that the run completed or why it stopped, and shut the processes down."""
    trainer.processes.run_on_main(trainer.checkpoints.wait)
    for line in ending(trainer, reason):
        trainer.terminal.print0(line)
    if reason is None:
        trainer.write_page()  # with the last card
    elif trainer.processes.is_main_process:
        requeue.stopped(trainer.state.images_seen, reason, trainer.run_dir)
    finish_trackers(trainer.processes.accelerator)
    trainer.processes.shutdown()


@contextlib.contextmanager
def readable_errors(processes: Distributed, checkpoints: Checkpoints) -> Iterator[None]:
    """One line for what is no bug: a lost process, corrupt data, too little memory, a folder that cannot be written."""
    try:
        yield
    except BrokenPipeError:
        raise
    except CorruptDataError as error:
        fix = "`distgan shards verify` lists all corrupt images, --data.skip_bad N skips up to N"
        raise CorruptDataError(f"{error}; {fix}; {checkpoints.describe_latest()}") from None
    except OSError as error:
        where = "" if error.filename else f"{checkpoints.folder.parent}: "
        message = f"{where}{format_os_error(error)}"
        raise RunError(f"{message}; {checkpoints.describe_latest()}") from None
    except torch.OutOfMemoryError as error:
        message = f"{str(error).splitlines()[0]} Try --micro_batch (gradient accumulation)"
        raise RunError(f"{message}; {checkpoints.describe_latest()}") from None
    except (torch.distributed.DistError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RunError) or not (isinstance(error, torch.distributed.DistError) or "gloo" in text):
            raise
        if "Duplicate GPU detected" in text or "invalid usage" in text:  # NCCL was set up wrongly: no peer is lost
            reason = next((line for line in reversed(text.splitlines()) if line.strip()), text)
            raise RunError(f"the launch: NCCL cannot start: {reason.strip()[:200]}") from None
        raise processes.peer_failure(error, checkpoints.describe_latest()) from error


def header(config: Config, processes: Distributed, data: Data, gan: GAN, facts: dict[str, Any]) -> Iterator[str]:
    """The first lines of a run: versions, processes and device, data and networks, the configuration."""
    commit = facts["commit"] or "unknown"
    yield f"distgan {facts['distgan']} (commit {commit}), torch {facts['libraries']['torch']}"
    precision = "float32" if config.precision == "no" else config.precision
    yield f"{processes.world_size} process(es), {facts['device']}, precision {precision}"
    if facts["cuda"]:
        switches = ("tf32", config.tf32), ("deterministic", config.deterministic)
        shown = ", ".join(f"{name} {'on' if on else 'off'}" for name, on in switches)
        yield f"CUDA {facts['cuda']}, driver {facts['driver']}, NCCL {facts['nccl']}, {shown}"
    yield from unused_launcher_settings(config)
    order = data.order
    yield (
        f"{config.data.shards}: {data.dataset.manifest.samples:,} images {data.spec}, {order.lanes} lanes, "
        f"{order.epoch_images:,} images per epoch; parameters: {parameter_counts(gan)}"
    )
    if data.network is not None:
        yield describe_network(config, data.network, gan.raw_D)
    if processes.is_main_process:
        yield from describe_decoding(config, data)
    yield json.dumps(to_dict(config))


def resumption(trainer: Trainer, newest: Path | None, changes: Changes) -> Iterator[str]:
    """What the run resumes from, and the keys that an override changed."""
    images_seen = trainer.state.images_seen
    clock = trainer.clock
    if newest is not None:
        yield f"resuming from {newest}: {images_seen:,} of {clock.total_images:,} images"
        if images_seen - clock.iteration_images >= clock.total_images:
            key = "images" if trainer.config.images is not None else "epochs"
            yield f"nothing to do: {key} {getattr(trainer.config, key)} is less than this run has done"
    for key, (old, new) in changes.items():
        yield f"override: {key} {old} -> {new}"


def ending(trainer: Trainer, reason: str | None) -> Iterator[str]:
    """How the run ended: at its end, or stopped for a reason."""
    images_seen = trainer.state.images_seen
    if reason is not None:
        progress = f"{images_seen:,} of {trainer.clock.total_images:,} images"
        yield f"stopped at {progress} ({reason}); run the same command to resume"
        return
    grid = trainer.log.last_grid
    shown = f"{grid} ({'EMA of G' if trainer.ema else 'G'}), " if grid else ""
    yield f"done: {images_seen:,} images; {shown}{trainer.run_dir / 'checkpoints' / str(images_seen)}"
    if trainer.processes.is_main_process and (best := trainer.evaluations.describe_best()):
        yield best
