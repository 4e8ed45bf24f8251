"""The algorithm: one iteration of a GAN, D first, then G (Goodfellow et al. 2014, algorithm 1)."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distgan.gan.losses import Loss


@dataclass(frozen=True)
class GAN:
    """Two networks, their optimizers and the loss. `D` may be wrapped; `critic` is the same network without wrapper."""

    G: nn.Module
    D: nn.Module
    critic: nn.Module
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer
    loss: Loss
    backward: Callable[[Tensor], None] = Tensor.backward
    unsynced: Callable[[nn.Module], AbstractContextManager] = lambda network: nullcontext()
    """A context in which the network's gradients are summed up here and not yet shared."""


class Minibatch(NamedTuple):
    """Real images and what the fakes are made of. A minibatch may come in equal parts, to fit into memory."""

    real: Tensor
    """[N, channels, size, size] in [-1, 1]"""
    z: Tensor
    """[N, latent], N(0, 1)"""
    labels: Tensor | None = None
    """[N], of the real images"""
    fake_labels: Tensor | None = None
    """[N], for the generated ones"""


def train_step(gan: GAN, parts: Sequence[Minibatch]) -> dict[str, Tensor]:
    """One iteration, in place: update D, then G through the updated D, with the same fakes.

    `parts` are the equal parts of one minibatch; usually there is one. Returns scalars, detached, on the device:
    d_loss, g_loss, and d_real, d_fake, the means of sigmoid(logits) on real and fake images in the update of D.
    """
    # The fakes of a lone part keep their graph for G's update. Of several, each is made anew from the same z and the
    # same weights when its turn comes: one graph at a time in memory.
    lone = len(parts) == 1
    with torch.set_grad_enabled(lone):
        fakes = [gan.G(part.z, part.fake_labels) for part in parts]
    logs = discriminator_step(gan, parts, fakes)
    return logs | generator_step(gan, parts, fakes if lone else None)


def discriminator_step(gan: GAN, parts: Sequence[Minibatch], fakes: Sequence[Tensor]) -> dict[str, Tensor]:
    """(1) Update D: real images towards target 1, fakes towards target 0; both errors go back into D only."""
    gan.critic.requires_grad_(True)
    gan.d_optimizer.zero_grad()
    sums = torch.zeros(3, device=parts[0].real.device)
    for i, (part, fake) in enumerate(zip(parts, fakes, strict=True)):
        with nullcontext() if i == len(parts) - 1 else gan.unsynced(gan.D):
            real_logits = gan.D(part.real, part.labels)
            fake_logits = gan.D(fake.detach(), part.fake_labels)
            d_loss = gan.loss.d(real_logits, fake_logits).mean() / len(parts)
            gan.backward(d_loss)
        scores = torch.stack([real_logits.detach().sigmoid().mean(), fake_logits.detach().sigmoid().mean()])
        sums += torch.cat([d_loss.detach()[None], scores / len(parts)])
    gan.d_optimizer.step()
    return dict(zip(("d_loss", "d_real", "d_fake"), sums.unbind(), strict=True))


def generator_step(gan: GAN, parts: Sequence[Minibatch], fakes: Sequence[Tensor] | None) -> dict[str, Tensor]:
    """(2) Update G: the fakes through the updated D towards target 1; the error goes through D, frozen, into G only."""
    gan.critic.requires_grad_(False)
    gan.g_optimizer.zero_grad()
    total = torch.zeros((), device=parts[0].real.device)
    for i, part in enumerate(parts):
        with nullcontext() if i == len(parts) - 1 else gan.unsynced(gan.G):
            fake = fakes[i] if fakes else gan.G(part.z, part.fake_labels)
            g_loss = gan.loss.g(gan.critic(fake, part.fake_labels)).mean() / len(parts)
            gan.backward(g_loss)
        total += g_loss.detach()
    gan.g_optimizer.step()
    return {"g_loss": total}


@torch.no_grad()
def generate(G: nn.Module, z: Tensor, labels: Tensor | None) -> Tensor:
    """Images [N, channels, size, size] of G in evaluation mode, 64 at a time, on the CPU; G's mode stays as it was."""
    training = G.training
    G.eval()
    images = [G(z[i : i + 64], labels[i : i + 64] if labels is not None else None).cpu() for i in range(0, len(z), 64)]
    G.train(training)
    return torch.cat(images)
