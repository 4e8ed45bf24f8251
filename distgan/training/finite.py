"""Checks for NaN and Inf in losses and weights, and for weights that differ between processes."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from distgan.distributed.processes import TIMEOUT_SECONDS
from distgan.errors import RunError
from distgan.gan.parts import GAN, Scalars

RUN_AHEAD = 3  # iterations


class NonFiniteError(RunError):
    """NaN or Inf in the losses or the weights."""

    on_all_ranks = True


class PendingCheck(NamedTuple):
    """The values of one iteration, on their way to host memory."""

    images_seen: int
    """After the iteration."""
    names: list[str]
    scalars: Tensor
    """[len(names)]"""
    norms: Tensor
    """[parameters of D and G], the norms of the weights before the iteration"""
    ready: torch.cuda.Event | None
    """Recorded after the copies; None if they are complete already."""


class FiniteCheck:
    """Names the first iteration with NaN or Inf in its scalars or weights, without making the host wait for a GPU.

    The values of an iteration are copied to host memory asynchronously and checked once they have arrived: at once on a
    CPU, an iteration or two later on a GPU. Non-finite gradients show in the next scalars.
    """

    def __init__(self, G: nn.Module, D: nn.Module) -> None:
        named = [(f"D.{name}", p) for name, p in D.named_parameters()]
        named += [(f"G.{name}", p) for name, p in G.named_parameters()]
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        self.pending: deque[PendingCheck] = deque()
        self.fault: str | None = None
        """What was found, as a sentence."""

    @torch.no_grad()
    def param_norms(self) -> Tensor:
        """[parameters of D and G], the norms of the weights now."""
        norms = torch._foreach_norm(self.parameters)  # pyright: ignore[reportPrivateImportUsage] - one kernel for all
        return torch.stack(list(norms))

    def record(self, norms: Tensor, scalars: Scalars, images_seen: int) -> None:
        """Take in the iteration that ended at `images_seen`; `norms` are the weights' before it."""
        values = torch.stack(list(scalars.values()))
        ready = None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            norms = norms.to("cpu", non_blocking=True)
            ready = torch.cuda.Event()
            ready.record()
        self.pending.append(PendingCheck(images_seen, list(scalars), values, norms, ready))
        self.poll()
        if len(self.pending) > RUN_AHEAD:
            self.wait_for_device()

    def poll(self, wait: bool = False) -> None:
        """Check the iterations whose values have arrived; all of them with `wait`."""
        while self.pending and self.fault is None:
            ready = self.pending[0].ready
            if ready is not None and not ready.query():
                if not wait:
                    return
                ready.synchronize()
            check = self.pending.popleft()
            if not bool(torch.isfinite(check.scalars).all() & torch.isfinite(check.norms).all()):
                self.fault = self.diagnose(check)

    def wait_for_device(self) -> None:
        """Until the oldest pending iteration is done. Raises RunError after the time-out of collectives.

        It bounds how far the host runs ahead of a GPU. It polls: a kernel that waits for a lost process never ends, and
        Python could not even handle a signal in a call that waits for it.
        """
        ready = self.pending[0].ready
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while ready is not None and not ready.query():
            if time.monotonic() > deadline:
                raise RunError(f"the GPU did not finish an iteration within {TIMEOUT_SECONDS:.0f} s: a process is lost")
            time.sleep(0.001)
        self.poll()

    def check_weights(self, images_seen: int) -> None:
        """Check all pending iterations and the weights as they are now; waits for the device."""
        self.poll(wait=True)
        bad = self.non_finite_params(self.param_norms().cpu())
        if bad and self.fault is None:
            self.fault = f"NaN or Inf after {images_seen:,} images in {bad}"

    def non_finite_params(self, norms: Tensor) -> str:
        """Names the parameters whose norms are not finite; empty if all are finite."""
        finite = torch.isfinite(norms).tolist()
        bad = [name for name, ok in zip(self.names, finite, strict=True) if not ok]
        return f"the weights {bad[0]}" + (f" and {len(bad) - 1} more" if len(bad) > 1 else "") if bad else ""

    def diagnose(self, check: PendingCheck) -> str:
        """Which values are not finite and which was first: scalars come in the order that the step computes them."""
        finite = torch.isfinite(check.scalars).tolist()
        bad = [name for name, ok in zip(check.names, finite, strict=True) if not ok]
        weights = self.non_finite_params(check.norms)
        if weights:
            cause = f"{weights} were not finite before it"
        elif bad[0] == "g_loss":
            cause = f"first in {bad[0]}: probably the update of D left non-finite weights (its gradients overflowed)"
        else:
            cause = f"first in {bad[0]}"
        what = ", ".join(bad) or "its weights"
        return f"NaN or Inf in the iteration up to image {check.images_seen:,} ({what}): {cause}"


class LossScale:
    """What fp16's loss scale did since the last line of the log."""

    def __init__(self, accelerator: Accelerator, gan: GAN) -> None:
        self.accelerator = accelerator
        self.gan = gan
        self.steps = 0
        """Updates of G and of D, at the last line."""

    def restart_interval(self) -> None:
        self.steps = count_steps(self.gan) if self.accelerator.scaler is not None else 0

    def scalars(self, updates: int) -> dict[str, float]:
        """The scale, and how many of `updates` were skipped because gradients overflowed; {} without fp16. Waits."""
        if self.accelerator.scaler is None:
            return {}
        steps = count_steps(self.gan)
        skipped = updates - (steps - self.steps)
        self.steps = steps
        return {"fp16_scale": self.accelerator.scaler.get_scale(), "fp16_skipped_steps": skipped}


def check_loss_scale(scalars: Mapping[str, float]) -> None:
    """Raises NonFiniteError if gradients overflow at every scale."""
    scale = scalars.get("fp16_scale", 1)
    if scale < 1:
        raise NonFiniteError(f"precision: gradients overflow in fp16 at every loss scale (now {scale:g}); use bf16")


def count_steps(gan: GAN) -> int:
    """Updates of G and of D so far; waits for the device."""
    optimizers = (gan.g_optimizer, gan.d_optimizer)
    states = (optimizer.state.get(optimizer.param_groups[0]["params"][0], {}) for optimizer in optimizers)
    return sum(int(state.get("step", 0)) for state in states)


@torch.no_grad()
def checksum(networks: Sequence[nn.Module]) -> int:
    """The sum over all bits of the weights, as integers: equal for equal weights, and cheap."""
    total = torch.zeros((), dtype=torch.int64, device=next(networks[0].parameters()).device)
    for network in networks:
        for parameter in network.parameters():
            total += parameter.detach().view(torch.int32).sum(dtype=torch.int64)
    return int(total)
