"""Grids of images: of fixed latents, and of the first images that a run trains on."""

import numpy as np
import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.order import Lanes
from distgan.data.stream import Reader
from distgan.gan.step import generate
from distgan.images import grid, to_uint8
from distgan.rng import rng
from distgan.samples import SampleSpec
from distgan.training.batches import normalize

LEAST_IMAGES = 16
"""Images that a spread is taken of."""


def fixed_samples(G: nn.Module, spec: SampleSpec, config: Config, device: torch.device) -> Tensor:
    """`samples.count` images [N, C, S, S] of latents that depend on the seed alone, the classes in turn; on the CPU."""
    shape = (config.samples.count, config.model.latent)
    z = torch.from_numpy(rng(config.seed, "samples").standard_normal(shape, np.float32)).to(device)
    labels = torch.arange(len(z), device=device) % spec.num_classes if spec.num_classes else None
    return generate(G, z, labels)


def first_images(reader: Reader, order: Lanes, count: int) -> Tensor:
    """Up to `count` of the first images that this process trains on, [N, C, S, S] in [-1, 1], on the CPU."""
    count = min(count, order.epoch_images)
    slots = min(-(-count // len(order.local_lanes)), order.length)
    images = reader.read(order.ids(0, slots * order.lanes)[:count]).images
    return normalize(images, channels_last=False)


def to_grid(images: Tensor) -> np.ndarray:
    """Images [N, C, S, S] in [-1, 1] as one picture, uint8 [H, W, 3]."""
    return grid(to_uint8(images.float().cpu().numpy()))


def grid_name(epochs: float) -> str:
    """The name of the grid after so many epochs: fake-0001 after one, fake-0001_5 after one and a half."""
    epoch, fraction = f"{epochs:.4f}".split(".")
    return f"fake-{int(epoch):04d}" + (f"_{fraction.rstrip('0')}" if int(fraction) else "")
