"""The algorithm: one iteration of a GAN, D first, then G.

Algorithm 1 of Goodfellow et al. 2014, as in the DCGAN tutorial: G's update takes the same fakes, and the non-saturating
loss if the loss is BCE. With a relativistic loss it is that of R3GAN (Huang et al. 2024, arXiv 2501.05441).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distgan.gan.losses import Loss
from distgan.gan.penalties import DForward, Penalty

Scalars = dict[str, Tensor]
"""Means over the minibatch by name, in the order they are computed; detached, on the device."""


def unaugmented(images: Tensor, u: Tensor | None, p: Tensor | float) -> Tensor:
    return images


@dataclass(frozen=True)
class GAN:
    """Networks, optimizers, loss, and what the launcher adds to backward and update.

    G and D may be wrapped (for DDP); `raw_D` is D without its wrapper.
    """

    G: nn.Module
    D: nn.Module
    raw_D: nn.Module
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer
    loss: Loss
    augment: Callable[[Tensor, Any, Tensor | float], Tensor] = unaugmented
    """(images [N, C, S, S], their random numbers [N, K], probability) -> what D sees."""
    backward: Callable[[Tensor], None] = Tensor.backward
    no_sync: Callable[[nn.Module], AbstractContextManager] = lambda network: nullcontext()
    """A context in which a network's gradients accumulate without being reduced."""
    clip: Callable[[nn.Module, torch.optim.Optimizer], Tensor | None] = lambda network, optimizer: None
    """Clips a network's gradient before its optimizer's step; returns the norm it had, for the log."""


class Minibatch(NamedTuple):
    """N real images, and the random numbers that go with them."""

    real: Tensor
    """[N, C, S, S] in [-1, 1]"""
    z: Tensor
    """[N, z_dim], N(0, 1)"""
    labels: Tensor | None = None
    """[N], of the real images"""
    fake_labels: Tensor | None = None
    """[N], of the fakes; the same as `labels` if the loss is paired or a penalty interpolates"""
    u_real: Tensor | None = None
    """[N, K] in (0, 1), uniform: augments the real images"""
    u_fake: Tensor | None = None
    """[N, K], augments the fakes in the update of D"""
    u_g: Tensor | None = None
    """[N, K], augments the fakes in the update of G"""
    mix: Tensor | None = None
    """[N] in (0, 1), uniform, for penalties that interpolate"""


class Batches(NamedTuple):
    """The minibatches of one iteration, each as equal micro-batches, usually a single one."""

    d: Sequence[Sequence[Minibatch]]
    """One for each update of D."""
    g: Sequence[Minibatch] | None = None
    """For the update of G; None: the last of `d`, with the fakes that D saw."""


class WeightedPenalty(NamedTuple):
    """A penalty that is due in this iteration."""

    penalty: Penalty
    weight: float
    every: int = 1
    """Iterations between two applications; the weight counts as many times."""


def train_step(
    gan: GAN, batches: Batches, penalties: Mapping[str, WeightedPenalty] | None = None, p: Tensor | float = 1.0
) -> Scalars:
    """One iteration, in place: update D on each minibatch of `batches.d`, then update G through the updated D.

    `penalties` are those that are due, by name; `p` is the probability of augmentation. Returns d_real and d_fake, the
    means of sigmoid(logits) of real and of fake images in the updates of D, d_loss, the weighted penalties, d_sign, the
    mean of sign(D(x)) where the loss has a boundary, g_loss, and the norms of both gradients where `clip` gives them.
    """
    rows: list[Scalars] = []
    reuse, fakes = False, []
    for micro_batches in batches.d:
        # The fakes that G is updated on keep their graph. Those of several micro-batches are recomputed from the same z
        # and the same weights: one graph in memory at a time.
        reuse = batches.g is None and micro_batches is batches.d[-1] and len(micro_batches) == 1
        with torch.set_grad_enabled(reuse):
            fakes = [gan.G(batch.z, batch.fake_labels) for batch in micro_batches]
        rows.append(discriminator_step(gan, micro_batches, fakes, penalties or {}, p))
    g_batches = batches.d[-1] if batches.g is None else batches.g
    return means(rows) | generator_step(gan, g_batches, fakes if reuse else None, p)


def discriminator_step(
    gan: GAN,
    micro_batches: Sequence[Minibatch],
    fakes: Sequence[Tensor],
    penalties: Mapping[str, WeightedPenalty],
    p: Tensor | float = 1.0,
) -> Scalars:
    """(1) Update D on real images (target 1 in BCE) and on fakes (target 0). No gradient reaches G."""
    gan.raw_D.requires_grad_(True)
    gan.d_optimizer.zero_grad()
    rows = []
    for i, (batch, fake) in enumerate(zip(micro_batches, fakes, strict=True)):
        with nullcontext() if i == len(micro_batches) - 1 else gan.no_sync(gan.D):
            forward = forward_d(gan, batch, fake, bool(penalties), p)
            d_loss = gan.loss.d(forward.real_logits, forward.fake_logits).mean()
            terms = {name: row.weight * row.penalty.compute(forward).mean() for name, row in penalties.items()}
            # one backward for loss and penalties: each gradient is reduced once
            total = d_loss + sum(penalties[name].every * term for name, term in terms.items())
            gan.backward(total / len(micro_batches))
        rows.append(d_scalars(gan.loss, forward, d_loss) | terms)
    norm = gan.clip(gan.D, gan.d_optimizer)
    gan.d_optimizer.step()
    return means(rows) | ({"d_grad_norm": norm} if norm is not None else {})


def forward_d(gan: GAN, batch: Minibatch, fake: Tensor, differentiable: bool, p: Tensor | float) -> DForward:
    """D on augmented real images and on augmented fakes; `differentiable` with respect to both, for penalties."""

    def D(images: Tensor, labels: Tensor | None) -> Tensor:
        return gan.D(gan.augment(images, batch.u_real, p), labels)

    real, fake = (images.detach().requires_grad_(differentiable) for images in (batch.real, fake))
    real_logits = D(real, batch.labels)
    fake_logits = gan.D(gan.augment(fake, batch.u_fake, p), batch.fake_labels)
    return DForward(D, real, fake, real_logits, fake_logits, batch.labels, batch.mix)


def d_scalars(loss: Loss, forward: DForward, d_loss: Tensor) -> dict[str, Tensor]:
    """What the update of D reports, without the penalties."""
    scalars = {"d_real": forward.real_logits.sigmoid(), "d_fake": forward.fake_logits.sigmoid(), "d_loss": d_loss}
    if loss.boundary is not None:
        scalars["d_sign"] = (forward.real_logits - loss.boundary).sign()
    return scalars


def generator_step(
    gan: GAN, micro_batches: Sequence[Minibatch], fakes: Sequence[Tensor] | None, p: Tensor | float = 1.0
) -> Scalars:
    """(2) Update G on the fakes (target 1 in BCE). The gradient passes through the updated D, frozen, into G only."""
    gan.raw_D.requires_grad_(False)
    gan.g_optimizer.zero_grad()
    rows = []
    for i, batch in enumerate(micro_batches):
        with nullcontext() if i == len(micro_batches) - 1 else gan.no_sync(gan.G):
            fake = fakes[i] if fakes else gan.G(batch.z, batch.fake_labels)
            fake_logits, real_logits = gan.raw_D(gan.augment(fake, batch.u_g, p), batch.fake_labels), None
            if gan.loss.paired:
                real_logits = gan.raw_D(gan.augment(batch.real, batch.u_real, p), batch.labels)
            g_loss = gan.loss.g(fake_logits, real_logits).mean()
            gan.backward(g_loss / len(micro_batches))
        rows.append({"g_loss": g_loss})
    norm = gan.clip(gan.G, gan.g_optimizer)
    gan.g_optimizer.step()
    return means(rows) | ({"g_grad_norm": norm} if norm is not None else {})


def means(rows: Sequence[Mapping[str, Tensor]]) -> Scalars:
    """Each value's mean over images and micro-batches."""
    return {name: torch.stack([row[name].detach().mean() for row in rows]).mean() for name in rows[0]}


@torch.no_grad()
def generate(G: nn.Module, z: Tensor, labels: Tensor | None, batch: int = 64) -> Tensor:
    """Images [N, C, S, S] in [-1, 1] of G in eval mode, `batch` at a time, on the CPU; G's mode is restored."""
    training = G.training
    G.eval()
    starts = range(0, len(z), batch)
    images = [G(z[i : i + batch], labels[i : i + batch] if labels is not None else None).cpu() for i in starts]
    G.train(training)
    return torch.cat(images)
