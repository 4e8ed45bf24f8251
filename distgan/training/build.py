"""What a run is built from: its data, its networks and optimizers, on every process."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

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
from distgan.distributed.gradients import GradientAverage
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.frozen.vae import open_decoder
from distgan.frozen.vision import FrozenNetwork
from distgan.gan.adam import TensorAdam
from distgan.gan.augment import Pipeline
from distgan.gan.ema import EMA
from distgan.gan.levels import View
from distgan.gan.losses import LOSSES
from distgan.gan.penalties import PENALTIES
from distgan.gan.schedules import value_at
from distgan.gan.step import GAN, unaugmented
from distgan.gan.terms import TERMS, WeightedTerm
from distgan.gan.truncation import check_truncation
from distgan.models import example_labels
from distgan.models.transformer import twice_differentiable
from distgan.pixels import check_show
from distgan.samples import SampleSpec
from distgan.training.checks import (
    check_compile,
    check_config,
    check_d,
    check_graph,
    check_loss,
    check_networks,
    check_penalties,
    check_stages,
    check_widths,
)
from distgan.training.compiled import compiler
from distgan.training.frozen_features import (
    check_features,
    check_images,
    check_terms,
    frozen_features,
    model_options,
    open_network,
    reads_pixels,
)
from distgan.training.noise_checks import check_perturbed_d, check_shares


@dataclass(frozen=True)
class Data:
    """The dataset of a run, as one of its processes reads it."""

    dataset: ShardSet
    reader: Reader
    order: Lanes
    spec: SampleSpec
    """Of the images; without classes unless G and D are conditioned on them."""
    decoder: nn.Module = nn.Identity()
    """Makes images of samples as networks see them: `distgan.frozen.vae.open_decoder`."""
    network: FrozenNetwork | None = None
    """That of a term, which sees the real images."""

    @property
    def networks(self) -> dict[str, str]:
        """The sha256 of the weights of frozen networks, by the key of the configuration that names them."""
        return {} if self.network is None else {self.network.key: self.network.sha256}

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint's weights say of the samples that G makes."""
        kind = {name: value for name, value in asdict(self.spec).items() if name != "num_classes"}
        if kind["latents"] is None:  # as in the files of versions without latents
            del kind["latents"]
        names = [each.name for each in self.dataset.classes] if self.spec.num_classes else []
        return {"classes": names, **kind}


def build(config: Config, processes: Distributed) -> tuple[Data, GAN]:
    """The data, the networks and their optimizers. Raises UsageError; writes nothing."""
    check_config(config)
    check_graph(config, processes.device)
    check_loss(config.loss)
    check_penalties(config.penalties)
    check_terms(config)
    data = open_data(config, processes)
    check_show(config.samples.show, data.spec.pixels.channels, "samples.show")
    return data, build_gan(config, processes, data.spec, data.network)


def open_data(config: Config, processes: Distributed) -> Data:
    """The dataset, and this process's lanes of it. Raises UsageError."""
    dataset, order = processes.run_on_all(lambda: open_lanes(config, processes.rank, processes.world_size))
    processes.check_same_on_all_ranks(f"the manifest of {config.data.shards}", dataset.digest)
    pin = processes.device.type == "cuda"
    reader = Reader(
        dataset,
        decoder=config.data.decoder,
        skip_bad=config.data.skip_bad,
        allocate=lambda shape, dtype: torch.empty(shape, dtype=getattr(torch, dtype), pin_memory=pin),
        images=reads_pixels(config, dataset.spec),
    )
    spec = dataset.spec if config.data.labels else dataset.spec.unconditional()
    decoder = processes.run_on_all(lambda: open_decoder(spec, config.data.vae, processes.device))
    network = processes.run_on_all(lambda: open_network(config, processes.device))
    if network is not None:
        processes.check_same_on_all_ranks(f"the weights at {network.key}", network.sha256)
    return Data(dataset, reader, order, spec, decoder, network)


def open_lanes(config: Config, rank: int, world_size: int) -> tuple[ShardSet, Lanes]:
    """The dataset, and the lanes of a process. Raises UsageError."""
    data = config.data
    share = config.batch // world_size
    if config.micro_batch and share % config.micro_batch:
        raise UsageError(f"micro_batch: {config.micro_batch} does not divide the {share} images of a process")
    storage = open_storage(data.shards, data.cache_dir, data.cache_gb, data.fetch_ahead, data.fetch_threads)
    dataset = open_shardset(storage, data.shards)
    if rank == 0:
        check_complete(dataset, data.shards)
    if data.labels and len(dataset.classes) < 2 and not dataset.spec.conditions:
        found = f"{len(dataset.classes)} class" if dataset.classes else "no labels"
        raise UsageError(
            f"data.labels: {data.shards} has {found}; set data.labels false, or make a dataset with labels"
        )
    check_decoder(data.decoder, dataset.encoding)
    latents = dataset.spec.latents
    if data.flip and latents is not None and not latents.flips:
        fix = "encode the dataset again with --flips, or set data.flip false"
        raise UsageError(f"data.flip: {data.shards} has no latents of flipped images; {fix}")
    check_images(config, dataset)
    lanes = data.lanes or default_lanes(config.batch, int(dataset.counts.sum()))
    rank_rows(config.batch, lanes, rank, world_size)  # raises UsageError if the processes do not divide the lanes
    check_shares(config, lanes, world_size)
    order = Lanes(dataset.counts, config.seed, lanes, rank * lanes // world_size, (rank + 1) * lanes // world_size)
    check_cache(dataset, order, images_in_flight(config.batch, data.threads))
    return dataset, order


def check_complete(dataset: ShardSet, address: str) -> None:
    """Raises UsageError unless all files of the dataset are there."""
    dataset.check_index()
    if missing := dataset.missing():
        more = f" and {len(missing) - 1} more shards" if len(missing) > 1 else ""
        raise UsageError(
            f"data.shards: {address} lacks {missing[0]}{more}; restore the missing files, or re-create the dataset"
        )


def build_gan(config: Config, processes: Distributed, spec: SampleSpec, network: FrozenNetwork | None) -> GAN:
    """The networks on their device, with their optimizers, prepared by Accelerate. Raises UsageError.

    `network` is the frozen one of a term.
    """
    accelerator = processes.accelerator
    raw_G, raw_D = build_networks(config, processes, spec, network)
    g_optimizer = accelerator.prepare(adam(raw_G, config.g_optimizer, config.graph))
    d_optimizer = accelerator.prepare(adam(raw_D, config.d_optimizer, config.graph))
    G, D = wrap(config, processes, raw_G, raw_D, spec)
    average = processes.world_size > 1 and not uses_ddp(config)
    view = build_view(config, raw_D)
    more: dict[str, Any] = {"average_g": GradientAverage(raw_G), "average_d": GradientAverage(raw_D)} if average else {}
    if config.compile:
        more["compile"] = compiler(config.deterministic)
    return GAN(
        G=G,
        D=D,
        raw_G=raw_G,
        raw_D=raw_D,
        g_optimizer=g_optimizer,
        d_optimizer=d_optimizer,
        loss=LOSSES[config.loss],
        augment=view if view.columns else unaugmented,
        terms=weighted_terms(config, processes.device),
        frozen_features=frozen_features(raw_D, network, view.augment, lambda: accelerator.autocast()),
        backward=accelerator.backward,
        no_sync=accelerator.no_sync,
        clip_g=clipper(processes, G, g_optimizer, config.g_optimizer.clip),
        clip_d=clipper(processes, D, d_optimizer, config.d_optimizer.clip),
        **more,
    )


def uses_ddp(config: Config) -> bool:
    """Whether DDP averages gradients: its hooks are neither compiled nor captured."""
    return not (config.compile or config.graph)


def wrap(
    config: Config, processes: Distributed, raw_G: nn.Module, raw_D: nn.Module, spec: SampleSpec
) -> tuple[nn.Module, nn.Module]:
    """G and D as Accelerate prepares them: for mixed precision, and for DDP where it is used."""
    accelerator = processes.accelerator
    if not uses_ddp(config):
        # "evaluation mode" leaves out DDP and nothing else
        G, D = (accelerator.prepare_model(network, evaluation_mode=True) for network in (raw_G, raw_D))
        return G, D
    G, D = accelerator.prepare(raw_G, raw_D)
    n = config.micro_batch or config.batch // processes.world_size
    labels = example_labels(spec, n, processes.device)
    processes.prepare_ddp(G, torch.zeros(n, config.model.latent, device=processes.device), labels)
    processes.prepare_ddp(D, torch.zeros(n, *spec.shape, device=processes.device), labels)
    return G, D


def build_networks(
    config: Config, processes: Distributed, spec: SampleSpec, frozen: FrozenNetwork | None
) -> tuple[nn.Module, nn.Module]:
    """G and D on their device, before they are wrapped; D goes with the network `frozen`. Raises UsageError."""
    model = config.model
    options = model_options(config, frozen)
    G, D = models.build(model.name, spec, z_dim=model.latent, options=options, seed=config.seed)
    check_d(config, D)
    if any(PENALTIES[name].differentiates for name in config.penalties):
        twice_differentiable(D)
    if config.compile:
        check_compile(G, D)
    if config.sync_batchnorm and processes.world_size > 1:
        G, D = (batchnorm.convert(network, batchnorm.GlobalBatchNorm2d) for network in (G, D))
    if config.compile or config.graph:
        G, D = (batchnorm.convert(network, batchnorm.TensorMomentumBatchNorm2d) for network in (G, D))
        for network in (G, D):
            batchnorm.use_tensor_momentum(network, processes.device)
    if config.channels_last:
        G, D = (network.to(memory_format=torch.channels_last) for network in (G, D))  # type: ignore[call-overload]
    G, D = G.to(processes.device), D.to(processes.device)
    check_networks(G, D, spec, z_dim=model.latent)
    check_stages(config, G, D, spec)
    check_features(config, D, spec, frozen)
    check_widths(config, G, D)
    check_perturbed_d(config, D, spec)
    check_truncation(G, config.evaluate.truncation_psi, "evaluate.truncation_psi")
    return G, D


def clipper(
    processes: Distributed, network: nn.Module, optimizer: torch.optim.Optimizer, limit: float
) -> Callable[[], Tensor | None]:
    """Clips the network's gradient to a norm of `limit`, 0: not at all; returns the norm it had.

    None under a loss scale, where the norm is infinite if the scale was too large, which is no fault.
    """
    accelerator = processes.accelerator

    def clip() -> Tensor | None:
        if accelerator.scaler is not None and not limit:
            return None
        accelerator.unscale_gradients(optimizer)
        norm = nn.utils.clip_grad_norm_(network.parameters(), limit or math.inf)
        return None if accelerator.scaler is not None else norm

    return clip


def build_view(config: Config, D: nn.Module) -> View:
    """What D, without its wrapper, sees of images: the augmentations in order, then its noise levels."""
    augment = Pipeline([(entry.name, entry.factor) for entry in config.augment_entries])
    return View(augment, getattr(D, "noise_levels", ()))


def weighted_terms(config: Config, device: torch.device) -> dict[str, WeightedTerm]:
    """The terms by name, with their weights at the start of a run as float32 tensors."""
    return {
        name: WeightedTerm(TERMS[name], torch.full((), value_at(entry.weight, 0), dtype=torch.float32, device=device))
        for name, entry in config.term_entries.items()
    }


def has_own_minibatch(config: Config) -> bool:
    """Whether G is updated on latents and real images of its own: by default with a paired loss."""
    return LOSSES[config.loss].paired if config.g_minibatch is None else config.g_minibatch == "next"


def build_ema(config: Config, gan: GAN) -> EMA | None:
    """The EMA of G, or None if the run has none."""
    half_life = config.ema.half_life_images
    return EMA(gan.raw_G, half_life, config.ema.warmup) if half_life else None


def parameter_counts(gan: GAN) -> str:
    """The parameters of G and of D, in millions."""
    networks = {"G": gan.raw_G, "D": gan.raw_D}
    return ", ".join(f"{name} {models.count_parameters(network) / 1e6:.2f} M" for name, network in networks.items())


def lr_factor(network: nn.Module, config: OptimizerConfig) -> float:
    """What the learning rate is multiplied by for the width of a network, without its wrapper."""
    return config.base_width / int(getattr(network, "width", 0)) if config.base_width else 1.0


def adam(network: nn.Module, config: OptimizerConfig, graph: bool = False) -> torch.optim.Adam:
    """Adam with the fused kernel; in a captured iteration, with a beta2 that changes, one that reads it as a tensor."""
    scheduled_beta2 = isinstance(config.betas[1], dict)
    kind = TensorAdam if graph and scheduled_beta2 else torch.optim.Adam
    fused = kind is not TensorAdam and next(network.parameters()).device.type in ("cuda", "cpu")
    return kind(
        network.parameters(),
        lr=value_at(config.lr, 0) * lr_factor(network, config),
        betas=(float(config.betas[0]), value_at(config.betas[1], 0)),
        eps=float(config.eps),
        weight_decay=float(config.weight_decay),
        decoupled_weight_decay=config.decoupled,
        fused=fused,
        capturable=graph,
    )
