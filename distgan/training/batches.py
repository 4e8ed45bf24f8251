"""The minibatches of a run: real images from the dataset, latents and labels drawn for them, on the device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distgan.data.order import rank_rows
from distgan.data.stream import ImageBatch, stream
from distgan.gan.step import Minibatch
from distgan.rng import rng
from distgan.training.build import Run
from distgan.training.state import TrainState


def minibatches(run: Run, state: TrainState, on_read: Callable[[ImageBatch], None]) -> Iterator[list[Minibatch]]:
    """This process's rows of every minibatch from `state.images_seen` on, as micro-batches.

    `on_read` is called with what was read, before it is used.
    """
    config, device = run.config, run.dist.device
    batches = stream(
        run.order,
        run.reader,
        lambda images_seen: draw(run, state, images_seen),
        batch=config.batch,
        position=state.images_seen,
        threads=config.data.threads,
    )
    for batch in batches:
        on_read(batch)
        noise = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.noise.items()}
        real = normalize(batch.images.to(device, non_blocking=True), config.channels_last)
        if "flip" in noise:
            real = torch.where(noise["flip"][:, None, None, None], real.flip(3), real)
        labels = torch.from_numpy(batch.labels).to(device, non_blocking=True) if config.data.labels else None
        local_batch = Minibatch(real, noise["z"], labels, noise.get("fake_labels"))
        size = config.micro_batch or len(real)
        columns = [column.split(size) if column is not None else [None] * (len(real) // size) for column in local_batch]
        yield [Minibatch(*columns) for columns in zip(*columns, strict=True)]


def draw(run: Run, state: TrainState, images_seen: int) -> dict[str, Tensor]:
    """This process's rows of the random numbers of the minibatch at `images_seen`.

    They are drawn for the global minibatch, keyed by its position: they do not depend on the number of processes.
    """
    config = run.config
    local_rows = rank_rows(config.batch, run.order.lanes, run.dist.rank, run.dist.world_size)
    position = [images_seen, *([state.rollbacks] if state.rollbacks else [])]
    z = rng(config.seed, "latents", *position).standard_normal((config.batch, config.model.latent), np.float32)
    noise: dict[str, np.ndarray] = {"z": z[local_rows]}
    if config.data.labels:
        counts = np.array([row["samples"] for row in run.dataset.classes])
        labels = rng(config.seed, "labels", *position).choice(
            len(counts), config.batch, p=counts / max(counts.sum(), 1)
        )
        noise["fake_labels"] = labels[local_rows]
    if config.data.flip:
        noise["flip"] = (rng(config.seed, "flips", *position).random(config.batch) < 0.5)[local_rows]
    tensors = {name: torch.from_numpy(values) for name, values in noise.items()}
    pin = run.dist.device.type == "cuda"
    return {name: tensor.pin_memory() for name, tensor in tensors.items()} if pin else tensors


def normalize(images: Tensor, channels_last: bool) -> Tensor:
    """uint8 [N, S, S, C] -> float32 [N, C, S, S] in [-1, 1]."""
    images = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return images if channels_last else images.contiguous()
