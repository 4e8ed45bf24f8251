"""Images in another size: cropped, padded or stretched, and resized by Pillow's antialiased filters."""

import re
from collections.abc import Callable
from typing import Protocol

from PIL import Image, ImageColor

from distgan.data.schema import MAX_SIZE
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
    canvas = Image.new(image.mode, size, pad_value(options.pad_color, image.mode))
    canvas.paste(image, ((size[0] - width) // 2, (size[1] - height) // 2))
    return canvas


def pad_value(text: str, mode: str) -> float | int | tuple[int, ...]:
    """The padding of a picture of a mode. Raises ValueError."""
    try:
        value = float(text)
    except ValueError:
        if mode == "F":
            if text == "black":
                return 0.0
            raise ValueError(f"--pad_color: {text!r} is no number, which arrays need") from None
        return ImageColor.getcolor(text, mode)
    if mode == "F":
        return value
    return int(value) if mode == "L" else (int(value),) * len(mode)
