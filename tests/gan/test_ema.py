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
        ema.update(G, batch)
    torch.testing.assert_close(ema.module.weight, torch.full((3, 3), 0.75))


def test_buffers_are_copied_and_nothing_is_shared():
    G = nn.BatchNorm1d(2)
    ema = EMA(G, half_life_images=100)
    G(torch.randn(8, 2))
    assert not torch.equal(ema.module.get_buffer("running_mean"), G.get_buffer("running_mean"))
    ema.update(G, 8)
    assert torch.equal(ema.module.get_buffer("running_mean"), G.get_buffer("running_mean"))
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())
