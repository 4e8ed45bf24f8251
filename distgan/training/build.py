"""What a run is built from: dataset, networks, optimizers, on every process."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distgan import models
from distgan.config.keys import Config, OptimizerConfig, default_lanes
from distgan.data.decode import check_decoder
from distgan.data.order import Lanes, rank_rows
from distgan.data.remote.ahead import check_cache
from distgan.data.remote.cache import open_storage
from distgan.data.shardset import ShardSet, open_shardset
from distgan.data.stream import Reader, images_in_flight
from distgan.distributed import batchnorm
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.gan.augment import Pipeline
from distgan.gan.ema import EMA
from distgan.gan.losses import LOSSES
from distgan.gan.penalties import PENALTIES, Penalty
from distgan.gan.schedules import Schedule, value_at
from distgan.gan.step import GAN, WeightedPenalty, unaugmented
from distgan.training.checks import check_config, check_d, check_loss, check_networks, check_penalties

ROUNDING = 1e-9
"""1792 / (0.1 * 1792) is a little less than 10."""


@dataclass(frozen=True)
class PenaltyConfig:
    """A penalty of the configuration."""

    penalty: Penalty
    weight: Schedule
    every: int
    """Iterations between two applications."""


@dataclass(frozen=True)
class Run:
    """The components of a run, on one of its processes."""

    config: Config
    processes: Distributed
    dataset: ShardSet
    reader: Reader
    order: Lanes
    gan: GAN
    raw_G: nn.Module
    """G without its wrapper."""
    ema: EMA | None
    running_stats: batchnorm.RunningStatsWarmup
    penalties: dict[str, PenaltyConfig]
    augment_columns: int
    """Uniform numbers that augment one image."""

    @property
    def total_images(self) -> int:
        """Length of the run in images."""
        if self.config.images is not None:
            return self.config.images
        assert self.config.epochs is not None, "Config sets one of the two"
        return self.config.epochs * self.order.epoch_images

    @property
    def G_for_sampling(self) -> nn.Module:
        """The EMA of G, or G if the run has none."""
        return self.ema.module if self.ema else self.raw_G

    @property
    def num_classes(self) -> int:
        """Classes that G and D are conditioned on; 0 without labels."""
        return len(self.dataset.classes) if self.config.data.labels else 0

    def crossed(self, every_epochs: float, images_seen: int) -> bool:
        """Whether the last iteration crossed a multiple of `every_epochs`."""
        every = every_epochs * self.order.epoch_images
        before, now = images_seen - self.config.iteration_images, images_seen
        return int(now / every + ROUNDING) > int(before / every + ROUNDING)

    def penalties_due(self, images_seen: int) -> dict[str, WeightedPenalty]:
        """The penalties of the iteration that begins at `images_seen`."""
        iteration = images_seen // self.config.iteration_images
        return {
            name: WeightedPenalty(row.penalty, value_at(row.weight, images_seen), row.every)
            for name, row in self.penalties.items()
            if iteration % row.every == 0
        }


def build(config: Config, processes: Distributed) -> Run:
    """Dataset, networks, optimizers. Raises UsageError; writes nothing."""
    check_config(config)
    check_loss(config.loss)
    check_penalties(config.penalties)
    dataset, order = processes.run_on_all(lambda: open_data(config, processes.rank, processes.world_size))
    processes.check_same_on_all_ranks(f"the manifest of {config.data.shards}", dataset.digest)
    pin = processes.device.type == "cuda"
    reader = Reader(
        dataset,
        decoder=config.data.decoder,
        skip_bad=config.data.skip_bad,
        allocate=lambda shape: torch.empty(shape, dtype=torch.uint8, pin_memory=pin),
    )
    augment = build_augment(config)
    gan = build_gan(config, processes, dataset, augment)
    raw_G = processes.accelerator.unwrap_model(gan.G)
    half_life = config.ema.half_life_images
    ema = EMA(raw_G, half_life, config.ema.warmup) if half_life else None
    running_stats = batchnorm.RunningStatsWarmup([raw_G, gan.raw_D])
    return Run(
        config,
        processes,
        dataset,
        reader,
        order,
        gan,
        raw_G,
        ema,
        running_stats,
        build_penalties(config),
        augment.columns,
    )


def build_penalties(config: Config) -> dict[str, PenaltyConfig]:
    """The penalties by name, in the order of the configuration."""
    rows = {}
    for name, value in config.penalties.items():
        lazy = value if isinstance(value, dict) and "every" in value else {"weight": value, "every": 1}
        rows[name] = PenaltyConfig(PENALTIES[name], lazy["weight"], lazy["every"])
    return rows


def build_augment(config: Config) -> Pipeline:
    """The augmentations in order, each with the factor of its probability."""
    return Pipeline([(entry, 1.0) if isinstance(entry, str) else next(iter(entry.items())) for entry in config.augment])


def open_data(config: Config, rank: int, world_size: int) -> tuple[ShardSet, Lanes]:
    """The dataset, and this process's lanes of it. Raises UsageError."""
    data, share = config.data, config.batch // world_size
    if config.micro_batch and share % config.micro_batch:
        raise UsageError(f"micro_batch: {config.micro_batch} does not divide the {share} images of a process")
    storage = open_storage(data.shards, data.cache_dir, data.cache_gb, data.fetch_ahead, data.fetch_threads)
    dataset = open_shardset(storage, data.shards)
    if rank == 0:
        dataset.check_index()
    if rank == 0 and (missing := dataset.missing()):
        more = f" and {len(missing) - 1} more shards" if len(missing) > 1 else ""
        raise UsageError(
            f"data.shards: {data.shards} lacks {missing[0]}{more}; restore the missing files, or re-create the dataset"
        )
    if data.labels and len(dataset.classes) < 2:
        count = len(dataset.classes) or "no"
        raise UsageError(
            f"data.labels: {data.shards} has {count} classes; set data.labels false, or make a dataset with labels"
        )
    check_decoder(data.decoder, dataset.encoding)
    lanes = data.lanes or default_lanes(config.batch, int(dataset.counts.sum()))
    rank_rows(config.batch, lanes, rank, world_size)  # raises UsageError if the processes do not divide the lanes
    first, last = rank * lanes // world_size, (rank + 1) * lanes // world_size
    order = Lanes(dataset.counts, config.seed, lanes, first, last)
    check_cache(dataset, order, images_in_flight(config.batch, data.threads))
    return dataset, order


def build_gan(config: Config, processes: Distributed, dataset: ShardSet, augment: Pipeline) -> GAN:
    """The networks on their device, with their optimizers, prepared by Accelerate."""
    accelerator, device = processes.accelerator, processes.device
    z_dim, num_classes = config.model.latent, len(dataset.classes) if config.data.labels else 0
    G, D = models.build(
        config.model.name,
        size=dataset.size,
        channels=dataset.channels,
        num_classes=num_classes,
        z_dim=z_dim,
        options=config.model.options,
        seed=config.seed,
    )
    check_d(config, D)
    if config.sync_batchnorm and processes.world_size > 1:
        G, D = batchnorm.convert(G), batchnorm.convert(D)
    if config.channels_last:
        G, D = (network.to(memory_format=torch.channels_last) for network in (G, D))  # type: ignore[call-overload]
    G, D = G.to(device), D.to(device)
    check_networks(G, D, z_dim=z_dim, num_classes=num_classes, shape=(dataset.channels, dataset.size, dataset.size))
    optimizers = adam(G, config.g_optimizer), adam(D, config.d_optimizer)
    G, D, g_optimizer, d_optimizer = accelerator.prepare(G, D, *optimizers)
    for network in (G, D):  # D has two forwards before one backward: its buffers stay as each forward left them
        if isinstance(network, nn.parallel.DistributedDataParallel):
            network.broadcast_buffers = False  # type: ignore[assignment] - as an argument it is deprecated
    limits = {id(g_optimizer): config.g_optimizer.clip, id(d_optimizer): config.d_optimizer.clip}

    def clip(network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor | None:
        limit, scaled = limits[id(optimizer)], accelerator.scaler is not None
        if scaled and not limit:
            return None
        accelerator.unscale_gradients(optimizer)
        norm = nn.utils.clip_grad_norm_(network.parameters(), limit or math.inf)
        return None if scaled else norm  # infinite where the loss scale was too large: no fault

    n = config.micro_batch or config.batch // processes.world_size
    labels = torch.zeros(n, dtype=torch.long, device=device) if config.data.labels else None
    processes.rebuild_ddp_buckets(G, torch.zeros(n, z_dim, device=device), labels)
    processes.rebuild_ddp_buckets(
        D, torch.zeros(n, dataset.channels, dataset.size, dataset.size, device=device), labels
    )
    return GAN(
        G=G,
        D=D,
        raw_D=accelerator.unwrap_model(D),
        g_optimizer=g_optimizer,
        d_optimizer=d_optimizer,
        loss=LOSSES[config.loss],
        augment=augment if augment.columns else unaugmented,
        backward=accelerator.backward,
        no_sync=accelerator.no_sync,
        clip=clip,
    )


def adam(network: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    fused = next(network.parameters()).device.type in ("cuda", "cpu")
    return torch.optim.Adam(
        network.parameters(),
        lr=value_at(config.lr, 0),
        betas=(float(config.betas[0]), value_at(config.betas[1], 0)),
        eps=float(config.eps),
        weight_decay=float(config.weight_decay),
        fused=fused,
    )
