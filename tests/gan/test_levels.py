"""What D sees: noise levels by their formulae, the same for stages and images, alike in every batch."""

import math

import pytest
import torch

from distgan.gan.augment import Pipeline
from distgan.gan.levels import View, noise_keys, noise_levels
from distgan.noise import normal_noise

LEVELS = (0.885, 0.76, 0.51, 0.01)
KEYS = torch.arange(6) * 12345


def test_levels_are_the_image_and_cumulative_noise():
    """Written out from the cleanest level: each noise is the one before it, scaled as the image is, and a new part."""
    x = torch.rand(6, 2, 4, 4, dtype=torch.float64) * 2 - 1
    seen = noise_levels(x, KEYS, LEVELS)
    fresh = normal_noise(KEYS, (4, 2, 4, 4)).double()
    n3 = 0.01 * fresh[:, 3]
    torch.testing.assert_close(seen[:, 3], 0.99 * x + n3, rtol=0, atol=1e-12)
    ratio = (1 - 0.51) / (1 - 0.01)
    n2 = ratio * n3 + math.sqrt(0.51**2 - (0.01 * ratio) ** 2) * fresh[:, 2]
    torch.testing.assert_close(seen[:, 2], 0.49 * x + n2, rtol=0, atol=1e-12)
    ratio = (1 - 0.76) / (1 - 0.51)
    n1 = ratio * n2 + math.sqrt(0.76**2 - (0.51 * ratio) ** 2) * fresh[:, 1]
    torch.testing.assert_close(seen[:, 1], 0.24 * x + n1, rtol=0, atol=1e-12)


def test_the_noise_of_a_level_has_its_standard_deviation():
    zeros = torch.zeros(512, 1, 16, 16)
    seen = noise_levels(zeros, torch.arange(512), LEVELS)
    for k, t in enumerate(LEVELS):
        assert seen[:, k].std().item() == pytest.approx(t, rel=0.01)
    cleaner = seen[:, 2].flatten() / (1 - LEVELS[2])
    noisier = seen[:, 1].flatten() / (1 - LEVELS[1])
    # a level that is (1 - t) (x + cleaner noise + more) correlates with the cleaner one by the share of its variance
    expected = (LEVELS[2] / (1 - LEVELS[2])) / (LEVELS[1] / (1 - LEVELS[1]))
    assert torch.corrcoef(torch.stack([cleaner, noisier]))[0, 1].item() == pytest.approx(expected, abs=0.01)


def test_equal_stages_are_seen_as_their_image():
    x = torch.rand(6, 2, 4, 4)
    stages = x.unsqueeze(1).expand(-1, 4, -1, -1, -1)
    assert torch.equal(noise_levels(x, KEYS, LEVELS), noise_levels(stages, KEYS, LEVELS))


def test_an_image_is_seen_alike_in_every_batch():
    view = View(Pipeline([("color", 1.0), ("translation", 1.0)]), LEVELS)
    x, u = torch.rand(6, 3, 8, 8), torch.rand(6, view.columns)
    assert torch.equal(view(x, u, 0.7)[2:4], view(x[2:4], u[2:4], 0.7))
    assert not torch.equal(view(x, u, 0.7)[2:3], view(x[2:3], u[3:4], 0.7))


def test_stages_of_an_image_are_augmented_alike():
    pipeline = Pipeline([("translation", 1.0), ("cutout", 1.0), ("flip", 0.5), ("color", 1.0)])
    x, u = torch.rand(6, 3, 8, 8), torch.rand(6, pipeline.columns)
    stages = torch.stack([x, x, x], 1)
    seen = View(pipeline, ())(stages, u, 1.0)
    for k in range(3):
        assert torch.equal(seen[:, k], pipeline(x, u, 1.0))


def test_geometric_augmentations_move_another_image_of_the_sample_as_far():
    pipeline = Pipeline([("color", 1.0), ("translation", 1.0), ("cutout", 1.0), ("flip", 0.5)])
    u = torch.rand(64, pipeline.columns)
    u[:, [0, 4, 7]] = 0.0  # all are drawn
    small = torch.zeros(64, 1, 8, 8)
    small[:, :, 3:5, 3:5] = 1
    large = small.repeat_interleave(8, 2).repeat_interleave(8, 3)
    moved = pipeline(large, u, 1.0, geometric=True)
    assert torch.equal(moved.sum((1, 2, 3)), large.sum((1, 2, 3)))  # neither colours nor cut
    near = pipeline(small, u, 1.0, geometric=True).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert (moved * near).sum((1, 2, 3)).min() > 0.2 * 256  # within one small pixel


def test_keys_use_all_bits_of_both_numbers():
    u = torch.rand(10_000, 2)
    keys = noise_keys(u)
    assert len(keys.unique()) == 10_000 and keys.max() < 2**48
    changed = u.clone()
    changed[:, 1] = (changed[:, 1] + 2**-24).clamp(max=1 - 2**-24)
    assert (noise_keys(changed) != keys).float().mean() > 0.99


def test_levels_of_noise_alone_show_the_same_noise():
    x = torch.rand(6, 2, 4, 4)
    seen = noise_levels(x, KEYS, (1.0, 1.0, 0.0))
    assert torch.equal(seen[:, 0], seen[:, 1]) and torch.equal(seen[:, 2], x)
    assert seen[:, 0].std().item() == pytest.approx(1, rel=0.2)
