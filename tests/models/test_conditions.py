"""Networks learn what images look like as a function of a number."""

from typing import Any

import pytest
import torch
from torch import Tensor

from distgan import models
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch, WeightedPenalty
from distgan.gan.penalties import PENALTIES
from distgan.gan.step import generate, train_step
from distgan.samples import Condition, SampleSpec

Z_DIM = 4
NETWORKS: dict[str, tuple[str, tuple[int, int], dict[str, Any], int, float]] = {
    "mlp": ("mlp", (8, 16), {"width": 64}, 300, 2e-3),
    "dcgan": ("dcgan", (8, 16), {"width": 16, "d_norm": "none", "init": "he"}, 400, 2e-3),
    "r3gan": ("r3gan", (8, 16), {"widths": [32, 32], "blocks": 1}, 150, 2e-3),
    "sngan": ("sngan", (32, 32), {"width": 4}, 150, 2e-3),
}
"""By name: architecture, height and width, options, iterations, learning rate."""


def brightness(numbers: Tensor) -> Tensor:
    """The mean of the images of a standardized number in [-1.7, 1.7]: steep below, flatter above."""
    return 1.6 * ((numbers + 1.9) / 3.6).sqrt() - 0.8


def minibatch(spec: SampleSpec, n: int, generator: torch.Generator) -> Minibatch:
    """Images of one brightness each, with noise, and their numbers."""
    numbers = torch.rand(n, 1, generator=generator) * 3.4 - 1.7
    noise = torch.randn(n, *spec.shape, generator=generator) * 0.1
    real = brightness(numbers).view(-1, 1, 1, 1) + noise
    return Minibatch(real, torch.randn(n, Z_DIM, generator=generator), numbers, numbers)


def train(network: str) -> GAN:
    name, (height, width), options, iterations, lr = NETWORKS[network]
    spec = SampleSpec(height, width, 1, conditions=(Condition("energy"),))
    G, D = models.build(name, spec, z_dim=Z_DIM, options=options, seed=0)
    g_optimizer, d_optimizer = (torch.optim.Adam(n.parameters(), lr=lr, betas=(0.0, 0.99)) for n in (G, D))
    gan = GAN(G, D, G, D, g_optimizer, d_optimizer, LOSSES["hinge" if network == "sngan" else "bce"])
    penalties = {} if network == "sngan" else {"r1": WeightedPenalty(PENALTIES["r1"], 0.1)}
    generator = torch.Generator().manual_seed(0)
    for _ in range(iterations):
        train_step(gan, Batches([[minibatch(spec, 16, generator)]]), penalties)
    return gan


SLOW = ("r3gan", "sngan")


@pytest.mark.parametrize("network", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in NETWORKS])
def test_the_mean_of_images_follows_their_number(network):
    gan = train(network)
    numbers = torch.tensor([-1.6, -0.8, 0.0, 0.8, 1.6])
    z = torch.randn(64, Z_DIM, generator=torch.Generator().manual_seed(1))
    means = torch.stack([generate(gan.raw_G, z, number.expand(64, 1)).mean() for number in numbers])
    assert (means.diff() > 0.05).all()
    assert (means - brightness(numbers)).abs().max() < 0.4
