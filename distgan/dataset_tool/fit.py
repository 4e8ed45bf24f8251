"""Images in another size: cropped, padded or stretched, and resized by Pillow's antialiased filters."""

import math
import re
from collections.abc import Callable
from typing import Protocol

import numpy as np
from PIL import Image, ImageColor

from distgan.data.schema import MAX_SIZE
from distgan.dataset_tool.value_range import parse_range
from distgan.errors import UsageError

RESIZES = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}


class FitOptions(Protocol):
    """What fitting needs of `convert.Options`."""

    @property
    def shape(self) -> tuple[int, int, int]: ...
    @property
    def fit(self) -> str: ...
    @property
    def resize(self) -> str: ...
    @property
    def pad_color(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def range(self) -> str | None: ...


Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `N` or `HxW`. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if match is None:
        raise UsageError(f"--size: {text!r} is neither N nor HxW, such as 64 or 48x64 (height first)")
    height = int(match[1])
    width = int(match[2] or match[1])
    if not (4 <= min(height, width) and max(height, width) <= MAX_SIZE):
        raise UsageError(f"--size: {text} is not between 4 and {MAX_SIZE}")
    return height, width


def crop_box(width: int, height: int, target: tuple[int, int]) -> Box:
    """The largest box of the aspect ratio of `target` (width, height), in the centre: as ImageOps.fit has it."""
    ratio = target[0] / target[1]
    if width / height == ratio:
        return 0.0, 0.0, float(width), float(height)
    crop_width = ratio * height if width / height >= ratio else width
    crop_height = height if width / height >= ratio else width / ratio
    left = (width - crop_width) * 0.5
    top = (height - crop_height) * 0.5
    return left, top, left + crop_width, top + crop_height


def plan_fit(width: int, height: int, options: FitOptions, count: Callable[[str], None]) -> tuple[Box, tuple[int, int]]:
    """The box to take of an image, and the (width, height) to resize it to; what is left of the sample is padded.

    `count` is told what is done. Raises ValueError.
    """
    target = (options.shape[1], options.shape[0])
    whole = (0.0, 0.0, float(width), float(height))
    if (width, height) == target:
        return whole, target
    if options.resize == "none":
        first = f"{options.shape[0]}x{options.shape[1]}"
        raise ValueError(f"{height}x{width}, the first image {first}; --size N or HxW resizes all")
    if width * target[1] == height * target[0] or options.fit == "stretch":
        box = whole
        if width * target[1] != height * target[0]:
            count("stretched")
    elif options.fit == "none":
        raise ValueError(f"{height}x{width} is not of the shape {target[1]}x{target[0]}; --fit crop, pad or stretch")
    elif options.fit == "pad":
        count("padded")
        scale = min(target[0] / width, target[1] / height)
        target = (max(1, round(width * scale)), max(1, round(height * scale)))
        box = whole
    else:
        count("cropped")
        box = crop_box(width, height, target)
    size = (box[2] - box[0], box[3] - box[1])
    if size != target:
        count("resized")
    if size[0] < target[0] or size[1] < target[1]:
        count("enlarged")
    return box, target


def fit_image(image: Image.Image, options: FitOptions, count: Callable[[str], None]) -> Image.Image:
    """The image in the size of the options. Raises ValueError."""
    box, (width, height) = plan_fit(*image.size, options, count)
    if image.size != (width, height) or box != (0, 0, *image.size):
        image = image.resize((width, height), RESIZES[options.resize], box=box)
    if (height, width) == options.shape[:2]:
        return image
    size = (options.shape[1], options.shape[0])
    canvas = Image.new(image.mode, size, pad_value(options, image.mode))
    canvas.paste(image, ((size[0] - width) // 2, (size[1] - height) // 2))
    return canvas


def pad_value(options: FitOptions, mode: str) -> float | int | tuple[int, ...]:
    """The padding of an 8-bit picture of a mode; a number is that of stored pixels. Raises ValueError."""
    value = parse_number(options.pad_color)
    if value is None:
        return ImageColor.getcolor(options.pad_color, mode)
    scale = 257 if options.dtype == "uint16" else 1
    grey = value / scale
    if not (0 <= grey <= 255 and grey.is_integer()):
        kind = f"a multiple of {scale}" if scale > 1 else "an integer"
        raise ValueError(
            f"--pad_color: {options.pad_color} is not {kind} from 0 to {255 * scale}, as of 8-bit pictures"
        )
    return int(grey) if mode == "L" else (int(grey),) * len(mode)


def pad_number(options: FitOptions, dtype: np.dtype) -> float:
    """The padding of an array: `pad_color`, or for black the low end of the range, or 0 of unsigned integers.

    Raises ValueError.
    """
    text = options.pad_color
    integers = dtype.kind in "iu"
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if integers else (-math.inf, math.inf)
    if text == "black":
        limits = parse_range(options.range)
        if limits is not None and len(limits) == 2:
            return float(round(min(max(limits[0], low), high))) if integers else limits[0]
        if dtype.kind in "ub":
            return 0.0
        raise ValueError(f"what is black in {dtype}? --pad_color NUMBER, or --range LOW,HIGH, of which LOW is black")
    value = parse_number(text)
    if value is None:
        raise ValueError(f"--pad_color: {text!r} is no number, which arrays need")
    if not low <= value <= high or (integers and not value.is_integer()):
        raise ValueError(f"--pad_color: {value:g} is no {dtype}; --pad_color NUMBER takes another")
    return value


def parse_number(text: str) -> float | None:
    """None for what may be a colour. Raises ValueError for NaN and Inf."""
    try:
        value = float(text)
    except ValueError:
        return None
    if not math.isfinite(value):
        raise ValueError(f"--pad_color: {text} is not finite")
    return value
