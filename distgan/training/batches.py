"""The minibatches of a run: real images from the dataset, latents and labels drawn for them, on the device."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distgan.data.stream import ImageBatch, stream
from distgan.gan.step import Batches, Minibatch
from distgan.rng import normal_rows, philox, uniform_rows
from distgan.training.build import Run
from distgan.training.state import TrainState

LARGEST_BELOW_1 = np.float32(1 - 2**-24)


def iterations(
    run: Run, state: TrainState, on_read: Callable[[ImageBatch], None], count: int | None = None
) -> Iterator[Batches]:
    """This process's rows of the minibatches of `count` iterations from `state.images_seen` on, or to the run's end.

    `on_read` is called with what was read, before D is updated on it. The real images for G's update, where the loss
    compares fakes with them, are those that D sees next: D has not been updated on them yet, and nothing is read twice.
    """
    config, paired = run.config, run.gan.loss.paired
    if count is None:
        count = math.ceil((run.total_images - state.images_seen) / config.iteration_images)
    loaded, ahead = load(run, state, count * config.n_critic + (1 if paired else 0)), deque[LoadedBatch]()
    for _ in range(count):
        batches = [ahead.popleft() if ahead else next(loaded) for _ in range(config.n_critic)]
        for batch in batches:
            on_read(batch.images)
        if paired:
            ahead.append(next(loaded))
        yield Batches([batch.d for batch in batches], ahead[0].g if ahead else None)


class LoadedBatch(NamedTuple):
    """A minibatch on the device, as micro-batches."""

    images: ImageBatch
    """As it was read."""
    d: list[Minibatch]
    g: list[Minibatch]
    """The same real images with latents of their own, for G's update; empty unless the loss is paired."""


def load(run: Run, state: TrainState, count: int) -> Iterator[LoadedBatch]:
    """`count` minibatches from `state.images_seen` on, on the device."""
    config, device = run.config, run.processes.device
    batches = stream(
        run.order,
        run.reader,
        lambda images_seen: draw(run, state, images_seen),
        batch=config.batch,
        position=state.images_seen,
        threads=config.data.threads,
        stop=state.images_seen + count * config.batch,
    )
    for batch in batches:
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.random_inputs.items()}
        real = normalize(batch.images.to(device, non_blocking=True), config.channels_last)
        if "flip" in inputs:
            real = torch.where(inputs["flip"][:, None, None, None], real.flip(3), real)
        labels = run.processes.to_pinned(batch.labels).to(device, non_blocking=True) if config.data.labels else None

        def minibatch(z: Tensor, u_real: Tensor | None, real=real, labels=labels, inputs=inputs) -> list[Minibatch]:
            fake_labels = inputs.get("fake_labels", labels)
            u_fake, u_g, mix = (inputs.get(name) for name in ("u_fake", "u_g", "mix"))
            columns = Minibatch(real, z, labels, fake_labels, u_real, u_fake, u_g, mix)
            return split(columns, config.micro_batch or len(real))

        g = minibatch(inputs["g_z"], inputs.get("g_u_real")) if "g_z" in inputs else []
        yield LoadedBatch(batch, minibatch(inputs["z"], inputs.get("u_real")), g)


def split(batch: Minibatch, size: int) -> list[Minibatch]:
    """Micro-batches of `size` rows."""
    count = len(batch.real) // size
    columns = [column.split(size) if column is not None else [None] * count for column in batch]
    return [Minibatch(*rows) for rows in zip(*columns, strict=True)]


def join_and_split(batches: Sequence[Minibatch], size: int) -> list[Minibatch]:
    """The same minibatch in micro-batches of another size."""
    columns: list = [torch.cat(column) if column[0] is not None else None for column in zip(*batches, strict=True)]
    return split(Minibatch(*columns), size)


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

    def normal(purpose: str, columns: int) -> np.ndarray:
        return by_position(normal_rows(stream_of(purpose), first, count, columns))

    def uniform(purpose: str, columns: int = 1) -> np.ndarray:
        return by_position(uniform_rows(stream_of(purpose), first, count, columns))

    def uniform32(purpose: str, columns: int = 1) -> np.ndarray:
        return np.minimum(uniform(purpose, columns).astype(np.float32), LARGEST_BELOW_1)

    paired, interpolates = run.gan.loss.paired, any(row.penalty.interpolates for row in run.penalties.values())
    random_inputs: dict[str, np.ndarray] = {"z": normal("latents", config.model.latent)}
    if paired:
        random_inputs["g_z"] = normal("latents of G", config.model.latent)
    if config.data.labels and not (paired or interpolates):
        frequencies = np.cumsum([row.samples for row in run.dataset.classes])
        shares = uniform("labels")[:, 0]
        random_inputs["fake_labels"] = np.searchsorted(frequencies, shares * frequencies[-1], side="right")
    if config.data.flip:
        random_inputs["flip"] = uniform("flips")[:, 0] < 0.5
    if interpolates:
        random_inputs["mix"] = uniform32("mix")[:, 0]
    if columns := run.augment_columns:
        for name in ("u_real", "u_fake", "u_g", *(["g_u_real"] if paired else [])):
            random_inputs[name] = uniform32(name, columns)
    return {name: run.processes.to_pinned(values) for name, values in random_inputs.items()}


def normalize(images: Tensor, channels_last: bool) -> Tensor:
    """uint8 [N, S, S, C] -> float32 [N, C, S, S] in [-1, 1]."""
    images = images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return images if channels_last else images.contiguous()
