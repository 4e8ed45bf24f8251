"""Drawing latents from stored moments."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distgan.gan.latents import sample_posterior
from distgan.noise import normal_noise
from distgan.samples import LatentSpec, SampleSpec

LATENTS = LatentSpec("0" * 64, scale=0.5, shift=0.25, height=8, width=12, channels=3, flips=True)
SPEC = SampleSpec(4, 6, 2, dtype="float16", latents=LATENTS)


def stored(count: int) -> torch.Tensor:
    """Moments of two encodings of 2 channels."""
    return torch.rand(count, *SPEC.stored_shape).half()


def test_they_are_the_mean_and_the_noise_of_a_key_as_networks_see_them():
    moments = stored(5)
    keys = torch.arange(5) * 10**9
    assert SPEC.stored_shape == (2, 4, 4, 6)
    expected = (moments[:, 0, :2].float() + moments[:, 0, 2:].float() * normal_noise(keys, (2, 4, 6)) - 0.25) * 0.5
    drawn = sample_posterior(moments, SPEC, keys)
    assert drawn.dtype == torch.float32
    torch.testing.assert_close(drawn, expected)
    torch.testing.assert_close(sample_posterior(moments, SPEC), (moments[:, 0, :2].float() - 0.25) * 0.5)


def test_a_flipped_sample_is_its_second_encoding():
    moments = stored(4)
    keys = torch.arange(4)
    flip = torch.tensor([True, False, False, True])
    drawn = sample_posterior(moments, SPEC, keys, flip)
    second = sample_posterior(moments[:, 1:], SPEC, keys)
    assert torch.equal(drawn[flip], second[flip])
    assert torch.equal(drawn[~flip], sample_posterior(moments, SPEC, keys)[~flip])
    with pytest.raises(AssertionError, match="no second encoding"):
        sample_posterior(moments, replace(SPEC, latents=replace(LATENTS, flips=False)), keys, flip)


def test_a_sample_does_not_depend_on_the_others():
    moments = stored(6)
    keys = torch.arange(6) + 7
    whole = sample_posterior(moments, SPEC, keys)
    parts = [sample_posterior(moments[i : i + 2], SPEC, keys[i : i + 2]) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_draws_have_the_moments():
    moments = stored(1)
    draws = sample_posterior(moments.expand(20_000, -1, -1, -1, -1), SPEC, torch.arange(20_000))
    mean, std = moments[0, 0].float().chunk(2)
    np.testing.assert_allclose(draws.mean(0), (mean - 0.25) * 0.5, atol=0.02)
    np.testing.assert_allclose(draws.std(0), std * 0.5, atol=0.02)
