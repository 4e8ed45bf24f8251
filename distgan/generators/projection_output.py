"""What a projection is written to: arrays, a sheet of the way, an animation of it, and the images that were found."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from distgan.generators import output
from distgan.generators.animation import arrange, save_frames
from distgan.generators.pretrained import PretrainedGenerator
from distgan.generators.projection import Projection, Space
from distgan.generators.sampling import Inputs
from distgan.images import grid, save_picture
from distgan.pixels import to_picture

SHEET_PARTS = (0.0, 0.02, 0.06, 0.15, 0.4)
"""Of the steps, after which a sheet shows the image; and the result."""
FRAMES = 120
"""Of an animation, at most."""
MOST_COLUMNS = 8
"""Of the frames of an animation."""
ARRAYS = "result.npz"
SHEET = "path.png"


class Result(NamedTuple):
    """Latents that were found, and what they are of."""

    found: Projection
    space: Space
    targets: Tensor
    """float32 [N, C, H, W] in [-1, 1]."""
    classes: np.ndarray
    """int64 [N]; [0] without classes."""
    values: dict[str, np.ndarray]
    """Of each condition by name, float64 [N]."""

    def inputs(self, latents: Tensor) -> Inputs:
        """What images of these latents [N, ...] are made of."""
        z_and_w = (latents, None) if self.space == "z" else (None, latents)
        return Inputs(z_and_w[0], self.classes, self.values, w=z_and_w[1])


def snapshots_for(suffix: str, steps: int) -> list[int]:
    """The numbers of steps after which a file with this suffix, or a folder, shows the images."""
    if suffix in (".gif", ".webp", ".mp4"):
        return sorted({round(steps * i / (FRAMES - 1)) for i in range(FRAMES)})
    return sorted({round(steps * part) for part in SHEET_PARTS} | {steps})


def save(G: PretrainedGenerator, result: Result, out: Path, show: Sequence[int], fps: float, format: str) -> None:
    """Write the file `out`, or a folder, whose single files are of `format`. Raises OSError."""
    suffix = out.suffix.lower()
    inputs = result.inputs(result.found.latents)
    distances = result.found.distances.numpy()
    if not suffix:
        out.mkdir(parents=True, exist_ok=True)
        output.save_arrays(G, inputs, out / ARRAYS, distances=distances)
        save_picture(sheet(G, result, show), out / SHEET)
        output.save_files(G, inputs, out, [f"{i:06d}.{format}" for i in range(len(result.targets))])
    elif suffix == ".npz":
        output.save_arrays(G, inputs, out, distances=distances)
    elif suffix in (".gif", ".webp", ".mp4"):
        save_frames(frames(G, result, show), out, fps)
    else:
        save_picture(sheet(G, result, show), out)


def sheet(G: PretrainedGenerator, result: Result, show: Sequence[int]) -> np.ndarray:
    """A row for each image: itself, those on the way, and the one that was found."""
    columns = [to_picture(result.targets.numpy(), show)]
    columns += [output.pictures(G, result.inputs(latents), show) for latents in result.found.path]
    rows = np.stack(columns, 1)
    return grid(rows.reshape(-1, *rows.shape[2:]), len(columns))


def frames(G: PretrainedGenerator, result: Result, show: Sequence[int]) -> Iterator[np.ndarray]:
    """A picture for each of the snapshots: every image, and right of it the one on the way to it."""
    targets = to_picture(result.targets.numpy(), show)
    columns = min(2 * len(targets), MOST_COLUMNS)
    for latents in result.found.path:
        pairs = np.stack([targets, output.pictures(G, result.inputs(latents), show)], 1)
        yield arrange(pairs.reshape(-1, *pairs.shape[2:]), columns)
