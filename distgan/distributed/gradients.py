"""Gradients averaged over processes after the backward pass, where DDP's hooks cannot be compiled or captured."""
# pyright: reportPrivateImportUsage=false

import torch
import torch.distributed as dist
from torch import nn


class GradientAverage:
    """Averages the gradients of a network over processes: one all-reduce of all of them together.

    DDP reduces its buckets during the backward pass, by hooks that a captured iteration would not replay; a compiled
    backward pass returns all gradients at its end, so that nothing is left to overlap with.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        # one buffer, and a view of it for each gradient in the memory format of its parameter
        sizes = [parameter.numel() for parameter in self.parameters]
        first = self.parameters[0]
        self.flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        parts = self.flat.split(sizes)
        self.views = [
            part.as_strided(p.shape, p.stride(), part.storage_offset())
            for part, p in zip(parts, self.parameters, strict=True)
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        """In place; does not wait for the device."""
        pairs = [(view, p.grad) for view, p in zip(self.views, self.parameters, strict=True) if p.grad is not None]
        views = [view for view, _ in pairs]
        gradients = [gradient for _, gradient in pairs]
        torch._foreach_copy_(views, gradients)
        dist.all_reduce(self.flat)
        self.flat /= dist.get_world_size()
        torch._foreach_copy_(gradients, views)
