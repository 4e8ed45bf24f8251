"""One iteration on the device, from the minibatches to the averages."""

from dataclasses import dataclass
from typing import NamedTuple

from accelerate import Accelerator
from torch import Tensor

from distgan.distributed.batchnorm import average_running_stats
from distgan.gan.ema import EMA
from distgan.gan.step import GAN, Batches, Penalties, Scalars, train_step
from distgan.training.finite import FiniteCheck
from distgan.training.scheduled import ScheduledValues


class Outcome(NamedTuple):
    """What an iteration leaves for the log, on the device."""

    scalars: Scalars
    norms: Tensor
    """[parameters of D and G], the norms of the weights before the iteration."""


@dataclass(frozen=True)
class Iteration:
    """Updates D and G, and averages what follows them: BatchNorm's running statistics, the EMA of G.

    All that changes from one iteration to the next are tensors on the device: the minibatches, the weights of
    `penalties`, and in `scheduled` the learning rates, the probability of augmentation and the weight of the EMA. The
    host is not waited for, so that what is called here can be captured.
    """

    gan: GAN
    ema: EMA | None
    scheduled: ScheduledValues
    finite_check: FiniteCheck
    accelerator: Accelerator

    def __call__(self, batches: Batches, penalties: Penalties) -> Outcome:
        norms = self.finite_check.param_norms()
        scalars = train_step(self.gan, batches, penalties, self.scheduled.p)
        average_running_stats([self.gan.raw_G, self.gan.raw_D], self.accelerator)
        if self.ema:
            self.ema.update(self.gan.raw_G, self.scheduled.ema_weight)
        return Outcome(scalars, norms)

    def state(self) -> list[Tensor]:
        """The tensors that it changes, without the optimizers' state."""
        networks = [self.gan.raw_G, self.gan.raw_D, *([self.ema.module] if self.ema else [])]
        return [tensor for network in networks for tensor in network.state_dict().values()]
