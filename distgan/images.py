"""Images: the formats that are read, uint8 pixels, and grids as PNG. Needs no torch."""

import importlib.util
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from distgan.files import atomic_write

ENCODINGS = {"npy": "npy", "png": "png", "jpg": "jpg", "jpeg": "jpg"}
"""File extension in a shard -> encoding of the dataset."""
PIL_FORMATS = {
    **{".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jfif": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF"},
    **{".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"},
    **({".avif": "AVIF"} if importlib.util.find_spec("PIL._avif") else {}),  # Pillow 11.3, where it has the codec
}
"""Suffix -> Pillow's name of a format that `shards make` reads. Pillow is always told which formats it may try: some of
the others start a program (Ghostscript for EPS)."""
SHARD_PIL_FORMATS = tuple(dict.fromkeys(PIL_FORMATS[f".{extension}"] for extension in ENCODINGS if extension != "npy"))
"""Those that an image in a shard may have."""


def to_uint8(images: np.ndarray) -> np.ndarray:
    """float [N, C, H, W] in [-1, 1] -> uint8 [N, H, W, C]; values outside are clipped."""
    scaled = (np.clip(images.astype(np.float32), -1, 1) + 1) / 2 * 255 + 0.5
    return scaled.astype(np.uint8).transpose(0, 2, 3, 1)


def grid(images: np.ndarray, columns: int | None = None, padding: int = 2) -> np.ndarray:
    """uint8 [N, H, W, 1 or 3] -> one picture uint8 [H', W', 3], images in reading order on black.

    `columns` defaults to about as wide as high. Pixel for pixel the grid of torchvision.utils.make_grid, whose import
    takes longer than the rest of a start.
    """
    n, h, w, _ = images.shape
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    rows = math.ceil(n / columns)
    picture = np.zeros((rows * (h + padding) + padding, columns * (w + padding) + padding, 3), np.uint8)
    for i, image in enumerate(images):
        y, x = (place * (side + padding) + padding for place, side in zip(divmod(i, columns), (h, w), strict=True))
        picture[y : y + h, x : x + w] = image
    return picture


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write uint8 [H, W, 3] or [H, W], or uint16 [H, W], atomically, in the format of the suffix. Raises OSError."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, PIL_FORMATS[path.suffix.lower()], quality=95)
    atomic_write(path, out.getvalue())
