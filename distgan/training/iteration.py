"""One iteration on the device, from the minibatches to the averages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from distgan.distributed.batchnorm import average_running_stats
from distgan.gan.ema import EMA
from distgan.gan.parts import GAN, Batches, GPenalties, Penalties, Scalars
from distgan.gan.power_ema import PowerEMA
from distgan.gan.step import train_step
from distgan.training.finite import FiniteCheck
from distgan.training.scheduled import ScheduledValues


class Outcome(NamedTuple):
    """What an iteration leaves for the log, on the device."""

    scalars: Scalars
    norms: Tensor
    """[parameters of D and G], the norms of the weights before the iteration."""


@dataclass(frozen=True)
class Iteration:
    """Updates D and G, and averages what follows them: BatchNorm's running statistics, the EMA of G and its averages by
    power functions, running means of what penalties of G measure.

    All that changes from one iteration to the next are tensors on the device: the minibatches, the weights of
    penalties, and in `scheduled` the learning rates, the probability of augmentation and the weights of averages. The
    host is not waited for, so that what is called here can be captured.
    """

    gan: GAN
    ema: EMA | None
    scheduled: ScheduledValues
    finite_check: FiniteCheck
    accelerator: Accelerator
    power_emas: Sequence[PowerEMA] = ()

    def __call__(self, batches: Batches, penalties: Penalties, g_penalties: GPenalties) -> Outcome:
        norms = self.finite_check.param_norms()
        scalars = train_step(self.gan, batches, penalties, self.scheduled.p, g_penalties)
        scalars |= self.move_means(scalars, g_penalties)
        average_running_stats([self.gan.raw_G, self.gan.raw_D], self.accelerator)
        if self.ema:
            self.ema.update(self.gan.raw_G, self.scheduled.ema_weight)
        for average, weight in zip(self.power_emas, self.scheduled.power_weights, strict=True):
            average.update(self.gan.raw_G, weight)
        return Outcome(scalars, norms)

    def move_means(self, scalars: Scalars, g_penalties: GPenalties) -> Scalars:
        """Move the running means by what penalties of G measured on all processes; returns them in its place."""
        moved = {}
        for name, due in g_penalties.items():
            measured = self.accelerator.reduce(scalars[f"{name}_mean"], "mean")
            assert isinstance(measured, Tensor)
            due.mean.lerp_(measured.to(due.mean.dtype), 1 - due.penalty.decay)
            moved[f"{name}_mean"] = due.mean.clone()  # the next iteration moves the tensor itself
        return moved

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.gan.g_optimizer, self.gan.d_optimizer]

    def init_loss_scale(self) -> None:
        """fp16's loss scale is a tensor from its first use on."""
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.scale(torch.ones((), device=self.accelerator.device))

    def state(self) -> list[Tensor]:
        """The tensors that it changes: weights, buffers, averages, running means, optimizer state, loss scale."""
        networks = [self.gan.raw_G, self.gan.raw_D, *([self.ema.module] if self.ema else [])]
        networks += [average.module for average in self.power_emas]
        tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
        tensors += [penalty.mean for penalty in self.scheduled.g_penalties.values()]
        for optimizer in self.optimizers:
            tensors += [tensor for state in optimizer.state.values() for tensor in state.values()]
        scaler = self.accelerator.scaler
        if scaler is not None:
            tensors += [tensor for tensor in (scaler._scale, scaler._growth_tracker) if tensor is not None]
        return tensors
