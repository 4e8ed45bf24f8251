"""BatchNorm over the minibatch of all processes (Ioffe & Szegedy 2015, Algorithm 1), on any device.

torch's SyncBatchNorm needs GPUs, and each of its forwards makes the host wait for the device: a process whose peer
hangs could then not report it. Here every process has the same number of images: no counts are exchanged, and what is
exchanged does not grow with the number of processes. On CUDA the kernels are SyncBatchNorm's.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def rows(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N * H * W, C], at least float32; no copy if channels-last, and fast to reduce on CPUs."""
    flat = images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])
    return flat if flat.dtype == torch.float64 else flat.float()


def per_channel(values: Tensor) -> Tensor:
    """[C] -> [1, C, 1, 1]"""
    return values[None, :, None, None]


def uses_cuda_kernels(x: Tensor) -> bool:
    """A compiled network takes the formulae, which the compiler fuses; it cannot trace SyncBatchNorm's kernels."""
    return x.is_cuda and not torch.compiler.is_compiling()


def local_stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, float32 [C], of this process's images."""
    if uses_cuda_kernels(x):
        mean, invstd = torch.batch_norm_stats(x, eps)
        return mean, invstd.pow(-2) - eps
    flat = rows(x)
    mean = flat.sum(0) / len(flat)
    return mean, (flat - mean).square().sum(0) / len(flat)


def normalize(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    if uses_cuda_kernels(x):
        return torch.batch_norm_elemt(x, weight, bias, mean, invstd, eps)
    scale = weight * invstd
    return torch.addcmul(per_channel(bias - mean * scale), x.to(scale.dtype), per_channel(scale)).to(x.dtype)


def gradient_sums(dy: Tensor, x: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over this process's images, float32 [C], of dy and of dy * (x - mean)."""
    if uses_cuda_kernels(x):
        sum_dy, sum_dy_xmu, _, _ = torch.batch_norm_backward_reduce(dy, x, mean, invstd, weight, True, False, False)
        return sum_dy, sum_dy_xmu
    flat = rows(dy)
    return flat.sum(0), (flat * (rows(x) - mean)).sum(0)


def input_gradient(
    dy: Tensor, x: Tensor, weight: Tensor, mean: Tensor, invstd: Tensor, sum_dy: Tensor, sum_dy_xmu: Tensor, count: int
) -> Tensor:
    """The gradient with respect to x; the sums are those of all processes, over `count` values per channel."""
    if uses_cuda_kernels(x):
        counts = torch.full((1,), count, dtype=torch.int32, device=x.device)
        return torch.batch_norm_backward_elemt(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts)
    # invstd * weight * (dy - mean(dy) - (x - mean) * invstd^2 * mean(dy * (x - mean))), as a * dy + b * x + c
    a = invstd * weight
    b = -a * invstd.square() * sum_dy_xmu / count
    c = -a * sum_dy / count - b * mean
    dx = torch.addcmul(per_channel(c), dy.to(a.dtype), per_channel(a))
    return dx.addcmul_(x.to(a.dtype), per_channel(b)).to(x.dtype)


class Normalize(torch.autograd.Function):
    """x [N, C, H, W] normalized with given statistics. Saves x in its own dtype for backward, and no float32 copy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, invstd)
        return normalize(x, weight, bias, mean, invstd, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, mean, invstd = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last if is_channels_last(x) else torch.contiguous_format)
        sum_dy, sum_dy_xmu = gradient_sums(dy, x, mean, invstd, weight)
        # DDP averages the gradients of weight and bias, as it does all parameters'
        weight_gradient = sum_dy_xmu * invstd
        bias_gradient = sum_dy
        sums = torch.stack([sum_dy, sum_dy_xmu])
        dist.all_reduce(sums)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        dx = input_gradient(dy, x, weight, mean, invstd, sums[0], sums[1], count)
        return dx, weight_gradient, bias_gradient, None, None, None


def is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose mean and variance in training are those of the images [N, C, H, W] of all processes.

    First derivatives only: a gradient penalty through it raises.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        x = input if is_channels_last(input) else input.contiguous()
        weight = self.weight if self.affine else torch.ones(self.num_features, device=x.device)
        bias = self.bias if self.affine else torch.zeros(self.num_features, device=x.device)
        mean, variance = self.global_stats(x.detach())
        invstd = torch.rsqrt(variance + self.eps)
        return Normalize.apply(x, weight, bias, mean, invstd, self.eps)  # pyright: ignore[reportCallIssue]

    @torch.no_grad()
    def global_stats(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over all processes, float32 [C]; updates the running statistics.

        One all-reduce, in float64: the difference of mean square and squared mean then loses nothing.
        """
        mean, variance = local_stats(x, self.eps)
        dtype = mean.dtype
        mean = mean.double()
        variance = variance.double()
        moments = torch.stack([mean, variance + mean.square()])
        dist.all_reduce(moments)
        mean, square = (moments / dist.get_world_size()).unbind()
        mean, variance = mean.to(dtype), (square - mean.square()).clamp(min=0).to(dtype)
        if self.track_running_stats:
            assert self.momentum is not None and self.running_mean is not None and self.running_var is not None
            assert self.num_batches_tracked is not None
            count = x.numel() // x.shape[1] * dist.get_world_size()
            momentum = self.momentum
            momentum = momentum.to(mean.dtype) if isinstance(momentum, Tensor) else momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), momentum)  # the unbiased estimate
            self.num_batches_tracked += 1
        return mean, variance


class TensorMomentumBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose momentum is a 0-dim tensor, so that a compiled or captured iteration reads its value."""

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training and self.track_running_stats):
            stats = self.running_mean, self.running_var
            return F.batch_norm(input, *stats, self.weight, self.bias, self.training, 0.0, self.eps)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        # those of this minibatch: with a momentum of 1 nothing is left of the zeros
        mean = torch.zeros_like(self.running_mean)
        variance = torch.zeros_like(self.running_var)
        output = F.batch_norm(input, mean, variance, self.weight, self.bias, True, 1.0, self.eps)
        assert isinstance(self.momentum, Tensor)
        momentum = self.momentum.to(mean.dtype)
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance, momentum)
            self.num_batches_tracked += 1
        return output


def convert(network: nn.Module, kind: type[nn.BatchNorm2d] = GlobalBatchNorm2d) -> nn.Module:
    """Replace every BatchNorm2d inside a network by one of `kind` with the same parameters and buffers."""
    for parent in list(network.modules()):
        for name, module in parent.named_children():
            if type(module) is nn.BatchNorm2d:
                new = kind(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
                for key, tensor in (*module.named_parameters(), *module.named_buffers()):
                    setattr(new, key, tensor)
                setattr(parent, name, new.train(module.training))
    return network


def use_tensor_momentum(network: nn.Module, device: torch.device) -> None:
    """Make the momentum of every BatchNorm2d that has one a 0-dim tensor of the same value; in place."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            momentum: Any = torch.full((), module.momentum, device=device)
            module.momentum = momentum


class RunningStatsWarmup:
    """Momentum schedule of BatchNorm's running statistics: max(momentum, 1 / (t + 1)) in iteration t, from 0.

    A cumulative average first, an exponential one later: the initial values (mean 0, variance 1) have no weight. With
    torch's momentum of 0.1 alone, the initial variance still has 43 % after eight iterations, and samples are grey.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        modules = [module for network in networks for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
        self.modules = [(module, float(module.momentum)) for module in modules if module.momentum is not None]
        self.share: float | None = None
        """That of an iteration's statistics in a cumulative average, when the momentum was set last."""

    def set_momentum(self, iteration: int) -> None:
        """Before the iteration's first forward; does not wait for the device."""
        share = max(1 / (iteration + 1), min((final for _, final in self.modules), default=1.0))
        if share == self.share:
            return
        self.share = share
        for module, final in self.modules:
            if isinstance(module.momentum, Tensor):
                module.momentum.fill_(max(final, share))
            else:
                module.momentum = max(final, share)


def uses_own_images(module: nn.Module) -> bool:
    """Whether it is a BatchNorm2d over the images of its own process."""
    return isinstance(module, nn.BatchNorm2d) and not isinstance(module, GlobalBatchNorm2d)


def average_running_stats(networks: Iterable[nn.Module], accelerator: Accelerator) -> None:
    """Average over processes the running statistics of each BatchNorm2d that uses its own process's images.

    After every iteration: a checkpoint then holds, and a resumed run starts from, the same on every process.
    """
    modules: list[Any] = [module for network in networks for module in network.modules() if uses_own_images(module)]
    buffers = [b for module in modules for b in (module.running_mean, module.running_var) if b is not None]
    if accelerator.num_processes == 1 or not buffers:
        return
    flat = accelerator.reduce(torch.cat([b.flatten() for b in buffers]), "mean")
    assert isinstance(flat, Tensor)
    for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))
