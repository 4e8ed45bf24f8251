"""Watches over a run: numbers that are no numbers, and processes whose weights drifted apart."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

NAMES = ("d_loss", "d_real", "d_fake", "g_loss")


class Watched(NamedTuple):
    """What one iteration left, on its way to host memory."""

    images: int
    scalars: Tensor
    """[4], in the order of NAMES"""
    norms: Tensor
    """[parameters of D and G], the norms of the weights that the iteration began with"""
    ready: torch.cuda.Event | None


class Guard:
    """Names the first iteration whose losses are not finite, without making the host wait for a GPU.

    An iteration's scalars are copied to host memory behind it and looked at when they have arrived: at once on a
    CPU, an iteration or two later on a GPU. Weights and gradients that are not finite show in the next losses.
    """

    def __init__(self, D: nn.Module, G: nn.Module) -> None:
        named = [(f"D.{name}", p) for name, p in D.named_parameters()]
        named += [(f"G.{name}", p) for name, p in G.named_parameters()]
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        self.watched: deque[Watched] = deque()
        self.fault: str | None = None
        """What was found, in a sentence."""

    @torch.no_grad()
    def before(self) -> Tensor:
        """The norms of the weights; taken before an iteration."""
        norms = torch._foreach_norm(self.parameters)  # pyright: ignore[reportPrivateImportUsage] - one kernel for all
        return torch.stack(list(norms))

    def after(self, norms: Tensor, scalars: dict[str, Tensor], images: int) -> None:
        """Watch an iteration that took the run to `images`."""
        values = torch.stack([scalars[name] for name in NAMES])
        ready = None
        if values.is_cuda:
            values, norms = values.to("cpu", non_blocking=True), norms.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self.watched.append(Watched(images, values, norms, ready))
        self.look()

    def weights(self, images: int) -> None:
        """Judge all that was watched, and the weights as they are now; waits for the device."""
        self.look(wait=True)
        bad = self.culprits(self.before().cpu())
        if bad and self.fault is None:
            self.fault = f"at image {images:,} {bad} are not finite"

    def culprits(self, norms: Tensor) -> str:
        """The weights whose norms are not finite, in words; empty where all are."""
        sound = torch.isfinite(norms).tolist()
        bad = [name for name, finite in zip(self.names, sound, strict=True) if not finite]
        return f"the weights of {bad[0]}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "") if bad else ""

    def look(self, wait: bool = False) -> None:
        """Judge the iterations whose numbers have arrived, or, with `wait`, all."""
        while self.watched and self.fault is None:
            ready = self.watched[0].ready
            if ready is not None and not ready.query():
                if not wait:
                    return
                ready.synchronize()
            watched = self.watched.popleft()
            if not bool(torch.isfinite(watched.scalars).all() & torch.isfinite(watched.norms).all()):
                self.fault = self.diagnose(watched)

    def diagnose(self, watched: Watched) -> str:
        d_loss, d_real, d_fake, g_loss = torch.isfinite(watched.scalars).tolist()
        bad = self.culprits(watched.norms)
        if bad:
            cause = f"{bad} were not finite when it began"
        elif not d_real and d_fake:
            cause = "the real images, or what D made of them, were not finite"
        elif not d_fake and d_real:
            cause = "what G made, or what D made of it, was not finite"
        elif d_loss and not g_loss:
            cause = "D's update ended in weights that are not finite (its gradients overflowed)"
        else:
            cause = "D's logits were not finite"
        terms = ", ".join(n for n, ok in zip(NAMES, (d_loss, d_real, d_fake, g_loss), strict=True) if not ok)
        return f"the iteration up to image {watched.images:,} is not finite ({terms or 'its weights'}): {cause}"


@torch.no_grad()
def checksum(networks: Sequence[nn.Module]) -> int:
    """The sum over all bits of the weights, as whole numbers: equal for equal weights, and cheap."""
    total = torch.zeros((), dtype=torch.int64, device=next(networks[0].parameters()).device)
    for network in networks:
        for parameter in network.parameters():
            total += parameter.detach().view(torch.int32).sum(dtype=torch.int64)
    return int(total)
