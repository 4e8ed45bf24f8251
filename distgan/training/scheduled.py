"""The numbers of a run that change with the images seen, as 0-dim tensors on the device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from distgan.config.entries import PenaltyEntry, TermEntry
from distgan.config.keys import Config, OptimizerConfig
from distgan.distributed.batchnorm import RunningStatsWarmup
from distgan.gan.adam import TensorAdam
from distgan.gan.ema import EMA
from distgan.gan.finite_difference import FiniteDifference
from distgan.gan.g_penalties import G_PENALTIES
from distgan.gan.parts import GAN, WeightedGPenalty, WeightedPenalty
from distgan.gan.penalties import PENALTIES
from distgan.gan.power_ema import PowerEMA
from distgan.gan.schedules import adapt_probability, iterations_averaged, value_at
from distgan.gan.terms import WeightedTerm
from distgan.training.optimizers import lazy_factor, lr_factor


class ScheduledValues:
    """Learning rates, beta2, penalty weights, the probability of augmentation, BatchNorm's momentum.

    The tensors stay the same ones during a run and only their values change, so that an iteration that was compiled or
    captured once serves all of it. A tensor is filled without waiting for the device.
    """

    def __init__(
        self,
        config: Config,
        gan: GAN,
        device: torch.device,
        ema: EMA | None = None,
        power_emas: Sequence[PowerEMA] = (),
    ) -> None:
        self.config = config
        self.gan = gan
        self.ema = ema
        self.power_emas = power_emas
        self.running_stats = RunningStatsWarmup([gan.raw_G, gan.raw_D])
        self.penalties = weighted_penalties(config, device)
        self.g_penalties = weighted_g_penalties(config, device)
        self.lazy = {"g": lazy_factor(config.g_penalty_entries), "d": lazy_factor(config.penalty_entries)}
        """Of each network's optimizer, the correction for updates for penalties alone."""
        # the fused kernel of CUDA reads a learning rate in float32
        dtype = torch.float32 if device.type == "cuda" else exact_dtype(device)
        self.g_lr = torch.zeros((), dtype=dtype, device=device)
        self.d_lr = torch.zeros((), dtype=dtype, device=device)
        self.g_beta2 = torch.zeros((), dtype=exact_dtype(device), device=device)
        self.d_beta2 = torch.zeros_like(self.g_beta2)
        self.ema_weight: Tensor | float = torch.ones((), device=device) if config.graph else 1.0
        """The share of G's new weights in its EMA."""
        self.power_weights: list[Tensor | float] = [
            torch.ones((), device=device) if config.graph else 1.0 for _ in power_emas
        ]
        """Those in its averages by power functions."""
        self.p = torch.zeros((), dtype=exact_dtype(device), device=device)
        """Probability of augmentation."""
        self.values: dict[str, float] = {}
        """What the tensors were filled with, by name."""
        self.sign_sum = torch.zeros_like(self.p)
        """Sum over iterations of the means of sign(D(x)), since an adaptive `p` moved last."""

    def set(self, images_seen: int) -> None:
        """Take the values of the iteration that begins at `images_seen`."""
        self.running_stats.set_momentum(images_seen // self.config.iteration_images)
        self.set_optimizer("g", self.gan.g_optimizer, self.config.g_optimizer, images_seen)
        self.set_optimizer("d", self.gan.d_optimizer, self.config.d_optimizer, images_seen)
        self.set_ema_weights(images_seen)
        self.set_weights(self.config.penalty_entries, self.penalties, images_seen)
        self.set_weights(self.config.g_penalty_entries, self.g_penalties, images_seen)
        self.set_weights(self.config.term_entries, self.gan.terms, images_seen)
        if self.config.adaptive_p is None:
            self.fill("augment_p", self.p, value_at(self.config.augment_p, images_seen))

    def set_weights(
        self,
        entries: Mapping[str, PenaltyEntry] | Mapping[str, TermEntry],
        weighted: Mapping[str, WeightedPenalty] | Mapping[str, WeightedGPenalty] | Mapping[str, WeightedTerm],
        images_seen: int,
    ) -> None:
        """Give penalties or terms their weights."""
        for name, entry in entries.items():
            weight = weighted[name].weight
            assert isinstance(weight, Tensor)
            self.fill(f"{name}_weight", weight, value_at(entry.weight, images_seen))

    def set_optimizer(
        self, network: str, optimizer: torch.optim.Optimizer, keys: OptimizerConfig, images_seen: int
    ) -> None:
        """Give the optimizer of a network ("g" or "d") its learning rate, a tensor, and its betas."""
        lazy = self.lazy[network]
        lr = getattr(self, f"{network}_lr")
        raw_network = self.gan.raw_G if network == "g" else self.gan.raw_D
        self.fill(f"{network}_lr", lr, value_at(keys.lr, images_seen) * lr_factor(raw_network, keys) * lazy)
        number = float(value_at(keys.betas[1], images_seen) ** lazy)
        beta2: Tensor | float = number
        if isinstance(getattr(optimizer, "optimizer", optimizer), TensorAdam):
            tensor = getattr(self, f"{network}_beta2")
            self.fill(f"{network}_beta2", tensor, number)
            beta2 = tensor
        for group in optimizer.param_groups:
            group["lr"] = lr  # an optimizer that was loaded has a copy
            group["betas"] = (keys.betas[0] ** lazy, beta2)

    def set_ema_weights(self, images_seen: int) -> None:
        """Give the averages of G the shares of its new weights."""
        if self.ema is not None:
            self.ema_weight = self.averaging_weight("ema_weight", self.ema_weight, self.ema, images_seen)
        for i, average in enumerate(self.power_emas):
            name = f"power_weight_{average.width}"
            self.power_weights[i] = self.averaging_weight(name, self.power_weights[i], average, images_seen)

    def averaging_weight(
        self, name: str, weight: Tensor | float, average: EMA | PowerEMA, images_seen: int
    ) -> Tensor | float:
        """The share of G's new weights in an average; `weight` itself, filled, where it is a tensor."""
        value = average.weight(self.config.iteration_images, images_seen)
        if not isinstance(weight, Tensor):
            return value
        self.fill(name, weight, value)
        return weight

    def fill(self, name: str, tensor: Tensor, value: float) -> None:
        """Fill a tensor, unless it has the value: most are constant, and each fill is a kernel of every iteration."""
        if self.values.get(name) != value:
            tensor.fill_(value)
            self.values[name] = value

    def penalties_due(self, images_seen: int) -> dict[str, WeightedPenalty]:
        """The penalties of D in the iteration that begins at `images_seen`."""
        iteration = images_seen // self.config.iteration_images
        return {name: penalty for name, penalty in self.penalties.items() if iteration % penalty.every == 0}

    def g_penalties_due(self, images_seen: int) -> dict[str, WeightedGPenalty]:
        """Those of G."""
        iteration = images_seen // self.config.iteration_images
        return {name: penalty for name, penalty in self.g_penalties.items() if iteration % penalty.every == 0}

    def updates(self, images_seen: int) -> int:
        """Steps of both optimizers in the iteration that begins at `images_seen`."""
        of_d = 1 + any(due.separate for due in self.penalties_due(images_seen).values())
        of_g = 1 + any(due.separate for due in self.g_penalties_due(images_seen).values())
        return of_d * self.config.n_critic + of_g

    def adapt(self, sign: Tensor, images_seen: int) -> None:
        """Move an adaptive `p` after the iteration that began at `images_seen`; does not wait for the device.

        `sign` is the mean of sign(D(x)) over the real images of all processes.
        """
        rule = self.config.adaptive_p
        assert rule is not None, "called for an adaptive p only"
        self.sign_sum += sign
        averaged = iterations_averaged(self.config.iteration_images)
        iteration = images_seen // self.config.iteration_images
        if (iteration + 1) % averaged:
            return
        step = averaged * self.config.iteration_images
        mean = self.sign_sum / averaged
        self.p.copy_(adapt_probability(self.p, mean, target=rule.target, images=rule.images, step=step))
        self.sign_sum.zero_()

    def logged(self, images_seen: int) -> dict[str, float]:
        """The values of schedules of penalties and augmentation after `images_seen` images, by name; waits."""
        entries = self.config.penalty_entries | self.config.g_penalty_entries | self.config.term_entries
        values = {f"{name}_weight": entry.weight for name, entry in entries.items()}
        if self.config.adaptive_p is None:
            values["augment_p"] = self.config.augment_p
        scheduled = {name: value_at(value, images_seen) for name, value in values.items() if isinstance(value, dict)}
        return scheduled if self.config.adaptive_p is None else {"augment_p": float(self.p), **scheduled}

    def state(self) -> dict[str, Any]:
        """What resumes: an adaptive `p`, what has been seen since it moved, running means; waits for the device."""
        p = 0.0 if self.config.adaptive_p is None else float(self.p)
        means = {name: float(penalty.mean) for name, penalty in self.g_penalties.items()}
        return {"augment_p": p, "augment_sign": float(self.sign_sum), "g_penalty_means": means}

    def load_state(self, augment_p: float, augment_sign: float, g_penalty_means: Mapping[str, float]) -> None:
        """Restore an adaptive `p`, any other is a function of the images seen, and the running means of penalties of G,
        which are 0 where the checkpoint has none."""
        if self.config.adaptive_p is not None:
            self.p.fill_(augment_p)
            self.sign_sum.fill_(augment_sign)
        for name, penalty in self.g_penalties.items():
            penalty.mean.fill_(g_penalty_means.get(name, 0.0))


def weighted_penalties(config: Config, device: torch.device) -> dict[str, WeightedPenalty]:
    """The penalties of D by name, with their weights at the start of a run as float32 tensors."""
    penalties = {}
    for name, entry in config.penalty_entries.items():
        weight = torch.full((), value_at(entry.weight, 0), dtype=torch.float32, device=device)
        difference = FiniteDifference(entry.sigma or FiniteDifference().sigma, entry.stride)
        penalties[name] = WeightedPenalty(PENALTIES[name], weight, entry.every, difference, entry.separate)
    return penalties


def weighted_g_penalties(config: Config, device: torch.device) -> dict[str, WeightedGPenalty]:
    """Those of G, with their running means, 0."""
    penalties = {}
    for name, entry in config.g_penalty_entries.items():
        weight = torch.full((), value_at(entry.weight, 0), dtype=torch.float32, device=device)
        mean = torch.zeros((), device=device)
        options = entry.every, entry.separate, entry.stride
        penalties[name] = WeightedGPenalty(G_PENALTIES[name], weight, mean, *options)
    return penalties


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device has it: a number of the configuration is not rounded."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32
