"""What a run is built from: its data, its networks and optimizers, on every process."""

from typing import Any

import torch
from torch import nn

from distgan import models
from distgan.config.keys import Config
from distgan.distributed import batchnorm
from distgan.distributed.gradients import GradientAverage
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.frozen.vision import FrozenNetwork
from distgan.gan.augment import Pipeline
from distgan.gan.ema import EMA
from distgan.gan.levels import View
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, unaugmented
from distgan.gan.penalties import PENALTIES
from distgan.gan.power_ema import PowerEMA
from distgan.gan.schedules import value_at
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
from distgan.training.data import Data, open_data
from distgan.training.freeze import check_freeze, freeze_layers
from distgan.training.frozen_features import (
    check_features,
    check_terms,
    frozen_features,
    model_options,
)
from distgan.training.noise_checks import check_groups, check_perturbed_d
from distgan.training.optimizers import adam, clipper, lazy_factor
from distgan.training.penalty_checks import check_g_penalties, check_penalized_g
from distgan.training.transfer import Architecture
from distgan.training.warm_start import WarmStart


def build(config: Config, processes: Distributed, start: WarmStart | None = None) -> tuple[Data, GAN]:
    """The data, the networks and their optimizers. Raises UsageError; writes nothing.

    `start` are the weights that a run of `init_from` begins with.
    """
    check_config(config)
    check_graph(config, processes.device)
    check_loss(config.loss)
    check_penalties(config.penalties)
    check_g_penalties(config.g_penalties)
    check_terms(config)
    check_freeze(config)
    data = open_data(config, processes)
    check_show(config.samples.show, data.spec.pixels.channels, "samples.show")
    gan = build_gan(config, processes, data, start)
    check_groups(config, gan.raw_D, data.order.lanes, processes.world_size)
    return data, gan


def build_gan(config: Config, processes: Distributed, data: Data, start: WarmStart | None) -> GAN:
    """The networks on their device, with their optimizers, prepared by Accelerate. Raises UsageError."""
    accelerator = processes.accelerator
    spec = data.spec
    network = data.network
    raw_G, raw_D = build_networks(config, processes, spec, network)
    if start is not None:
        model = config.model
        own = Architecture(model.name, model.latent, model_options(config, network), spec, data.class_names)
        processes.run_on_all(lambda: start.init_networks(raw_G, raw_D, own))
    g_lazy = lazy_factor(config.g_penalty_entries)
    d_lazy = lazy_factor(config.penalty_entries)
    g_optimizer = accelerator.prepare(adam(raw_G, config.g_optimizer, config.graph, g_lazy))
    d_optimizer = accelerator.prepare(adam(raw_D, config.d_optimizer, config.graph, d_lazy))
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
    G, D = init_networks(config, spec, frozen)
    check_d(config, D)
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
    check_networks(G, D, spec, z_dim=config.model.latent)
    check_stages(config, G, D, spec)
    check_features(config, D, spec, frozen)
    check_widths(config, G, D)
    check_perturbed_d(config, D, spec)
    check_penalized_g(config, G, spec)
    check_truncation(G, config.evaluate.truncation_psi, "evaluate.truncation_psi")
    if getattr(G, "w_mean", None) is not None:
        raise UsageError(
            "model.options.w_mean: it is of converted networks, and training does not update it; leave it out"
        )
    return G, D


def init_networks(config: Config, spec: SampleSpec, frozen: FrozenNetwork | None) -> tuple[nn.Module, nn.Module]:
    """G and D with their initial weights, on the default device. Raises UsageError."""
    model = config.model
    options = model_options(config, frozen)
    G, D = models.build(model.name, spec, z_dim=model.latent, options=options, seed=config.seed)
    if any(PENALTIES[name].differentiates for name in config.penalties):
        twice_differentiable(D)
    freeze_layers(D, config.freeze_d)
    if config.g_penalties:
        twice_differentiable(G)
    return G, D


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


def build_ema(config: Config, gan: GAN, start: WarmStart | None = None) -> EMA | None:
    """The EMA of G, with the weights that a run of `init_from` begins with, or None if the run has none."""
    half_life = config.ema.half_life_images
    if not half_life:
        return None
    ema = EMA(gan.raw_G, half_life, config.ema.warmup)
    if start is not None:
        start.init_ema(ema.module)
    return ema


def build_power_emas(config: Config, gan: GAN) -> list[PowerEMA]:
    """The averages of G by power functions, one for each width."""
    return [PowerEMA(gan.raw_G, width) for width in config.ema.power_widths]


def parameter_counts(gan: GAN) -> str:
    """The parameters of G and of D, in millions."""
    networks = {"G": gan.raw_G, "D": gan.raw_D}
    return ", ".join(f"{name} {models.count_parameters(network) / 1e6:.2f} M" for name, network in networks.items())
