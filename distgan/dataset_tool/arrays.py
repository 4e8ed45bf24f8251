"""Images that are arrays, of any channels and of integers or floats: fitted, and their values converted."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from distgan.dataset_tool.fit import RESIZES, pad_number, plan_fit
from distgan.dataset_tool.notes import note
from distgan.dataset_tool.value_range import parse_range
from distgan.errors import UsageError
from distgan.samples import LIMITS

if TYPE_CHECKING:
    from distgan.dataset_tool.convert import Options

STORED = ("uint8", "uint16", "float16", "float32")
BECOME: dict[str, str] = {"bool": "uint8", "int8": "float32", "int16": "float32", "float64": "float32"}
"""Other types of arrays, and what they are stored in by default: all exactly but float64."""
FROM = "values of "
SCALED_FROM = "scaled from "
EIGHT_BIT = "8-bit, times 257"
"""Conversions of values, the first two followed by the type. What is of another type may be of another scale."""


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
    if name in BECOME:
        note(f"arrays of {name} become {BECOME[name]}; --dtype takes others")
        return BECOME[name]
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
    padding = pad_number(options, array.dtype) if size != options.shape[1::-1] else 0
    fitted = np.full((*options.shape[:2], channels), padding, np.float32)
    for channel in range(channels):
        plane = Image.fromarray(np.ascontiguousarray(array[:, :, channel], np.float32))
        resized = np.asarray(plane.resize(size, RESIZES[options.resize], box=box))
        fitted[offset_y : offset_y + size[1], offset_x : offset_x + size[0], channel] = resized
    if array.dtype.kind == "f":
        return fitted.astype(array.dtype)
    low, high = (0, 1) if array.dtype == bool else (np.iinfo(array.dtype).min, np.iinfo(array.dtype).max)
    exact = fitted.astype(np.float64)  # float32 has no 2**31 - 1
    return np.clip(np.rint(exact), max(low, -(2**53)), min(high, 2**53)).astype(array.dtype)


def check_alike(converted: Mapping[str, int], samples: int, options: "Options") -> bool:
    """Whether the images were scaled, from their conversions.

    Raises UsageError if only some were converted from a type: what the numbers mean may differ. Pictures of 8 and of 16
    bits are alike, both on the whole scale of 16 bits, unless a range says that this is not so.
    """
    counts: dict[str, int] = {}
    for name, count in converted.items():
        if name.startswith((FROM, SCALED_FROM)) or (name == EIGHT_BIT and options.range):
            group = f"{SCALED_FROM}floats" if name.startswith(f"{SCALED_FROM}float") else name
            counts[group] = counts.get(group, 0) + count
    for name, count in counts.items():
        if count != samples:
            problem = f"{count} of {samples} images are {name}, and the others are not: their scales may differ"
            raise UsageError(f"--dtype {options.dtype}: {problem}; make them of one type first")
    return any(name.startswith(SCALED_FROM) for name in counts)


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
    if pixels.dtype.kind != "f":
        count(f"{FROM}{pixels.dtype}")
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
    count(f"{SCALED_FROM}{pixels.dtype}")
    if scaled.min() < 0 or scaled.max() > 1:
        count("clipped to --range")
    return np.rint(np.clip(scaled, 0, 1) * LIMITS[options.pixel_type][1]).astype(options.dtype)
