"""Penalties of G: what they measure of generated images and their latents w, and what they make of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distgan.gan.augment import working
from distgan.noise import keys_of, normal_noise

PATH_LENGTH_NOISE = int.from_bytes(b"path")
"""The purpose of `keys_of` for the directions of path lengths."""


class GSample(NamedTuple):
    """What G made of latents z, with its graph."""

    images: Tensor
    """[N, C, H, W], before augmentation"""
    w: Tensor
    """[N, num_ws, w_dim] or [N, w_dim], the very tensor that the images were made of"""
    z: Tensor
    """[N, z_dim]"""


@dataclass(frozen=True)
class GPenalty:
    """A penalty of what is measured of each image, in comparison with the running mean of it."""

    measure: Callable[[GSample], Tensor]
    """-> [N]"""
    compare: Callable[[Tensor, Tensor], Tensor]
    """(what was measured [N], its running mean before this update, 0-dim, a constant) -> penalties [N]"""
    decay: float = 0.99
    """Of the running mean, which starts at 0: it becomes decay * itself + (1 - decay) * the mean of the minibatch."""


def path_lengths(sample: GSample) -> Tensor:
    """|J_w^T y| [N] for y ~ N(0, I) / sqrt(H W) in image space, one direction an image; float32 or better.

    How far w moves an image in a random direction (Karras et al. 2020, arXiv 1912.04958, section 3.2 and equation 4).
    |.| is the root of the mean over layers, the num_ws rows of w, of the squared norm over w_dim. y is a function of z:
    it depends neither on the other images nor on their number. Raises RuntimeError if the images do not depend on w.
    """
    images = working(sample.images)
    noise = normal_noise(keys_of(sample.z, PATH_LENGTH_NOISE), images.shape[1:]).to(images.dtype)
    height, width = images.shape[2:]
    projected = (images * noise).sum() / (height * width) ** 0.5
    (gradient,) = torch.autograd.grad(projected, sample.w, create_graph=True)
    layers = working(gradient).reshape(len(gradient), -1, gradient.shape[-1])  # [N, num_ws, w_dim]
    return (layers.square().sum(2).mean(1) + 1e-12).sqrt()  # the square root has no derivative at 0


def squared_deviation(measured: Tensor, mean: Tensor) -> Tensor:
    """(measured - mean)^2 [N]."""
    return (measured - mean).square()


G_PENALTIES = {
    "path_length": GPenalty(path_lengths, squared_deviation),
}
