"""BatchNorm over the minibatch of all processes (Ioffe & Szegedy 2015, Algorithm 1), on any device.

torch's SyncBatchNorm needs GPUs, and each of its forwards makes the host wait for the device: a process whose peer
hangs could then not report it. Here every process has the same number of images, so that no counts are exchanged.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn


def all_gather(local: Tensor) -> Tensor:
    """[...] of each process -> [world_size, ...], by rank; differentiable."""
    # Imported with the first process group: it brings in torch's compiler, which takes a second.
    from torch.distributed.nn.functional import all_reduce

    gathered = local.new_zeros(dist.get_world_size(), *local.shape)
    gathered[dist.get_rank()] = local
    return all_reduce(gathered)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose mean and variance in training are those of the images [N, C, H, W] of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        n, c, h, w = input.shape
        x = input.permute(0, 2, 3, 1).reshape(-1, c)  # no copy if channels-last; four times as fast on CPUs
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        mean = x.sum(0) / len(x)
        variance = (x - mean.detach()).square().sum(0) / len(x)  # its derivative with respect to the mean is 0
        means, variances = all_gather(torch.stack([mean, variance])).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + means.var(0, correction=0)
        self.update_running_stats(mean.detach(), variance.detach(), dist.get_world_size() * len(x))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        y = torch.addcmul(self.bias - mean * scale, x, scale).to(input.dtype)
        return y.view(n, h, w, c).permute(0, 3, 1, 2)

    @torch.no_grad()
    def update_running_stats(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """As nn.BatchNorm2d does, with the unbiased estimate of the variance."""
        assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
        self.num_batches_tracked += 1


def convert(network: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d inside a network by a GlobalBatchNorm2d with the same parameters and buffers."""
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if type(module) is nn.BatchNorm2d:
                new = GlobalBatchNorm2d(module.num_features, module.eps, module.momentum)
                for key, tensor in (*module.named_parameters(), *module.named_buffers()):
                    setattr(new, key, tensor)
                setattr(parent, name, new.train(module.training))
    return network


class RunningStatsWarmup:
    """Lets the running statistics of BatchNorm forget their initial values (mean 0, variance 1) at once.

    The momentum of iteration t, from 0, is at least 1 / (t + 1): the first statistics are averaged with equal weights.
    With torch's 0.1 alone, 43 % of the variance that a network samples with after eight iterations is the initial 1,
    and its images are grey.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        modules = [module for network in networks for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        self.modules = [(module, module.momentum) for module in modules if module.momentum is not None]

    def set_momentum(self, iteration: int) -> None:
        """Before the iteration's first forward."""
        for module, momentum in self.modules:
            module.momentum = max(momentum, 1 / (iteration + 1))


def average_running_stats(networks: Iterable[nn.Module], accelerator: Accelerator) -> None:
    """Average over processes the running statistics of each BatchNorm2d that uses its own process's images.

    After every iteration: a checkpoint then holds, and a resumed run starts from, the same on every process.
    """
    modules = [module for network in networks for module in network.modules() if type(module) is nn.BatchNorm2d]
    buffers = [b for module in modules for b in (module.running_mean, module.running_var) if b is not None]
    if accelerator.num_processes == 1 or not buffers:
        return
    flat = accelerator.reduce(torch.cat([b.flatten() for b in buffers]), "mean")
    assert isinstance(flat, Tensor)
    for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
