"""The algorithm: one iteration of a GAN, D first, then G.

Algorithm 1 of Goodfellow et al. 2014 with one step of D, as in the DCGAN tutorial: G's update takes the same fakes, and
the non-saturating loss if the loss is BCE.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distgan.gan.losses import Loss

Scalars = dict[str, Tensor]
"""Means over the minibatch by name, in the order they are computed; detached, on the device."""


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
    backward: Callable[[Tensor], None] = Tensor.backward
    no_sync: Callable[[nn.Module], AbstractContextManager] = lambda network: nullcontext()
    """A context in which a network's gradients accumulate without being reduced."""
    clip: Callable[[nn.Module, torch.optim.Optimizer], object] = lambda network, optimizer: None
    """Clips a network's gradient before its optimizer's step."""


class Minibatch(NamedTuple):
    """N real images, and what N fakes are made from."""

    real: Tensor
    """[N, C, S, S] in [-1, 1]"""
    z: Tensor
    """[N, z_dim], N(0, 1)"""
    labels: Tensor | None = None
    """[N], of the real images"""
    fake_labels: Tensor | None = None
    """[N], of the fakes; the same as `labels` if the loss is paired"""


def train_step(gan: GAN, micro_batches: Sequence[Minibatch]) -> Scalars:
    """One iteration, in place: update D, then update G through the updated D, on the same fakes.

    `micro_batches` are equal parts of one minibatch, usually a single one; gradients accumulate over them. Returns
    d_real and d_fake, the mean scores of real and of fake images in the update of D, d_loss and g_loss.
    """
    # The fakes of a single micro-batch keep their graph for the update of G. Those of several are recomputed from the
    # same z and the same weights: one graph in memory at a time.
    single = len(micro_batches) == 1
    with torch.set_grad_enabled(single):
        fakes = [gan.G(batch.z, batch.fake_labels) for batch in micro_batches]
    d_scalars = discriminator_step(gan, micro_batches, fakes)
    return d_scalars | generator_step(gan, micro_batches, fakes if single else None)


def discriminator_step(gan: GAN, micro_batches: Sequence[Minibatch], fakes: Sequence[Tensor]) -> Scalars:
    """(1) Update D on real images (target 1 in BCE) and on fakes (target 0). No gradient reaches G."""
    gan.raw_D.requires_grad_(True)
    gan.d_optimizer.zero_grad()
    rows = []
    for i, (batch, fake) in enumerate(zip(micro_batches, fakes, strict=True)):
        with nullcontext() if i == len(micro_batches) - 1 else gan.no_sync(gan.D):
            real_logits = gan.D(batch.real, batch.labels)
            fake_logits = gan.D(fake.detach(), batch.fake_labels)
            d_loss = gan.loss.d(real_logits, fake_logits).mean()
            gan.backward(d_loss / len(micro_batches))
        rows.append({"d_real": gan.loss.score(real_logits), "d_fake": gan.loss.score(fake_logits), "d_loss": d_loss})
    gan.clip(gan.D, gan.d_optimizer)
    gan.d_optimizer.step()
    return means(rows)


def generator_step(gan: GAN, micro_batches: Sequence[Minibatch], fakes: Sequence[Tensor] | None) -> Scalars:
    """(2) Update G on the fakes (target 1 in BCE). The gradient passes through the updated D, frozen, into G only."""
    gan.raw_D.requires_grad_(False)
    gan.g_optimizer.zero_grad()
    rows = []
    for i, batch in enumerate(micro_batches):
        with nullcontext() if i == len(micro_batches) - 1 else gan.no_sync(gan.G):
            fake = fakes[i] if fakes else gan.G(batch.z, batch.fake_labels)
            fake_logits = gan.raw_D(fake, batch.fake_labels)
            real_logits = gan.raw_D(batch.real, batch.labels) if gan.loss.paired else None
            g_loss = gan.loss.g(fake_logits, real_logits).mean()
            gan.backward(g_loss / len(micro_batches))
        rows.append({"g_loss": g_loss})
    gan.clip(gan.G, gan.g_optimizer)
    gan.g_optimizer.step()
    return means(rows)


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
