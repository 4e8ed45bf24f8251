"""What a run is made of, built from the configuration: data, networks, optimizers; and its minibatches."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from distgan import RunError, UsageError, models
from distgan.config import Config, OptimizerConfig
from distgan.data import stream
from distgan.data.order import Lanes, rows
from distgan.data.remote import open_storage
from distgan.data.shardset import ShardSet, open_shardset
from distgan.distributed import Distributed
from distgan.gan.ema import EMA
from distgan.gan.losses import LOSSES
from distgan.gan.step import GAN, Minibatch
from distgan.rng import rng
from distgan.training import batchnorm


@dataclass
class Run:
    """Everything a run is made of. The clock is `images`: real images seen, over all processes."""

    config: Config
    processes: Distributed
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


def build(config: Config, processes: Distributed) -> Run:
    """Data, networks, optimizers. Raises UsageError; writes nothing."""
    if config.loss not in LOSSES:
        raise UsageError(f"loss: there is no {config.loss!r}; the losses are {', '.join(LOSSES)}")
    torch.backends.cudnn.deterministic = config.deterministic
    torch.backends.cudnn.benchmark = not config.deterministic
    shards, order = processes.agreed(lambda: open_data(config, processes.rank, processes.world))
    processes.same(f"the manifest of {config.data.shards}", shards.digest)
    data = config.data
    pin = processes.device.type == "cuda"
    reader = stream.Reader(
        shards,
        decoder=data.decoder,
        skip_bad=data.skip_bad,
        allocate=lambda shape: torch.empty(shape, dtype=torch.uint8, pin_memory=pin),
    )
    gan = build_gan(config, processes, shards)
    half_life = config.ema.half_life_images
    ema = EMA(processes.accelerator.unwrap_model(gan.G), half_life) if half_life else None
    return Run(config, processes, shards, reader, order, gan, ema)


def open_data(config: Config, rank: int, world: int) -> tuple[ShardSet, Lanes]:
    """The set, and this process's lanes of it. Raises UsageError."""
    data, share = config.data, config.batch // world
    rows(config.batch, config.lanes, rank, world)
    if config.micro_batch and share % config.micro_batch:
        raise UsageError(f"micro_batch: {config.micro_batch} does not divide the {share} images of a process")
    shards = open_shardset(open_storage(data.shards, data.cache_dir, data.cache_gb), data.shards)
    if rank == 0:
        shards.check_index()
    if rank == 0 and (missing := shards.missing()):
        more = f" and {len(missing) - 1} more shards" if len(missing) > 1 else ""
        raise UsageError(
            f"data.shards: {data.shards} lacks {missing[0]}{more}; copy what is gone there again, or make the set anew"
        )
    if data.labels and len(shards.classes) < 2:
        raise UsageError(
            f"data.labels: {data.shards} has {len(shards.classes) or 'no'} classes; labels need two or more"
        )
    stream.check_decoder(data.decoder, shards.encoding)
    first, last = rank * config.lanes // world, (rank + 1) * config.lanes // world
    return shards, Lanes(shards.counts, config.seed, config.lanes, first, last)


def build_gan(config: Config, processes: Distributed, shards: ShardSet) -> GAN:
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
    if config.sync_batchnorm and processes.world > 1:
        G, D = batchnorm.convert(G), batchnorm.convert(D)
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
            return rng(config.seed, purpose, images, *([run.rollbacks] if run.rollbacks else []))

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
        run.bad += batch.corrupt
        run.digest += batch.digest() if config.report.digests else 0
        if run.skipped + len(run.bad) > config.data.skip_bad:
            raise RunError(f"more than data.skip_bad = {config.data.skip_bad} damaged images; the last: {run.bad[-1]}")
        drawn = {name: tensor.to(processes.device, non_blocking=True) for name, tensor in batch.noise.items()}
        real = to_network(batch.images.to(processes.device, non_blocking=True), config.channels_last)
        if "flip" in drawn:
            real = torch.where(drawn["flip"][:, None, None, None], real.flip(3), real)
        labels = torch.from_numpy(batch.labels).to(processes.device, non_blocking=True) if names else None
        whole = Minibatch(real, drawn["z"], labels, drawn.get("fake_labels"))
        size = config.micro_batch or len(real)
        columns = [column.split(size) if column is not None else [None] * (len(real) // size) for column in whole]
        yield [Minibatch(*part) for part in zip(*columns, strict=True)]


def to_network(images: Tensor, channels_last: bool) -> Tensor:
    """uint8 [N, S, S, C] to float [N, C, S, S] in [-1, 1]."""
    images = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return images if channels_last else images.contiguous()
