"""The optimizers of a run, with their learning rates by width and their clipping."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from distgan.config.entries import PenaltyEntry, separate_interval
from distgan.config.keys import OptimizerConfig
from distgan.distributed.processes import Distributed
from distgan.gan.adam import TensorAdam
from distgan.gan.schedules import value_at


def adam(network: nn.Module, config: OptimizerConfig, graph: bool = False, lazy: float = 1.0) -> torch.optim.Adam:
    """Adam of the parameters that are not frozen, with the fused kernel; in a captured iteration, with a beta2 that
    changes, one that reads it as a tensor.

    `lazy` is the network's `lazy_factor`.
    """
    scheduled_beta2 = isinstance(config.betas[1], dict)
    kind = TensorAdam if graph and scheduled_beta2 else torch.optim.Adam
    fused = kind is not TensorAdam and next(network.parameters()).device.type in ("cuda", "cpu")
    return kind(
        [parameter for parameter in network.parameters() if parameter.requires_grad],
        lr=value_at(config.lr, 0) * lr_factor(network, config) * lazy,
        betas=(float(config.betas[0]) ** lazy, value_at(config.betas[1], 0) ** lazy),
        eps=float(config.eps),
        weight_decay=float(config.weight_decay),
        decoupled_weight_decay=config.decoupled,
        fused=fused,
        capturable=graph,
    )


def lr_factor(network: nn.Module, config: OptimizerConfig) -> float:
    """What the learning rate is multiplied by for the width of a network, without its wrapper."""
    return config.base_width / int(getattr(network, "width", 0)) if config.base_width else 1.0


def lazy_factor(penalties: Mapping[str, PenaltyEntry]) -> float:
    """c = N / (N + 1) of a network whose separate penalties are due every N iterations; 1 if it has none.

    Its optimizer makes N + 1 updates in N iterations, and takes c * lr, beta1^c and beta2^c in place of lr, beta1 and
    beta2 (Karras et al. 2020, arXiv 1912.04958, appendix B, lazy regularization).
    """
    every = separate_interval(penalties)
    return every / (every + 1) if every > 1 else 1.0


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
