"""The minibatches of a run: real images from the dataset, latents and labels drawn for them, on the device."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from distgan.config.keys import Config
from distgan.data.order import Lanes
from distgan.data.stream import ImageBatch, Stream
from distgan.distributed.processes import Distributed
from distgan.gan.latents import sample_posterior
from distgan.gan.parts import GAN, Batches, Minibatch
from distgan.gan.penalties import PENALTIES
from distgan.pixels import normalize
from distgan.rng import normal_rows, philox, random_rows, uniform_rows
from distgan.samples import SampleSpec
from distgan.training.build import build_view, has_own_minibatch
from distgan.training.data import Data

LARGEST_BELOW_1 = np.float32(1 - 2**-24)


class Needs(NamedTuple):
    """What the loss, the penalties and the augmentations of a run draw random numbers for."""

    paired: bool = False
    """Whether each fake is compared with a real image, of the same label."""
    interpolates: bool = False
    """Whether a penalty evaluates D between a real image and a fake one."""
    augment_columns: int = 0
    """Uniform numbers that augment one image."""
    perturbs: frozenset[str] = frozenset()
    """The images, "real" or "fake", that a penalty adds noise to."""
    fresh: bool = False
    """Whether G is updated on latents and real images of its own."""
    posterior: bool = False
    """Whether real samples are drawn from the moments of latents."""


class Draws:
    """This process's rows of the random numbers of a global minibatch.

    They are keyed by the seed, the purpose and the minibatch's position: they do not depend on the number of processes,
    and a process draws its own rows only. The global table is ordered by lane, so that these are adjacent in it.
    """

    def __init__(
        self, config: Config, order: Lanes, draw_labels: Callable[[np.ndarray], np.ndarray], needs: Needs
    ) -> None:
        """`draw_labels` maps numbers [rows] in [0, 1) to labels at the frequencies of the dataset."""
        self.config = config
        self.needs = needs
        self.draw_labels = draw_labels
        self.lanes = len(order.local_lanes)
        self.slots = config.batch // order.lanes
        """Images of a lane in a minibatch."""
        self.first = order.local_lanes.start * self.slots
        self.count = self.lanes * self.slots

    def __call__(self, images_seen: int, rollbacks: int = 0) -> dict[str, np.ndarray]:
        """The arrays [rows, ...] by name of the minibatch at `images_seen`, after so many `rollbacks`."""
        position = (images_seen, *([rollbacks] if rollbacks else []))
        arrays = {"z": self.normal("latents", position, self.config.model.latent)}
        if self.needs.fresh:
            arrays["g_z"] = self.normal("latents of G", position, self.config.model.latent)
        if self.config.data.labels and not (self.needs.paired or self.needs.interpolates):
            arrays["fake_labels"] = self.draw_labels(self.uniform("labels", position)[:, 0])
        if self.config.data.flip:
            arrays["flip"] = self.uniform("flips", position)[:, 0] < 0.5
        if self.needs.interpolates:
            arrays["mix"] = self.uniform32("mix", position, 1)[:, 0]
        if columns := self.needs.augment_columns:
            for name in ("u_real", "u_fake", "u_g", *(["g_u_real"] if self.needs.fresh else [])):
                arrays[name] = self.uniform32(name, position, columns)
        for images in self.needs.perturbs:
            arrays[f"noise_{images}"] = self.keys(f"noise of {images}", position)
        if self.needs.posterior:
            arrays["posterior"] = self.keys("posterior", position)
        return arrays

    def keys(self, purpose: str, position: tuple[int, ...]) -> np.ndarray:
        """63-bit integers: the noise itself is as large as the images, and is made of its key on the device."""
        words = random_rows(philox(self.config.seed, purpose, *position), self.first, self.count, 1)
        return self.by_position((words >> np.uint64(1)).astype(np.int64))[:, 0]

    def normal(self, purpose: str, position: tuple[int, ...], columns: int) -> np.ndarray:
        stream_of_bits = philox(self.config.seed, purpose, *position)
        return self.by_position(normal_rows(stream_of_bits, self.first, self.count, columns))

    def uniform(self, purpose: str, position: tuple[int, ...], columns: int = 1) -> np.ndarray:
        stream_of_bits = philox(self.config.seed, purpose, *position)
        return self.by_position(uniform_rows(stream_of_bits, self.first, self.count, columns))

    def uniform32(self, purpose: str, position: tuple[int, ...], columns: int) -> np.ndarray:
        return np.minimum(self.uniform(purpose, position, columns).astype(np.float32), LARGEST_BELOW_1)

    def by_position(self, table: np.ndarray) -> np.ndarray:
        """Rows in the order of lanes -> in the order of the minibatch."""
        return table.reshape(self.lanes, self.slots, -1).swapaxes(0, 1).reshape(self.count, -1)


class LoadedBatch(NamedTuple):
    """A minibatch on the device, as micro-batches."""

    images: ImageBatch
    """As it was read."""
    d: list[Minibatch]
    g: list[Minibatch] | None
    """The same real images with latents of their own, for G's update; None unless the loss is paired."""


class Minibatches:
    """This process's rows of the minibatches of a run."""

    def __init__(self, config: Config, processes: Distributed, data: Data, draws: Draws) -> None:
        self.config = config
        self.processes = processes
        self.data = data
        self.draws = draws

    def iterations(
        self, images_seen: int, count: int, on_read: Callable[[ImageBatch], None], rollbacks: int = 0
    ) -> Iterator[Batches]:
        """The minibatches of `count` iterations from `images_seen` on.

        `on_read` is called with what was read, before D is updated on it. The real images for G's update, where it has
        its own, are those that D sees next: D has not been updated on them yet, and nothing is read twice.
        """
        fresh = self.draws.needs.fresh
        loaded = self.load(images_seen, count * self.config.n_critic + (1 if fresh else 0), rollbacks)
        ahead = deque[LoadedBatch]()
        for _ in range(count):
            batches = [ahead.popleft() if ahead else next(loaded) for _ in range(self.config.n_critic)]
            for batch in batches:
                on_read(batch.images)
            if fresh:
                ahead.append(next(loaded))
            yield Batches([batch.d for batch in batches], ahead[0].g if ahead else None)

    def load(self, images_seen: int, count: int, rollbacks: int) -> Iterator[LoadedBatch]:
        """`count` minibatches from `images_seen` on, on the device."""

        def draw(position: int) -> dict[str, Tensor]:
            return {name: self.processes.to_pinned(a) for name, a in self.draws(position, rollbacks).items()}

        batches = Stream(
            self.data.order,
            self.data.reader,
            draw,
            batch=self.config.batch,
            position=images_seen,
            threads=self.config.data.threads,
            stop=images_seen + count * self.config.batch,
        )
        for batch in batches:
            yield self.to_device(batch)

    def to_device(self, batch: ImageBatch) -> LoadedBatch:
        """Copy a minibatch to the device without waiting, see `to_real`, and split it."""
        config = self.config
        device = self.processes.device
        inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.random_inputs.items()}
        real = self.to_real(batch.images.to(device, non_blocking=True), inputs)
        labels = None
        if config.data.labels:
            labels = self.processes.to_pinned(batch.labels).to(device, non_blocking=True)
        pixels = None
        if batch.pixels is not None:
            pixels = self.to_pixels(batch.pixels.to(device, non_blocking=True), self.data.spec.pixels, inputs)
        minibatch = Minibatch(
            real,
            z=inputs["z"],
            labels=labels,
            fake_labels=inputs.get("fake_labels", labels),
            u_real=inputs.get("u_real"),
            u_fake=inputs.get("u_fake"),
            u_g=inputs.get("u_g"),
            mix=inputs.get("mix"),
            noise_real=inputs.get("noise_real"),
            noise_fake=inputs.get("noise_fake"),
            pixels=pixels,
        )
        size = config.micro_batch or len(real)
        g = None
        if "g_z" in inputs:
            g = split(minibatch._replace(z=inputs["g_z"], u_real=inputs.get("g_u_real"), pixels=None), size)
        return LoadedBatch(batch, split(minibatch, size), g)

    def to_real(self, stored: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Stored images on the device -> as networks see them, [N, C, H, W], flipped where `data.flip` says.

        Of latents the flipped image has an encoding of its own: that of the image, flipped, would be another.
        """
        spec = self.data.spec
        if spec.latents is None:
            return self.to_pixels(stored, spec, inputs)
        latents = sample_posterior(stored, spec, inputs["posterior"], inputs.get("flip"))
        return latents.contiguous(memory_format=self.layout)

    def to_pixels(self, stored: Tensor, spec: SampleSpec, inputs: dict[str, Tensor]) -> Tensor:
        """Stored pixels of `spec` on the device -> [N, C, H, W] in [-1, 1], flipped where `data.flip` says."""
        flip = inputs.get("flip")
        images = normalize(stored, spec).contiguous(memory_format=self.layout)
        return images if flip is None else torch.where(flip[:, None, None, None], images.flip(3), images)

    @property
    def layout(self) -> torch.memory_format:
        """Of images on the device."""
        return torch.channels_last if self.config.channels_last else torch.contiguous_format


def minibatches_of(config: Config, processes: Distributed, data: Data, gan: GAN) -> Minibatches:
    """The minibatches that a run trains on."""
    penalties = [PENALTIES[name] for name in config.penalties]
    interpolates = any(penalty.interpolates for penalty in penalties)
    perturbs = frozenset(penalty.perturbs for penalty in penalties if penalty.perturbs)
    columns = build_view(config, gan.raw_D).columns
    fresh = has_own_minibatch(config)
    posterior = data.spec.latents is not None
    needs = Needs(gan.loss.paired, interpolates, columns, perturbs, fresh, posterior)
    draws = Draws(config, data.order, data.dataset.draw_labels, needs)
    return Minibatches(config, processes, data, draws)


def split(batch: Minibatch, size: int) -> list[Minibatch]:
    """Micro-batches of `size` rows."""
    count = len(batch.real) // size
    columns = [column.split(size) if column is not None else [None] * count for column in batch]
    return [Minibatch(*rows) for rows in zip(*columns, strict=True)]


def join_and_split(batches: Sequence[Minibatch], size: int) -> list[Minibatch]:
    """The same minibatch in micro-batches of another size."""
    columns: list = [torch.cat(column) if column[0] is not None else None for column in zip(*batches, strict=True)]
    return split(Minibatch(*columns), size)
