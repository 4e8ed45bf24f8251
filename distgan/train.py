"""`distgan train`: reads the configuration, builds the run, loops. The same command continues it."""

import sys
from pathlib import Path

if not __package__:  # run by path: import the package from the checkout, not this folder's modules by bare name
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from distgan import RunError, UsageError, cli, format_os_error
from distgan.config import flatten, read, to_dict
from distgan.distributed import Distributed, Stop
from distgan.gan.step import generate, train_step
from distgan.rng import rng
from distgan.training.build import Run, build, minibatches, to_network
from distgan.training.checkpoint import Checkpoints
from distgan.training.finite import Guard, checksum
from distgan.training.logger import Report, environment, peak_memory
from distgan.training.run_dir import enter, restore, save, sign

CONTROL = "DISTGAN_CONTROL_DIR"  # launch/train.sbatch and the run leave each other files there


def save_fakes(run: Run, report: Report) -> None:
    """The fixed latents' images now; the epoch is in the name."""
    config, device = run.config, run.processes.device
    latent = (config.samples.count, config.model.latent)
    z = torch.from_numpy(rng(config.seed, "samples").standard_normal(latent, np.float32)).to(device)
    classes = len(run.shards.classes) if config.data.labels else 0
    labels = torch.arange(len(z), device=device) % classes if classes else None
    epoch = run.images // run.order.epoch_images
    report.images(f"fake-{epoch:04d}", generate(run.sampler, z, labels), run.images)


def save_reals(run: Run, report: Report) -> None:
    """The first images that the main process trains on."""
    count, lanes = min(run.config.samples.count, run.order.epoch_images), run.config.lanes
    slots = min(-(-count // len(run.order.mine)), run.order.length)
    report.images("real", to_network(run.reader.read(run.order.ids(0, slots * lanes)[:count]).images, False), 0)


STOP, NOT_FINITE = 1, 2  # what a process tells the others; the higher wins


class NotFinite(RunError):
    """The losses or the weights are no numbers any more."""

    on_all_ranks = True


def loop(run: Run, report: Report, checkpoints: Checkpoints, stop: Stop) -> str | None:
    """Train to the end, or to a stop; returns the reason of a stop. Raises NotFinite.

    Maintenance first, the iteration last: start, continuation and end take the same path.
    """
    config, processes, gan = run.config, run.processes, run.gan
    batches = minibatches(run)
    G = processes.accelerator.unwrap_model(gan.G)
    guard = Guard(gan.critic, G)
    started_at = saved_at = run.images
    while True:
        done = run.images >= run.target
        due = run.images > saved_at and (done or run.passed(config.checkpoint.every_epochs))
        flag = processes.most_soon(NOT_FINITE if guard.fault else STOP if stop.asked() else 0)
        due = run.images > saved_at and (due or flag == STOP)
        if due:  # nothing that is not finite is saved, and all say so now, not an iteration later
            guard.weights(run.images)
            flag = max(flag, *processes.everybodys(NOT_FINITE if guard.fault else 0))
        if flag == NOT_FINITE:
            faults = processes.everybodys(guard.fault)
            raise NotFinite(next(fault for fault in faults if fault is not None))
        done = done or flag == STOP
        if report.due(run.images) or ((done or due) and report.count):  # a line never spans a checkpoint
            write_line(run, report)
        if processes.main and run.images > started_at and run.passed(config.samples.every_epochs):
            save_fakes(run, report)
        if due:
            saved_at, began = run.images, time.perf_counter()
            if processes.main:
                save(run, checkpoints)
                if config.checkpoint.wait:
                    checkpoints.wait()
            run.save_seconds += time.perf_counter() - began
        if done:
            return (stop.reason or "another process was asked to") if run.images < run.target else None
        norms = guard.before()
        scalars = train_step(gan, next(batches))
        processes.average_statistics([G, gan.critic])
        if run.ema:
            run.ema.update(G, config.batch)
        run.images += config.batch
        report.add(scalars, run.images)
        guard.after(norms, scalars, run.images)


def write_line(run: Run, report: Report) -> None:
    """Means over iterations and processes, and what was stepped over: the budget is one for all processes."""
    for line in run.bad:
        print(f"distgan: stepped over: {line}", file=sys.stderr, flush=True)
    run.skipped += run.processes.total(len(run.bad))
    run.bad.clear()
    extra: dict[str, Any] = {"skipped": run.skipped, "save_seconds": run.save_seconds}
    if run.config.report.digests:
        extra["digest"] = run.processes.total(run.digest)
    run.save_seconds, run.digest = 0.0, 0
    report.line(run.processes.mean(report.means()), run.images, extra)
    if run.skipped > run.config.data.skip_bad:
        raise RunError(f"more than data.skip_bad = {run.config.data.skip_bad} damaged images over all processes")
    if run.processes.world > 1:
        networks = [run.processes.accelerator.unwrap_model(run.gan.G), run.gan.critic]
        run.processes.same(f"at {run.images:,} images the processes drifted apart: the weights", checksum(networks))


def train(argv: list[str]) -> None:
    config, flags = read(argv, prog="distgan train", description=__doc__ or "")
    root = Path(config.run_dir)
    if config.report.tensorboard:
        check_tensorboard()
    control = Path(os.environ[CONTROL]) if os.environ.get(CONTROL) else None
    with contextlib.ExitStack() as held:
        # From here on a signal only sets a flag: a run that is asked to stop while it starts stops after a checkpoint.
        stop = held.enter_context(contextlib.closing(Stop([root, control] if control else [root])))
        processes = Distributed(config.precision, tensorboard_dir=root if config.report.tensorboard else None)
        held.enter_context(in_one_line(processes, root))
        if not processes.main:
            stop.files.clear()  # one process looks for files; all hear of it
        run = build(config, processes)
        if flags.dry_run:
            return dry_run(run)
        newest = processes.on_main(lambda: enter(run, flags.fresh, held))
        if newest is not None:
            processes.agreed(lambda: restore(run, newest))
        processes.on_main(lambda: sign(run))
        report = held.enter_context(contextlib.closing(open_report(run, root)))

        def written(images: int) -> None:
            if control:
                (control / "saved").write_text(f"{images}\n")

        checkpoints = Checkpoints(root / "checkpoints", config.checkpoint.keep, written=written, say=report.say)
        held.enter_context(contextlib.closing(checkpoints))
        introduce(run, report, newest)
        if processes.main and run.images == 0:
            save_reals(run, report)
        reason = guarded(run, report, checkpoints, stop)
        processes.on_main(checkpoints.wait)
        if reason is None:
            report.say(f"done: {run.images:,} images; {root}/samples, {root}/checkpoints")
        else:
            left = f"{run.images:,} of {run.target:,} images"
            report.say(f"stopped at {left} ({reason}); the same command continues the run")
            if processes.main and str(root / "stop") in reason:
                (root / "stop").unlink(missing_ok=True)  # a person's: the cluster is not to start this run again
            elif processes.main and control:
                (control / "stopped").write_text(f"{run.images}\n")
        processes.end()


@contextlib.contextmanager
def in_one_line(processes: Distributed, root: Path) -> Iterator[None]:
    """What breaks a run from outside, said in one line: a process that is gone, a folder that cannot be written."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        images = Checkpoints(root / "checkpoints", 0).all()
        stands = f"the checkpoint at {images[-1]:,} images stands" if images else "there is no checkpoint yet"
        raise RunError(f"{root}: {format_os_error(error)}; {stands}") from None
    except (dist.DistError, RuntimeError) as error:
        if isinstance(error, RunError) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise  # this process's own
        raise processes.lost(error) from error


def guarded(run: Run, report: Report, checkpoints: Checkpoints, stop: Stop) -> str | None:
    """The loop, and what follows when it meets numbers that are none: back to the newest checkpoint, or the end."""
    processes = run.processes
    while True:
        try:
            return loop(run, report, checkpoints, stop)
        except NotFinite as fault:
            processes.forget()
            processes.on_main(checkpoints.wait)
            newest = processes.on_main(checkpoints.newest)
            stands = f"the checkpoint {newest} stands" if newest else "there is no checkpoint yet"
            if run.rollbacks >= run.config.guard.rollbacks or newest is None:
                raise NotFinite(f"{fault}; {stands}") from None
            rollbacks = run.rollbacks + 1
            report.say(f"{fault}; back to {newest}, rollback {rollbacks} of {run.config.guard.rollbacks}")
            restore(run, newest)
            run.rollbacks = rollbacks
            report.back_to(run.images)


def open_report(run: Run, root: Path) -> Report:
    config, accelerator = run.config, run.processes.accelerator
    if config.report.tensorboard:
        accelerator.init_trackers("tensorboard", config=plain(to_dict(config)))
    return Report(
        root,
        accelerator,
        images=run.images,
        target=run.target,
        epoch_images=run.order.epoch_images,
        every_images=config.report.every_images,
        batch=config.batch,
    )


def introduce(run: Run, report: Report, newest: Path | None) -> None:
    facts = environment(run.processes.device, run.processes.world)
    networks = {"G": run.processes.accelerator.unwrap_model(run.gan.G), "D": run.gan.critic}
    sizes = ", ".join(f"{k} {sum(p.numel() for p in n.parameters()) / 1e6:.2f} M" for k, n in networks.items())
    manifest = run.shards.manifest
    commit = facts["commit"] or "unknown"
    report.say(f"distgan {facts['distgan']} (commit {commit}), torch {facts['libraries']['torch']}")
    report.say(f"{run.processes.world} process(es), {facts['device']}, precision {run.config.precision}")
    report.say(
        f"{run.config.data.shards}: {manifest['samples']:,} images {run.shards.size}x{run.shards.size}x"
        f"{run.shards.channels}, {run.config.lanes} lanes, {run.order.epoch_images:,} images an epoch; {sizes} weights"
    )
    report.say(json.dumps(to_dict(run.config)))
    if newest is not None:
        report.say(f"continuing {newest}: {run.images:,} of {run.target:,} images")


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """What TensorBoard's table of hyperparameters takes: no lists, no None."""
    flat = flatten(config)
    return {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in flat.items()}


def check_tensorboard() -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        raise UsageError("report.tensorboard: it is not installed; pip install 'distgan[tensorboard]'") from None


def dry_run(run: Run) -> None:
    """One iteration, and what it took."""
    scalars = train_step(run.gan, next(minibatches(run)))
    if run.processes.main:
        values = ", ".join(f"{name} {float(value):.4f}" for name, value in scalars.items())
        memory = peak_memory(run.processes.device) / 1e9
        print(f"dry run: one iteration of {run.config.batch} images on {run.processes.world} process(es): {values}")
        print(f"peak memory of a process: {memory:.2f} GB; nothing was written", flush=True)
    run.processes.end()


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for a run that failed."""
    code = cli.run(train, argv)
    if code and dist.is_initialized():
        os._exit(code)  # the others are not there any more to say goodbye to
    return code


if __name__ == "__main__":
    sys.exit(main())
