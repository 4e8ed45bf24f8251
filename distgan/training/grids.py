"""Grids of generated and of real images."""

import numpy as np
import torch
from torch import Tensor

from distgan.gan.step import generate
from distgan.logs.alarms import spread
from distgan.logs.log import MetricsLogger
from distgan.rng import rng
from distgan.training.batches import normalize
from distgan.training.build import Run
from distgan.training.state import TrainState

LEAST_IMAGES = 16
"""Images that a spread is taken of."""


def save_fake_grid(run: Run, state: TrainState, logger: MetricsLogger) -> None:
    """Generated images of fixed latents, as samples/fake-EPOCH.png; 0001_5 is one epoch and a half."""
    config, device = run.config, run.processes.device
    shape = (config.samples.count, config.model.latent)
    z = torch.from_numpy(rng(config.seed, "samples").standard_normal(shape, np.float32)).to(device)
    labels = torch.arange(len(z), device=device) % run.num_classes if run.num_classes else None
    epoch, fraction = f"{state.images_seen / run.order.epoch_images:.4f}".split(".")
    name = f"fake-{int(epoch):04d}" + (f"_{fraction.rstrip('0')}" if int(fraction) else "")
    images = generate(run.G_for_sampling, z, labels)
    logger.save_grid(name, images)
    # the grid of an end or a stop between two others is not in the log: an uninterrupted run has none there
    if run.crossed(config.samples.every_epochs, state.images_seen) and len(images) >= LEAST_IMAGES:
        logger.diversity = spread(images) / max(spread(first_images(run, len(images))), 1e-6)


def save_real_grid(run: Run, logger: MetricsLogger) -> None:
    """The first images that the main process trains on."""
    logger.save_grid("real", first_images(run, run.config.samples.count))


def first_images(run: Run, count: int) -> Tensor:
    """Up to `count` of the first images that this process trains on, in [-1, 1], on the CPU."""
    count = min(count, run.order.epoch_images)
    slots = min(-(-count // len(run.order.local_lanes)), run.order.length)
    images = run.reader.read(run.order.ids(0, slots * run.order.lanes)[:count]).images
    return normalize(images, channels_last=False)
