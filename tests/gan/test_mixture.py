"""Training by `train_step` on a mixture of Gaussians: the loss of R3GAN with its penalties covers every mode."""

import math
from dataclasses import replace

import pytest
import torch
from bench.mixtures import MIXTURES, generated, score, train

RING = MIXTURES["ring"]


def test_the_score_of_real_points_and_of_a_collapsed_generator():
    real = score(RING.sample(20_000, torch.Generator().manual_seed(0)), RING)
    assert real.modes == 8 and abs(real.high_quality - 100 * (1 - math.exp(-4.5))) < 0.3 and real.kl < 0.01
    inside, outside = (RING.means[3] + torch.tensor([distance * RING.std, 0]) for distance in (2.9, 3.1))
    collapsed = score(torch.stack([inside, outside] * 50).view(100, 2, 1, 1), RING)
    assert (collapsed.modes, collapsed.high_quality) == (1, 50)
    assert abs(collapsed.kl - math.log(8)) < 1e-6


@pytest.mark.slow
def test_rpgan_with_r1_and_r2_covers_the_ring():
    """With the sign of G's loss exchanged, no mode is covered."""
    short = replace(RING, iterations=1500)
    _, ema = train(short, "rpgan", ["r1", "r2"], seed=0)
    found = score(generated(ema, seed=0), short)
    assert found.modes == 8 and found.high_quality > 20
