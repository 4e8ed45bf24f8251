"""Images of a trained generator: latents to draw, the labels that go with them, and batches of images."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distgan.errors import UsageError
from distgan.gan.step import generate
from distgan.generators.conditions import values_of_rows
from distgan.generators.pretrained import PretrainedGenerator

BATCH = 64
MANY = 1024
"""Images whose making shows its progress."""


class Inputs(NamedTuple):
    """What N images are made of: z, or w in its place."""

    z: Tensor | None
    """[N, z_dim], or [frames, N, z_dim] of an animation."""
    classes: np.ndarray
    """int64 [N]; [0] without classes."""
    values: Mapping[str, np.ndarray]
    """Of each condition by name, float64 [N]."""
    w: Tensor | None = None
    """[N, w_dim], or [N, num_ws, w_dim] with one for each layer; of an animation [frames, N, ...]."""
    batch: int = BATCH
    """Images that are made together."""

    @property
    def latents(self) -> Tensor:
        """w or else z."""
        latents = self.z if self.w is None else self.w
        assert latents is not None, "neither z nor w"
        return latents

    def labels(self, G: PretrainedGenerator) -> Tensor | None:
        """As G takes them."""
        return G.labels(self.classes if len(self.classes) else None, self.values)

    def frames(self) -> "Iterator[Inputs]":
        """Those of each frame of an animation."""
        for latents in self.latents:
            yield self._replace(z=latents) if self.w is None else self._replace(w=latents)


def choose_labels(G: PretrainedGenerator, label: str | None) -> list[int]:
    """The labels of a name, a number, a comma-separated list of them, or all; [] without classes. Raises UsageError."""
    if label is None or (label == "all" and G.classes and "all" not in G.classes):
        return list(range(len(G.classes)))
    return [G.label_number(name) for name in ([label] if label in G.classes else label.split(","))]


def label_rows(
    G: PretrainedGenerator,
    z: Tensor,
    classes: Sequence[int],
    given: Mapping[str, np.ndarray],
    shape: tuple[int, int],
    seed: int,
) -> Inputs:
    """`z` with the labels of (rows, columns) images in reading order.

    The classes take turns, one a row. `given` are values of conditions, one or one for each column; others are spread
    over the rows.
    """
    rows, columns = shape
    turns = np.resize(np.array(classes, np.int64), rows) if classes else np.empty(0, np.int64)
    return Inputs(z, turns.repeat(columns), values_of_rows(G.spec.conditions, given, rows, columns, seed))


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation of a and b [..., z_dim] at t [..., 1] in [0, 1] (White 2016, arXiv 1609.04468).

    The norm of Gaussian vectors hardly varies; points on the straight line between two would be shorter.
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)[..., None].clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def closed_walk(points: Tensor, steps: int, spherical: bool) -> Tensor:
    """[N * steps, ...] from each of N points [N, ...] to the next in `steps` steps, and from the last to the first.

    Straight lines, as in w, or spherical ones, as in z.
    """
    t = torch.arange(steps, dtype=points.dtype).reshape(1, steps, *[1] * (points.ndim - 1)) / steps
    a = points[:, None]
    b = points.roll(-1, 0)[:, None]
    path = slerp(a, b, t) if spherical else a + (b - a) * t
    return path.flatten(0, 1)


def interpolations(G: PretrainedGenerator, rows: int, seed: int, truncation: float | None, steps: int) -> Tensor:
    """Latents [rows * steps, z_dim], each row from one latent to another."""
    ends = G.draw(2 * rows, seed, truncation).view(rows, 2, 1, -1)
    t = torch.linspace(0, 1, steps)[:, None]
    z = slerp(ends[:, 0].expand(-1, steps, -1), ends[:, 1].expand(-1, steps, -1), t)
    return z.reshape(rows * steps, -1)


def loop_latents(G: PretrainedGenerator, count: int, seed: int, truncation: float | None, frames: int) -> Tensor:
    """Latents [frames, count, z_dim] on a circle through two Gaussian vectors: Gaussian in every frame, and closed."""
    a, b = G.draw(2 * count, seed, truncation).view(2, count, -1)
    angle = torch.arange(frames)[:, None, None] * (2 * torch.pi / frames)
    return torch.cos(angle) * a + torch.sin(angle) * b


def batches(G: PretrainedGenerator, inputs: Inputs, convert: Callable[[Tensor], np.ndarray]) -> Iterator[np.ndarray]:
    """The images by up to inputs.batch, each batch as `convert` makes it of float32 [batch, C, H, W] in [-1, 1].

    Shows a progress bar for many. Raises UsageError for NaN and Inf.
    """
    device = next(G.parameters()).device
    labels = inputs.labels(G) if inputs.w is None else None
    count = len(inputs.latents)
    hidden = None if count > MANY else True
    for start in tqdm(range(0, count, inputs.batch), unit_scale=inputs.batch, unit=" images", disable=hidden):
        part = slice(start, start + inputs.batch)
        latents = inputs.latents[part].to(device)
        if inputs.w is None:
            images = generate(G, latents, labels[part].to(device) if labels is not None else None)
        else:
            with torch.no_grad():
                images = G.synthesis(latents).cpu()
        if not images.isfinite().all():
            raise UsageError(f"{G.path} generates NaN or Inf")
        yield convert(images.float())
