"""Grids of images: of fixed latents, and of the first images that a run trains on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.gan.latents import sample_posterior
from distgan.gan.step import generate
from distgan.images import grid
from distgan.pixels import normalize, to_picture
from distgan.rng import rng
from distgan.training.data import Data

LEAST_IMAGES = 16
"""Images that a spread is taken of."""


def fixed_samples(G: nn.Module, data: Data, config: Config, device: torch.device) -> Tensor:
    """`samples.count` images [N, C, H, W] of z that depend on the seed alone; on the CPU. G: `Trainer.image_generator`.

    Of the classes in turn, or with labels of the dataset, in the order of their first number.
    """
    count = config.samples.count
    z = torch.from_numpy(rng(config.seed, "samples").standard_normal((count, config.model.latent), np.float32))
    labels = None
    if data.spec.conditions:
        drawn = data.dataset.draw_labels(rng(config.seed, "labels of samples").random(count))
        labels = torch.from_numpy(drawn[np.argsort(drawn[:, data.spec.num_classes], kind="stable")]).to(device)
    elif data.spec.num_classes:
        labels = torch.arange(count, device=device) % data.spec.num_classes
    return generate(G, z.to(device), labels)


def first_images(data: Data, count: int, device: torch.device) -> Tensor:
    """Up to `count` of the first images that this process trains on, [N, C, H, W] in [-1, 1], on the CPU.

    Of a dataset of latents the images that the means of their posterior are decoded to.
    """
    order = data.order
    count = min(count, order.epoch_images)
    slots = min(-(-count // len(order.local_lanes)), order.length)
    images = data.reader.read(order.ids(0, slots * order.lanes)[:count]).images
    if data.spec.latents is None:
        return normalize(images, data.spec)
    return data.decoder(sample_posterior(images.to(device), data.spec)).cpu()


def to_grid(images: Tensor, show: Sequence[int]) -> np.ndarray:
    """The channels `show` of images [N, C, H, W] in [-1, 1] as one picture, uint8 [H', W', 3]."""
    return grid(to_picture(images.float().cpu().numpy(), show))


def grid_name(epochs: float) -> str:
    """The name of the grid after so many epochs: fake-0001 after one, fake-0001_5 after one and a half."""
    epoch, fraction = f"{epochs:.4f}".split(".")
    return f"fake-{int(epoch):04d}" + (f"_{fraction.rstrip('0')}" if int(fraction) else "")
