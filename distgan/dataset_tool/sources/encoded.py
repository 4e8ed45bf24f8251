"""Images in files, and as the bytes of such files: .npy, TIFF, and what Pillow reads."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from distgan.dataset_tool.sources.pixels import Layout, decode_array, load_npy, to_image
from distgan.dataset_tool.sources.source import FORMATS
from distgan.dataset_tool.sources.tiff import SUFFIXES, is_tiff, open_tiff

NPY = b"\x93NUMPY"


def open_image(path: Path, layout: Layout | None = None) -> Image.Image | np.ndarray:
    """The image in a file; `layout` is that of an .npy. Raises ValueError and OSError."""
    name = str(path).lower()
    if name.endswith(".npy"):
        return load_npy(path, layout)
    if name.endswith(SUFFIXES):
        return open_tiff(path)
    return Image.open(path, formats=FORMATS)


def open_bytes(data: bytes, layout: Layout | None = None) -> Image.Image | np.ndarray:
    """The image in the bytes of a file; `layout` is that of an .npy. Raises ValueError and OSError."""
    if data.startswith(NPY):
        return to_image(decode_array(data), layout)
    if is_tiff(data):
        return open_tiff(data)
    return Image.open(io.BytesIO(data), formats=FORMATS)
