"""Keyed random numbers: equal for equal keys, independent for different ones."""

import numpy as np
import pytest

from distgan.rng import derive_seed, normal_rows, philox, random_rows, rng, uniform_rows


def test_each_key_has_its_own_stream():
    assert np.array_equal(rng(0, "latents", 64).random(5), rng(0, "latents", 64).random(5))
    others = [(1, "latents", 64), (0, "labels", 64), (0, "latents", 65), (0, "latents"), (0, "latents", 6, 4)]
    assert len({tuple(rng(*key).random(3)) for key in [(0, "latents", 64), *others]}) == 1 + len(others)
    assert 0 <= derive_seed(0, "weights") < 2**63


def test_the_numbers_are_pinned():
    """A change here changes the result of every configuration."""
    assert rng(7, "latents", 128).integers(1000, size=4).tolist() == PINNED
    assert derive_seed(0, "weights") == PINNED_INTEGER


@pytest.mark.parametrize("columns", [1, 7, 100])
def test_a_row_is_the_same_whichever_others_are_drawn(columns):
    """A process draws the rows of the global minibatch that are its own."""
    for draw in (random_rows, uniform_rows, normal_rows):
        table = draw(philox(0, "latents", 64), 0, 48, columns)
        assert table.shape == (48, columns) and len(np.unique(table)) == table.size
        for first, count in ((0, 1), (5, 3), (16, 16), (47, 1)):
            assert np.array_equal(draw(philox(0, "latents", 64), first, count, columns), table[first : first + count])


def test_the_moments_of_normal_rows():
    z = normal_rows(philox(1, "latents"), 0, 20_000, 101).astype(np.float64)
    assert abs(z.mean()) < 3e-3 and abs(z.std() - 1) < 3e-3
    assert abs((z**3).mean()) < 1e-2 and abs((z**4).mean() - 3) < 2e-2  # of a normal distribution: 0 and 3
    assert np.abs(np.corrcoef(z[:, :6].T) - np.eye(6)).max() < 0.03  # also within a pair of Box and Muller
    uniform = uniform_rows(philox(1, "flips"), 0, 100_000, 1)
    assert 0 < uniform.min() < uniform.max() < 1 and abs(uniform.mean() - 0.5) < 3e-3


PINNED = [18, 96, 454, 500]
PINNED_INTEGER = 6986419443320767716
