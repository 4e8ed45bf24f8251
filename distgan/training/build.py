"""What a run is built from: dataset, networks, optimizers, on every process."""

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distgan import UsageError, models
from distgan.config import Config, OptimizerConfig, default_lanes
from distgan.data.fetch import check_cache
from distgan.data.order import Lanes, rank_rows
from distgan.data.remote import open_storage
from distgan.data.shardset import ShardSet, open_shardset
from distgan.data.stream import Reader, check_decoder, images_in_flight
from distgan.distributed import Distributed
from distgan.gan.augment import Pipeline
from distgan.gan.ema import EMA
from distgan.gan.losses import LOSSES
from distgan.gan.penalties import PENALTIES, DForward, Penalty
from distgan.gan.schedules import Schedule, value_at
from distgan.gan.step import GAN, WeightedPenalty, unaugmented
from distgan.training import batchnorm
from distgan.training.combinations import check_config, check_d

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
    dist: Distributed
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


def build(config: Config, dist: Distributed) -> Run:
    """Dataset, networks, optimizers. Raises UsageError; writes nothing."""
    check_config(config)
    check_loss(config.loss)
    check_penalties(config.penalties)
    dataset, order = dist.run_on_all(lambda: open_data(config, dist.rank, dist.world_size))
    dist.check_same_on_all_ranks(f"the manifest of {config.data.shards}", dataset.digest)
    pin = dist.device.type == "cuda"
    reader = Reader(
        dataset,
        decoder=config.data.decoder,
        skip_bad=config.data.skip_bad,
        allocate=lambda shape: torch.empty(shape, dtype=torch.uint8, pin_memory=pin),
    )
    augment = build_augment(config)
    gan = build_gan(config, dist, dataset, augment)
    raw_G = dist.accelerator.unwrap_model(gan.G)
    half_life = config.ema.half_life_images
    ema = EMA(raw_G, half_life, config.ema.warmup) if half_life else None
    running_stats = batchnorm.RunningStatsWarmup([raw_G, gan.raw_D])
    return Run(
        config, dist, dataset, reader, order, gan, raw_G, ema, running_stats, build_penalties(config), augment.columns
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


def build_gan(config: Config, dist: Distributed, dataset: ShardSet, augment: Pipeline) -> GAN:
    """The networks on their device, with their optimizers, prepared by Accelerate."""
    accelerator, device = dist.accelerator, dist.device
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
    if config.sync_batchnorm and dist.world_size > 1:
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

    n = config.micro_batch or config.batch // dist.world_size
    labels = torch.zeros(n, dtype=torch.long, device=device) if config.data.labels else None
    dist.rebuild_ddp_buckets(G, torch.zeros(n, z_dim, device=device), labels)
    dist.rebuild_ddp_buckets(D, torch.zeros(n, dataset.channels, dataset.size, dataset.size, device=device), labels)
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


@torch.no_grad()
def check_loss(name: str) -> None:
    """Compute the loss of three logits. Raises UsageError if it is not per-sample."""
    loss, logits = LOSSES[name], torch.zeros(3)
    calls = {
        "d(real, fake)": lambda: loss.d(logits, logits),
        "g(fake, real)": lambda: loss.g(logits, logits if loss.paired else None),
    }
    for call, compute in calls.items():
        try:
            value = compute()
        except Exception as error:  # a user's loss may raise anything
            message = (str(error).splitlines() or [""])[0]
            raise UsageError(f"loss: {call} of {name} raises {type(error).__name__}: {message}") from error
        if not isinstance(value, Tensor) or value.shape != (3,):
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"loss: {call} of {name} returns {found} for 3 logits; it must return [3], per-sample losses"
            )


@torch.no_grad()
def check_networks(G: nn.Module, D: nn.Module, *, z_dim: int, num_classes: int, shape: tuple[int, int, int]) -> None:
    """Run two images through the networks. Raises UsageError if they do not do what `models.build` says."""
    device = next(G.parameters()).device
    z, images = torch.randn(2, z_dim, device=device), torch.rand(2, *shape, device=device) * 2 - 1
    for name, network, input, expected in (("G", G, z, (2, *shape)), ("D", D, images, (2,))):
        training = network.training
        network.eval()
        outputs = []
        for label in range(min(num_classes, 2) or 1):
            labels = torch.full((2,), label, device=device) if num_classes else None
            try:
                outputs.append(network(input, labels))
            except Exception as error:  # a user's network may raise anything
                message = (str(error).splitlines() or [""])[0]
                call = "G(z, labels)" if name == "G" else "D(images, labels)"
                raise UsageError(f"model.name: {call} raises {type(error).__name__}: {message}") from error
        output = outputs[0]
        if not isinstance(output, Tensor) or output.shape != expected:
            found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UsageError(f"model.name: for 2 inputs {name} returns {found}; it must return {list(expected)}")
        if len(outputs) > 1 and torch.equal(*outputs) and ignores_labels(network, input):
            raise UsageError(f"data.labels: {name} ignores labels")
        network.train(training)


def ignores_labels(network: nn.Module, input: Tensor) -> bool:
    """Whether two labels change nothing for other weights: at initialization classes may be alike, as in BatchNorm."""
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    labels = torch.zeros(len(input), dtype=torch.long, device=input.device)
    return torch.equal(other(input, labels), other(input, labels + 1))


def check_penalties(names: Iterable[str]) -> None:
    """Compute each penalty of a quadratic D on three images. Raises UsageError if it is not per-sample."""
    for name in names:
        real, fake = (torch.full((3, 1, 2, 2), value, requires_grad=True) for value in (0.5, -0.5))
        forward = DForward(quadratic, real, fake, quadratic(real), quadratic(fake), None, torch.full((3,), 0.5))
        try:
            value = PENALTIES[name].compute(forward)
        except Exception as error:  # a user's penalty may raise anything
            message = (str(error).splitlines() or [""])[0]
            raise UsageError(f"penalties: {name} raises {type(error).__name__}: {message}") from error
        if not isinstance(value, Tensor) or value.shape != (3,):
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"penalties: {name} returns {found} for 3 images; it must return [3], per-sample penalties"
            )


def quadratic(images: Tensor, labels: object = None) -> Tensor:
    return images.square().sum((1, 2, 3))


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
