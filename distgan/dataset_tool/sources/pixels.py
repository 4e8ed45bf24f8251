"""Images as arrays: the order of the axes, and .npy files. What becomes of their types: dataset_tool/arrays.py."""

import io
import math
from pathlib import Path
from typing import IO, BinaryIO, Literal

import numpy as np

from distgan.data.index_file import read_npy_header
from distgan.data.schema import MAX_CHANNELS

Layout = Literal["HWC", "CHW"]
"""Whether the channels of an array are its last or its first axis."""
MIN_SIDE = 8
"""In pixels: what tells a side from a number of channels."""


def has_channels_first(shape: tuple[int, ...], layout: Layout | None) -> bool:
    """Whether the first axis of an image of this shape is that of the channels; `layout` None: as the shape tells.

    Raises ValueError if the shape is not that of an image, and if `layout` must be given.
    """
    if len(shape) not in (2, 3):
        several = "; SRC is the file itself if it holds all images" if len(shape) == 4 else ""
        expected = "an image is [height, width] or [height, width, channels]"
        raise ValueError(f"an array of {len(shape)} axes {list(shape)}; {expected}{several}")
    if len(shape) == 2 or layout is not None:
        return len(shape) == 3 and layout == "CHW"
    last = shape[2] <= MAX_CHANNELS and min(shape[:2]) >= MIN_SIDE
    first = shape[0] <= MAX_CHANNELS and min(shape[1:]) >= MIN_SIDE
    if first and last:
        raise ValueError(f"{list(shape)} may be in either order; give --layout HWC, or CHW for channels first")
    if first:
        raise ValueError(f"{list(shape)} looks like [channels, height, width]; --layout CHW reads it so")
    return False


def to_image(array: np.ndarray, layout: Layout | None) -> np.ndarray:
    """An array of one image as [H, W] or [H, W, C], in the machine's byte order and memory of its own.

    Raises ValueError.
    """
    if has_channels_first(array.shape, layout):
        array = np.moveaxis(array, 0, -1)
    return np.array(array, array.dtype.newbyteorder("="), order="C")


def decode_array(data: bytes) -> np.ndarray:
    """The array in the bytes of an .npy file. Raises ValueError."""
    file = io.BytesIO(data)
    shape, fortran, dtype = read_array_header(file)
    values = np.frombuffer(data, dtype, math.prod(shape), file.tell())
    return values.reshape(shape, order="F" if fortran else "C")


def load_npy(path: Path, layout: Layout | None) -> np.ndarray:
    """The image in an .npy file. Raises ValueError and OSError."""
    with open(path, "rb") as file:
        return to_image(map_array(file), layout)


def map_array(file: BinaryIO) -> np.ndarray:
    """Memory-map the array whose .npy header is next in an open file. Raises ValueError."""
    shape, fortran, dtype = read_array_header(file)
    return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")


def read_array_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran order, and type of an .npy array of numbers or text. Raises ValueError."""
    shape, fortran, text = read_npy_header(file)
    try:
        dtype = np.dtype(text)
    except TypeError:
        raise ValueError(f"an array of {text}, which is not a type of numpy") from None
    if dtype.kind not in "biufSU" or dtype.itemsize == 0:  # of other kinds are objects, which need pickle
        raise ValueError(f"an array of {text}; images and labels are numbers or text")
    if math.prod(shape) == 0:
        raise ValueError(f"an array of {list(shape)} is empty")
    return shape, fortran, dtype
