"""Images that are arrays, of any channels and of integers or floats: fitted, and their values converted."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from distgan.dataset_tool.fit import RESIZES, pad_value, plan_fit
from distgan.dataset_tool.value_range import parse_range
from distgan.errors import UsageError
from distgan.samples import LIMITS

if TYPE_CHECKING:
    from distgan.dataset_tool.convert import Options

STORED = ("uint8", "uint16", "float16", "float32")


def check_array(array: np.ndarray) -> np.ndarray:
    """The array as [H, W, C] in the machine's byte order. Raises ValueError unless it is one image of numbers."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        shape = list(array.shape)
        raise ValueError(f"an array of {shape}; an image is [height, width] or [height, width, channels]")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"an array of {array.dtype}, which is no kind of pixels")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def array_dtype(array: np.ndarray) -> str:
    """The dtype that such pixels are stored in. Raises UsageError where that would lose something."""
    name = array.dtype.name
    if name in STORED:
        return name
    if name == "bool":
        return "uint8"
    raise UsageError(
        f"--dtype: arrays of {name} are stored as one of {', '.join(STORED)}: give which, and for integers --range "
        "LOW,HIGH too"
    )


def fit_array(array: np.ndarray, options: "Options", count: Callable[[str], None]) -> np.ndarray:
    """The array in the height and width of the options, channel by channel, in its own dtype. Raises ValueError."""
    height, width, channels = array.shape
    if (height, width) == options.shape[:2]:
        return array
    box, size = plan_fit(width, height, options, count)
    offset_y = (options.shape[0] - size[1]) // 2
    offset_x = (options.shape[1] - size[0]) // 2
    fitted = np.full((*options.shape[:2], channels), pad_value(options.pad_color, "F"), np.float32)
    for channel in range(channels):
        plane = Image.fromarray(np.ascontiguousarray(array[:, :, channel], np.float32))
        resized = np.asarray(plane.resize(size, RESIZES[options.resize], box=box))
        fitted[offset_y : offset_y + size[1], offset_x : offset_x + size[0], channel] = resized
    if array.dtype.kind == "f":
        return fitted.astype(array.dtype)
    limits = np.iinfo(array.dtype) if array.dtype.kind in "iu" else np.iinfo(np.uint8)
    return np.clip(np.rint(fitted), limits.min, limits.max).astype(array.dtype)


def convert_values(pixels: np.ndarray, options: "Options", count: Callable[[str], None]) -> np.ndarray:
    """Pixels in the dtype of the options: values are kept, or, to integers of another dtype, mapped from --range.

    Raises ValueError for NaN and Inf, for values that the dtype cannot hold, and where a range would be needed.
    """
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise ValueError("NaN or Inf among the pixels")
    if pixels.dtype == options.dtype:
        return pixels
    if options.dtype in LIMITS:
        return scale_values(pixels, options, count)
    with np.errstate(over="ignore"):  # refused below
        converted = pixels.astype(options.dtype)
    if not np.isfinite(converted).all():
        raise ValueError(f"values up to {np.abs(pixels).max():g} do not fit into {options.dtype}; take --dtype float32")
    if not np.array_equal(converted, pixels):
        count(f"rounded to {options.dtype}")
    return converted


def scale_values(pixels: np.ndarray, options: "Options", count: Callable[[str], None]) -> np.ndarray:
    """Pixels of another dtype as integers from 0 up, `--range` mapped to all of them; values outside are clipped."""
    limits = parse_range(options.range)
    if pixels.dtype == bool:
        limits = (0.0, 1.0)
    if limits is None or isinstance(limits[0], str):
        raise ValueError(f"an array of {pixels.dtype}; for --dtype {options.dtype} give --range LOW,HIGH")
    low, high = (float(limit) for limit in limits)
    scaled = (pixels.astype(np.float64) - low) / (high - low)
    count(f"scaled from {pixels.dtype}")
    if scaled.min() < 0 or scaled.max() > 1:
        count("clipped to --range")
    return np.rint(np.clip(scaled, 0, 1) * LIMITS[options.pixel_type][1]).astype(options.dtype)
