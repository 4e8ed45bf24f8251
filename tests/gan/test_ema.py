"""The EMA of G: its half-life in images, for any batch."""

import pytest
import torch
from torch import nn

from distgan.gan.ema import EMA


@pytest.mark.parametrize("batch", [10, 50, 100])
def test_half_life_is_in_images(batch):
    G = nn.Linear(3, 3)
    nn.init.zeros_(G.weight)
    ema = EMA(G, half_life_images=100)
    nn.init.ones_(G.weight)
    for _ in range(200 // batch):
        ema.update(G, ema.weight(batch, images_seen=0))
    torch.testing.assert_close(ema.module.weight, torch.full((3, 3), 0.75))


def test_buffers_are_copied_and_nothing_is_shared():
    G = nn.BatchNorm1d(2)
    ema = EMA(G, half_life_images=100)
    G(torch.randn(8, 2))
    assert not torch.equal(ema.module.get_buffer("running_mean"), G.get_buffer("running_mean"))
    ema.update(G, ema.weight(8, images_seen=0))
    assert torch.equal(ema.module.get_buffer("running_mean"), G.get_buffer("running_mean"))
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())


def test_the_half_life_warms_up():
    """At most 5 % of the images seen: a pure function of them, and the configured one in the long run."""
    ema = EMA(nn.Linear(1, 1), half_life_images=1000, warmup=0.05)
    assert ema.weight(batch=10, images_seen=0) == 1  # the initial weights are gone after the first iteration
    assert ema.weight(10, images_seen=200) == pytest.approx(0.5)
    assert ema.weight(10, images_seen=2000) == pytest.approx(1 - 0.5**0.1)
    assert ema.weight(10, images_seen=20_000) == ema.weight(10, images_seen=10**9) == pytest.approx(1 - 0.5**0.01)
    assert EMA(nn.Linear(1, 1), 1000).weight(10, images_seen=0) == pytest.approx(1 - 0.5**0.01)


def test_a_short_run_forgets_the_initial_weights():
    """12,000 images with a half-life of 10,000: without warm-up 44 % of the EMA are the initial weights."""
    shares = {}
    for warmup in (0.0, 0.05):
        ema = EMA(nn.Linear(1, 1), 10_000, warmup)
        share = 1.0
        for images_seen in range(0, 12_000, 64):
            share *= 1 - ema.weight(64, images_seen)
        shares[warmup] = share
    assert shares[0.0] == pytest.approx(0.44, abs=0.01) and shares[0.05] == 0
