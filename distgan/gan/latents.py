"""Latents as networks see them, of the moments that a dataset stores of their distribution."""

import torch
from torch import Tensor

from distgan.noise import normal_noise
from distgan.samples import SampleSpec


def sample_posterior(
    stored: Tensor, spec: SampleSpec, noise_keys: Tensor | None = None, flip: Tensor | None = None
) -> Tensor:
    """A draw from the posterior of each sample: (mean + std * e - shift) * scale, float32 [N, C, h, w].

    With e ~ N(0, 1): the latents of latent diffusion (Rombach et al. 2022, appendix G). A sample's latents are a
    function of its moments and its key alone.

    Args:
        stored: Moments [N, encodings, 2C, h, w], means, then standard deviations; the second encoding, if there is
            one, is that of the flipped image.
        spec: Of the dataset of latents.
        noise_keys: int64 [N], the keys of e; None: the mean, without noise.
        flip: bool [N], which samples take the second encoding; None: no sample.
    """
    latents = spec.latents
    assert latents is not None, "the spec is of pixels"
    moments = stored[:, 0]
    if flip is not None:
        assert latents.flips, "the dataset has no second encoding"
        moments = torch.where(flip[:, None, None, None], stored[:, 1], moments)
    mean, std = moments.float().chunk(2, 1)
    if noise_keys is not None:
        mean = mean + std * normal_noise(noise_keys, spec.shape)
    return (mean - latents.shift) * latents.scale
