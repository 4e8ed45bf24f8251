"""Images of a trained generator: latents to draw, and the files to write them to."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from distgan.errors import UsageError
from distgan.gan.step import generate
from distgan.generators.pretrained import PretrainedGenerator
from distgan.images import grid, save_picture, to_uint8

BATCH = 64


def choose_labels(G: PretrainedGenerator, label: str | None) -> list[int]:
    """The labels of a name, a number, a comma-separated list of them, or all; [] without classes. Raises UsageError."""
    if label is None or (label == "all" and G.classes and "all" not in G.classes):
        return list(range(len(G.classes)))
    return [G.label_number(name) for name in ([label] if label in G.classes else label.split(","))]


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical interpolation of a and b [..., z_dim] at t [..., 1] in [0, 1] (White 2016, arXiv 1609.04468).

    The norm of Gaussian vectors hardly varies; points on the straight line between two would be shorter.
    """
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)[..., None].clamp(-1 + 1e-6, 1 - 1e-6)
    angle = torch.acos(cosine)
    return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)


def interpolations(
    G: PretrainedGenerator, rows: int, seed: int, truncation: float | None, steps: int
) -> tuple[Tensor, list[int]]:
    """Latents [rows * steps, z_dim], each row from one latent to another; and the row of each."""
    ends = G.draw(2 * rows, seed, truncation).view(rows, 2, 1, -1)
    t = torch.linspace(0, 1, steps)[:, None]
    z = slerp(ends[:, 0].expand(-1, steps, -1), ends[:, 1].expand(-1, steps, -1), t)
    return z.reshape(rows * steps, -1), [row for row in range(rows) for _ in range(steps)]


def loop_latents(G: PretrainedGenerator, count: int, seed: int, truncation: float | None, frames: int) -> Tensor:
    """Latents [frames, count, z_dim] on a circle through two Gaussian vectors: Gaussian in every frame, and closed."""
    a, b = G.draw(2 * count, seed, truncation).view(2, count, -1)
    angle = torch.arange(frames)[:, None, None] * (2 * torch.pi / frames)
    return torch.cos(angle) * a + torch.sin(angle) * b


def batches(G: PretrainedGenerator, z: Tensor, labels: Sequence[int]) -> Iterator[np.ndarray]:
    """Images uint8 [up to 64, size, size, channels] of z [N, z_dim]; a progress bar for many."""
    device = next(G.parameters()).device
    starts = tqdm(range(0, len(z), BATCH), unit_scale=BATCH, unit=" images", disable=None if len(z) > 1024 else True)
    for start in starts:
        part = slice(start, start + BATCH)
        label = torch.tensor(labels[part], device=device) if labels else None
        images = generate(G.network, z[part].to(device), label)
        if not images.isfinite().all():
            raise UsageError(f"{G.path} generates NaN or Inf")
        yield to_uint8(images.numpy())


def save(G: PretrainedGenerator, z: Tensor, labels: Sequence[int], out: Path, columns: int | None) -> None:
    """Write the images of z as a sheet, as arrays, or as single files, by the suffix of `out`. Raises OSError."""
    if not out.suffix:
        out.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(image for batch in batches(G, z, labels) for image in batch):
            save_picture(image.squeeze(), out / f"{i:06d}.png")
        return
    images = np.concatenate(list(batches(G, z, labels)))
    if out.suffix.lower() == ".npz":
        np.savez_compressed(out, images=images, z=z.numpy(), labels=np.array(labels, np.int64))
    else:
        save_picture(grid(images, columns), out)


def save_loop(G: PretrainedGenerator, latents: Tensor, labels: Sequence[int], out: Path, columns: int | None) -> None:
    """Write an endless animation of latents [frames, count, z_dim], a grid per frame. Raises OSError."""
    turns = [labels[i % len(labels)] for i in range(latents.shape[1])] if labels else []
    frames = [Image.fromarray(grid(np.concatenate(list(batches(G, z, turns))), columns)) for z in latents]
    frames[0].save(out, save_all=True, append_images=frames[1:], duration=40, loop=0, quality=90)
