"""The minibatches of a run: real images from the dataset, latents and labels drawn for them, on the device."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from distgan.data.stream import ImageBatch, stream
from distgan.gan.step import Minibatch
from distgan.rng import normal_rows, philox, uniform_rows
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
        stop=run.total_images,
    )
    for batch in batches:
        on_read(batch)
        random_inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.random_inputs.items()}
        real = normalize(batch.images.to(device, non_blocking=True), config.channels_last)
        if "flip" in random_inputs:
            real = torch.where(random_inputs["flip"][:, None, None, None], real.flip(3), real)
        labels = run.dist.to_pinned(batch.labels).to(device, non_blocking=True) if config.data.labels else None
        local_batch = Minibatch(real, random_inputs["z"], labels, random_inputs.get("fake_labels"))
        size = config.micro_batch or len(real)
        columns = [column.split(size) if column is not None else [None] * (len(real) // size) for column in local_batch]
        yield [Minibatch(*columns) for columns in zip(*columns, strict=True)]


def draw(run: Run, state: TrainState, images_seen: int) -> dict[str, Tensor]:
    """This process's rows of the random numbers of the minibatch at `images_seen`.

    They are those of the global minibatch, keyed by its position: they do not depend on the number of processes, and a
    process draws its own rows only. The table is ordered by lane, so that these are adjacent in it.
    """
    config, lanes = run.config, run.order.local_lanes
    slots = config.batch // run.order.lanes
    first, count = lanes.start * slots, len(lanes) * slots

    def stream_of(purpose: str) -> np.random.Philox:
        return philox(config.seed, purpose, images_seen, *([state.rollbacks] if state.rollbacks else []))

    def by_position(table: np.ndarray) -> np.ndarray:
        return table.reshape(len(lanes), slots, -1).swapaxes(0, 1).reshape(count, -1)

    z = by_position(normal_rows(stream_of("latents"), first, count, config.model.latent))
    random_inputs: dict[str, np.ndarray] = {"z": z}
    if config.data.labels:
        frequencies = np.cumsum([row["samples"] for row in run.dataset.classes])
        uniform = by_position(uniform_rows(stream_of("labels"), first, count, 1))[:, 0]
        random_inputs["fake_labels"] = np.searchsorted(frequencies, uniform * frequencies[-1], side="right")
    if config.data.flip:
        random_inputs["flip"] = by_position(uniform_rows(stream_of("flips"), first, count, 1))[:, 0] < 0.5
    return {name: run.dist.to_pinned(values) for name, values in random_inputs.items()}


def normalize(images: Tensor, channels_last: bool) -> Tensor:
    """uint8 [N, S, S, C] -> float32 [N, C, S, S] in [-1, 1]."""
    images = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return images if channels_last else images.contiguous()
