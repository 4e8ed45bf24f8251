"""Animations: frames of generated images as a .gif, a .webp or an .mp4."""

import importlib
import importlib.util
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distgan.errors import UsageError
from distgan.files import atomic_write
from distgan.generators.output import pictures
from distgan.generators.pretrained import PretrainedGenerator
from distgan.generators.sampling import Inputs
from distgan.images import grid

INSTALL_VIDEO = "pip install 'distgan[video]'"
VIDEO = ".mp4"
FPS = 25
CRF = "17"
"""H.264's constant rate factor: 0 is lossless, 17 or 18 looks so."""


def check_video(suffix: str) -> None:
    """Raises UsageError for a video without the package that encodes it."""
    if suffix == VIDEO and importlib.util.find_spec("imageio_ffmpeg") is None:
        raise UsageError(f"out: an {VIDEO} needs imageio-ffmpeg: {INSTALL_VIDEO}, or take .webp or .gif")


def save_animation(
    G: PretrainedGenerator, inputs: Inputs, out: Path, columns: int | None, show: Sequence[int], fps: float
) -> None:
    """Write an endless animation, a grid, or an image without a frame around it, per frame of `inputs`.

    Raises OSError.
    """
    save_frames((arrange(pictures(G, each, show), columns) for each in inputs.frames()), out, fps)


def arrange(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """uint8 [N, H, W, 1 or 3] -> one picture uint8 [H', W', 3]: a grid, or the image where it is alone."""
    return grid(images, columns) if len(images) > 1 else np.repeat(images[0], 3 // images.shape[3], axis=2)


def save_frames(frames: Iterable[np.ndarray], out: Path, fps: float) -> None:
    """Write pictures uint8 [H, W, 3] of one size in the format of the suffix. Raises OSError."""
    if out.suffix.lower() == VIDEO:
        save_video(iter(frames), out, fps)
        return
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(out, save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0, quality=90)


def save_video(frames: Iterator[np.ndarray], out: Path, fps: float) -> None:
    """Write an .mp4 that every player shows: H.264, yuv420p; a black line makes odd sides even. Raises OSError."""
    ffmpeg: Any = importlib.import_module("imageio_ffmpeg")
    first = even(next(frames))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"video{VIDEO}"
        writer = ffmpeg.write_frames(
            str(file),
            first.shape[1::-1],
            fps=fps,
            codec="libx264",
            quality=None,
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-crf", CRF, "-movflags", "+faststart"],
        )
        writer.send(None)
        writer.send(first)
        for frame in frames:
            writer.send(even(frame))
        writer.close()
        atomic_write(out, file.read_bytes())


def even(frame: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] with even sides, a black line added below and to the right where one is odd."""
    height, width, _ = frame.shape
    return np.ascontiguousarray(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0))))
