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
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from torch import Tensor, nn

from distgan import BadInput, Failed, cli, models
from distgan.checkpoint import Checkpoints, RunFolder, load, optimizer_restore, optimizer_snapshot, snapshot
from distgan.config import Config, OptimizerConfig, flatten, read, to_dict
from distgan.data import stream
from distgan.data.order import Lanes, rows
from distgan.data.remote import open_place
from distgan.data.shardset import ShardSet, open_set, write_whole
from distgan.ema import EMA
from distgan.gan import GAN, Minibatch, train_step
from distgan.guard import Guard, checksum
from distgan.losses import LOSSES
from distgan.processes import Processes, Stop
from distgan.randomness import generator
from distgan.report import Report, environment, peak_memory

CONTROL = "DISTGAN_CONTROL_DIR"  # launch/train.sbatch and the run leave each other files there


@dataclass
class Run:
    """Everything a run is made of. The clock is `images`: real images seen, over all processes."""

    config: Config
    processes: Processes
    shards: ShardSet
    reader: stream.Reader
    order: Lanes
    gan: GAN
    ema: EMA | None
    images: int = 0
    skipped: int = 0
    """Damaged images that were stepped over, up to the last line of the log; over all processes."""
    digest: int = 0
    """Of what this process read since the last line of the log, where it is asked for."""
    save_seconds: float = 0.0
    """Time that the loop waited for checkpoints since the last line of the log."""
    rollbacks: int = 0
    """Times the run went back to a checkpoint; part of the key of every random number from then on."""
    bad: list[str] = field(default_factory=list)
    """Those that this process met since then."""

    @property
    def target(self) -> int:
        config = self.config
        return config.images if config.images is not None else config.epochs * self.order.epoch_images  # type: ignore

    @property
    def sampler(self) -> nn.Module:
        """The network that samples are drawn from."""
        return self.ema.module if self.ema else self.processes.accelerator.unwrap_model(self.gan.G)

    def passed(self, epochs: float) -> bool:
        """Whether the last iteration completed a multiple of `epochs`."""
        every = epochs * self.order.epoch_images
        return int(self.images / every) > int((self.images - self.config.batch) / every)


def build(config: Config, processes: Processes) -> Run:
    """Data, networks, optimizers. Raises BadInput; writes nothing."""
    if config.loss not in LOSSES:
        raise BadInput(f"loss: there is no {config.loss!r}; the losses are {', '.join(LOSSES)}")
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = not config.deterministic
    shards, order = processes.agreed(lambda: open_data(config, processes.rank, processes.world))
    processes.same(f"the manifest of {config.data.shards}", shards.digest)
    data = config.data
    pin = processes.device.type == "cuda"
    reader = stream.Reader(shards, decoder=data.decoder, skip_bad=data.skip_bad, pin=pin)
    gan = build_gan(config, processes, shards)
    half_life = config.ema.half_life_images
    ema = EMA(processes.accelerator.unwrap_model(gan.G), half_life) if half_life else None
    return Run(config, processes, shards, reader, order, gan, ema)


def open_data(config: Config, rank: int, world: int) -> tuple[ShardSet, Lanes]:
    """The set, and this process's lanes of it. Raises BadInput."""
    data, share = config.data, config.batch // world
    rows(config.batch, config.lanes, rank, world)
    if config.micro_batch and share % config.micro_batch:
        raise BadInput(f"micro_batch: {config.micro_batch} does not divide the {share} images of a process")
    shards = open_set(open_place(data.shards, data.cache_dir, data.cache_gb), data.shards)
    if data.labels and len(shards.classes) < 2:
        raise BadInput(f"data.labels: {data.shards} has {len(shards.classes) or 'no'} classes; labels need two or more")
    stream.check_decoder(data.decoder, shards.encoding)
    first, last = rank * config.lanes // world, (rank + 1) * config.lanes // world
    return shards, Lanes(shards.counts, config.seed, config.lanes, first, last)


def build_gan(config: Config, processes: Processes, shards: ShardSet) -> GAN:
    """The networks on their device, with their optimizers, prepared by Accelerate."""
    accelerator, device = processes.accelerator, processes.device
    G, D = models.build(
        config.model.name,
        size=shards.size,
        channels=shards.channels,
        classes=len(shards.classes) if config.data.labels else 0,
        latent=config.model.latent,
        options=config.model.options,
        seed=config.seed,
    )
    if config.sync_batchnorm and processes.world > 1 and device.type == "cuda":
        G, D = (nn.SyncBatchNorm.convert_sync_batchnorm(network) for network in (G, D))
    if config.channels_last:
        G, D = (network.to(memory_format=torch.channels_last) for network in (G, D))  # type: ignore[call-overload]
    G, D = G.to(device), D.to(device)
    optimizers = adam(G, config.g_optimizer), adam(D, config.d_optimizer)
    G, D, g_optimizer, d_optimizer = accelerator.prepare(G, D, *optimizers)
    n = config.micro_batch or config.batch // processes.world
    labels = torch.zeros(n, dtype=torch.long, device=device) if config.data.labels else None
    processes.settle(G, torch.zeros(n, config.model.latent, device=device), labels)
    processes.settle(D, torch.zeros(n, shards.channels, shards.size, shards.size, device=device), labels)
    return GAN(
        G=G,
        D=D,
        critic=accelerator.unwrap_model(D),
        g_optimizer=g_optimizer,
        d_optimizer=d_optimizer,
        loss=LOSSES[config.loss],
        backward=accelerator.backward,
        unsynced=accelerator.no_sync,
    )


def adam(network: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    device = next(network.parameters()).device
    betas = (float(config.betas[0]), float(config.betas[1]))
    return torch.optim.Adam(network.parameters(), lr=config.lr, betas=betas, fused=device.type in ("cuda", "cpu"))


def minibatches(run: Run) -> Iterator[list[Minibatch]]:
    """This process's share of every minibatch from here on, on the device, in parts that fit into memory.

    Latents, labels and flips are drawn for the global minibatch at its place in the run, and each process takes its
    rows: they do not depend on the number of processes.
    """
    config, processes = run.config, run.processes
    mine = rows(config.batch, config.lanes, processes.rank, processes.world)
    names = run.shards.classes if config.data.labels else []
    frequencies = np.array([row["samples"] for row in names]) / max(sum(row["samples"] for row in names), 1)
    pin = processes.device.type == "cuda"

    def draw(images: int) -> dict[str, Tensor]:
        def random(purpose: str) -> np.random.Generator:
            return generator(config.seed, purpose, images, *([run.rollbacks] if run.rollbacks else []))

        drawn: dict[str, np.ndarray] = {
            "z": random("latents").standard_normal((config.batch, config.model.latent), np.float32)[mine]
        }
        if names:
            drawn["fake_labels"] = random("labels").choice(len(names), size=config.batch, p=frequencies)[mine]
        if config.data.flip:
            drawn["flip"] = (random("flips").random(config.batch) < 0.5)[mine]
        tensors = {name: torch.from_numpy(values) for name, values in drawn.items()}
        return {name: tensor.pin_memory() for name, tensor in tensors.items()} if pin else tensors

    batches = stream.stream(
        run.order, run.reader, draw, batch=config.batch, position=run.images, threads=config.data.threads
    )
    for batch in batches:
        run.bad += batch.bad
        run.digest += batch.digest() if config.report.digests else 0
        if run.skipped + len(run.bad) > config.data.skip_bad:
            raise Failed(f"more than data.skip_bad = {config.data.skip_bad} damaged images; the last: {run.bad[-1]}")
        drawn = {name: tensor.to(processes.device, non_blocking=True) for name, tensor in batch.drawn.items()}
        real = to_network(batch.images.to(processes.device, non_blocking=True), config.channels_last)
        if "flip" in drawn:
            real = torch.where(drawn["flip"][:, None, None, None], real.flip(3), real)
        labels = batch.labels.to(processes.device, non_blocking=True) if names else None
        whole = Minibatch(real, drawn["z"], labels, drawn.get("fake_labels"))
        size = config.micro_batch or len(real)
        columns = [column.split(size) if column is not None else [None] * (len(real) // size) for column in whole]
        yield [Minibatch(*part) for part in zip(*columns, strict=True)]


def to_network(images: Tensor, channels_last: bool) -> Tensor:
    """uint8 [N, S, S, C] to float [N, C, S, S] in [-1, 1]."""
    images = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return images if channels_last else images.contiguous()


@torch.no_grad()
def sample(G: nn.Module, z: Tensor, labels: Tensor | None) -> Tensor:
    """Images [N, C, S, S] of G in evaluation mode, on the CPU."""
    training = G.training
    G.eval()
    parts = [G(z[i : i + 64], labels[i : i + 64] if labels is not None else None).cpu() for i in range(0, len(z), 64)]
    G.train(training)
    return torch.cat(parts)


def save_fakes(run: Run, report: Report) -> None:
    """The fixed latents' images now; the epoch is in the name."""
    config, device = run.config, run.processes.device
    latent = (config.samples.count, config.model.latent)
    z = torch.from_numpy(generator(config.seed, "samples").standard_normal(latent, np.float32)).to(device)
    classes = len(run.shards.classes) if config.data.labels else 0
    labels = torch.arange(len(z), device=device) % classes if classes else None
    epoch = run.images // run.order.epoch_images
    report.images(f"fake-{epoch:04d}", sample(run.sampler, z, labels), run.images)


def save_reals(run: Run, report: Report) -> None:
    """The first images that the main process trains on."""
    count, lanes = min(run.config.samples.count, run.order.epoch_images), run.config.lanes
    slots = min(-(-count // len(run.order.mine)), run.order.length)
    report.images("real", to_network(run.reader.read(run.order.ids(0, slots * lanes)[:count]).images, False), 0)


def save(run: Run, checkpoints: Checkpoints) -> None:
    """Hand a copy of the run's state to the writer; the main process calls it."""
    accelerator, gan = run.processes.accelerator, run.gan
    G = accelerator.unwrap_model(gan.G)
    files = {"generator": snapshot(G), "discriminator": snapshot(gan.critic)}
    if run.ema:
        files["ema"] = snapshot(run.ema.module)
    files["optimizers"] = optimizer_snapshot("generator", G, gan.g_optimizer) | optimizer_snapshot(
        "discriminator", gan.critic, gan.d_optimizer
    )
    shards = run.shards
    metadata = {
        "config": run.config.identity(),
        "size": shards.size,
        "channels": shards.channels,
        "classes": [row["name"] for row in shards.classes] if run.config.data.labels else [],
        "manifest": shards.digest,
        "images": run.images,
    }
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    state = {key: metadata[key] for key in ("images", "config", "manifest")}
    checkpoints.save(files, state | {"skipped": run.skipped, "rollbacks": run.rollbacks, "scaler": scaler}, metadata)


def restore(run: Run, path: Path) -> None:
    """Continue from a checkpoint; every process reads it."""
    accelerator, gan = run.processes.accelerator, run.gan
    files, state = load(path)
    G = accelerator.unwrap_model(gan.G)
    G.load_state_dict(files["generator"])
    gan.critic.load_state_dict(files["discriminator"])
    if run.ema:
        run.ema.module.load_state_dict(files.get("ema", files["generator"]))
    optimizer_restore(files["optimizers"], "generator", G, gan.g_optimizer)
    optimizer_restore(files["optimizers"], "discriminator", gan.critic, gan.d_optimizer)
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    run.images, run.skipped, run.rollbacks = state["images"], state["skipped"], state["rollbacks"]
    run.bad.clear()
    run.digest = 0


def enter(run: Run, fresh: bool, held: contextlib.ExitStack) -> Path | None:
    """Take the run folder and find what to continue from; the main process calls it. Raises BadInput.

    A used folder with other settings is refused before anything in it is touched. What was taken is in `held`.
    """
    config, root = run.config, Path(run.config.run_dir)
    if not fresh:
        refuse_changes(run, root)
    folder = held.enter_context(contextlib.closing(RunFolder(root)))
    if fresh and any(path.name != ".lock" for path in root.iterdir()):
        print(f"moved the run that was here to {folder.move_aside()}", flush=True)
        held.enter_context(contextlib.closing(RunFolder(root)))
    with contextlib.closing(Checkpoints(root / "checkpoints", config.checkpoint.keep)) as checkpoints:
        checkpoints.clear_up()
        newest = checkpoints.newest(lambda text: print(text, flush=True))
    try:
        (root / "stop").unlink(missing_ok=True)  # what stopped the run before
        write_whole(root / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False).encode())
        facts = environment(run.processes.device, run.processes.world)
        write_whole(root / "environment.json", (json.dumps(facts, indent=1) + "\n").encode())
    except OSError as error:
        raise BadInput(f"run_dir: {root} cannot be written: {error.strerror}") from None
    return newest


def refuse_changes(run: Run, root: Path) -> None:
    """Raises BadInput where the folder's run was started with other settings, or on other images."""
    if run.config.resume.override or not (root / "config.yaml").exists():
        return
    before, _ = read(["--config", str(root / "config.yaml")], prog="distgan train", description="")
    then, now = flatten(before.identity()), flatten(run.config.identity())
    keys = [key for key in sorted(then | now) if then.get(key) != now.get(key)]
    changed = [f"{key} {then.get(key)} -> {now.get(key)}" for key in keys]
    states = sorted((root / "checkpoints").glob("[0-9]*/state.json"), key=lambda path: int(path.parent.name))
    if states:
        try:
            if json.loads(states[-1].read_text())["manifest"] != run.shards.digest:
                changed.append(f"the images of data.shards (now {run.config.data.shards})")
        except (OSError, ValueError, KeyError):
            pass  # a damaged checkpoint is named when it comes to be read
    if changed:
        raise BadInput(
            f"run_dir: {root} holds a run with other settings: {'; '.join(changed)}. Give another run_dir, or --fresh "
            "to move that run aside, or --resume.override true to continue it with the new ones"
        )


STOP, NOT_FINITE = 1, 2  # what a process tells the others; the higher wins


class NotFinite(Failed):
    """The losses or the weights are no numbers any more."""

    shared = True


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
        if report.due(run.images) or (done and report.count):
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
        raise Failed(f"more than data.skip_bad = {run.config.data.skip_bad} damaged images over all processes")
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
        processes = Processes(config.precision, tensorboard_dir=root if config.report.tensorboard else None)
        if not processes.main:
            stop.files.clear()  # one process looks for files; all hear of it
        run = build(config, processes)
        if flags.dry_run:
            return dry_run(run)
        newest = processes.on_main(lambda: enter(run, flags.fresh, held))
        if newest is not None:
            processes.agreed(lambda: restore(run, newest))

        def written(images: int) -> None:
            if control:
                (control / "saved").write_text(f"{images}\n")

        checkpoints = Checkpoints(root / "checkpoints", config.checkpoint.keep, written)
        held.enter_context(contextlib.closing(checkpoints))
        report = held.enter_context(contextlib.closing(open_report(run, root)))
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
            # A stop file in the run folder is a person's: that run is not to be started again by the cluster.
            if processes.main and control and str(root / "stop") not in reason:
                (control / "stopped").write_text(f"{run.images}\n")
        processes.end()


def guarded(run: Run, report: Report, checkpoints: Checkpoints, stop: Stop) -> str | None:
    """The loop, and what follows when it meets numbers that are none: back to the newest checkpoint, or the end."""
    processes = run.processes
    while True:
        try:
            return loop(run, report, checkpoints, stop)
        except NotFinite as fault:
            processes.forget()
            processes.on_main(checkpoints.wait)
            newest = processes.on_main(lambda: checkpoints.newest(report.say))
            stands = f"the checkpoint {newest} stands" if newest else "there is no checkpoint yet"
            if run.rollbacks >= run.config.guard.rollbacks or newest is None:
                raise NotFinite(f"{fault}; {stands}") from None
            rollbacks = run.rollbacks + 1
            report.say(f"{fault}; back to {newest}, rollback {rollbacks} of {run.config.guard.rollbacks}")
            restore(run, newest)
            run.rollbacks = rollbacks
            report.back_to(run.images)
        except OSError as error:
            images = checkpoints.all()
            stands = f"the checkpoint at {images[-1]:,} images stands" if images else "there is no checkpoint yet"
            raise Failed(f"{run.config.run_dir} could not be written: {error.strerror}; {stands}") from None
        except (dist.DistError, RuntimeError) as error:
            if isinstance(error, Failed) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
                raise  # this process's own
            raise processes.lost(error) from error


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
        raise BadInput("report.tensorboard: it is not installed; pip install 'distgan[tensorboard]'") from None


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
