"""Grids of images: of fixed latents, and of the first images that a run trains on."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.shardset import ShardSet
from distgan.gan.latents import sample_posterior
from distgan.gan.step import generate
from distgan.images import grid
from distgan.pixels import normalize, to_picture
from distgan.rng import rng
from distgan.samples import SampleSpec
from distgan.training.data import Data

LEAST_IMAGES = 16
"""Images that a spread is taken of."""


class FixedInputs(NamedTuple):
    """What the images of a run's grids are made of, as networks take it; on the CPU."""

    z: Tensor
    """float32 [N, z_dim]"""
    labels: Tensor | None

    def slices(self, device: torch.device) -> Callable[[int, int], tuple[Tensor, Tensor | None]]:
        """Maps the number of an image and a count to the latents and labels of so many images, on the device."""

        def inputs(first: int, count: int) -> tuple[Tensor, Tensor | None]:
            rows = slice(first, first + count)
            return self.z[rows].to(device), None if self.labels is None else self.labels[rows].to(device)

        return inputs


def fixed_inputs(seed: int, count: int, z_dim: int, dataset: ShardSet, spec: SampleSpec) -> FixedInputs:
    """Latents and labels of `count` images, that depend on the seed alone, for a G of samples `spec`.

    Labels are of the classes in turn, or with conditions of the dataset, in the order of their first number.
    """
    z = torch.from_numpy(rng(seed, "samples").standard_normal((count, z_dim), np.float32))
    if spec.conditions:
        drawn = dataset.draw_labels(rng(seed, "labels of samples").random(count), spec)
        return FixedInputs(z, torch.from_numpy(drawn[np.argsort(drawn[:, spec.num_classes], kind="stable")]))
    return FixedInputs(z, torch.arange(count) % spec.num_classes if spec.num_classes else None)


def fixed_samples(G: nn.Module, data: Data, config: Config, device: torch.device) -> Tensor:
    """`samples.count` images [N, C, H, W] of `fixed_inputs`, on the CPU. G: `Trainer.image_generator`."""
    z, labels = fixed_inputs(config.seed, config.samples.count, config.model.latent, data.dataset, data.spec)
    return generate(G, z.to(device), None if labels is None else labels.to(device))


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


def grid_name(epochs: float, kind: str = "fake") -> str:
    """The name of the grid after so many epochs: fake-0001 after one, fake-0001_5 after one and a half."""
    epoch, fraction = f"{epochs:.4f}".split(".")
    return f"{kind}-{int(epoch):04d}" + (f"_{fraction.rstrip('0')}" if int(fraction) else "")
