"""Picture files as arrays: rotated, with their transparency and their bits, by Pillow."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from distgan.dataset_tool.arrays import EIGHT_BIT, check_array, fit_array
from distgan.dataset_tool.fit import fit_image

if TYPE_CHECKING:
    from distgan.dataset_tool.convert import Options

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode of an 8-bit image by its channels."""
MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I")
GREY_MODES = ("1", "L", "LA", "La", "F", *MODES_16_BIT)


def prepare_picture(image: Image.Image, options: "Options", count: Callable[[str], None]) -> np.ndarray:
    """A picture as pixels [height, width, channels]: uint8, or what it holds where the options ask for more bits."""
    with image:
        deep = bits_dropped(image)  # asked first: loading a picture forgets it, and reading the EXIF of a PNG loads it
        correct_transparency(image)
        # Asked before loading, which rotates a TIFF.
        if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
            count("EXIF-rotated")
        upright = ImageOps.exif_transpose(image)  # a copy, of the first frame
        if is_animated(image):
            count("animated, first frame")
    if options.dtype == "uint8":
        if deep:
            count("16-bit")
        return to_8_bit(upright, options, count)
    if deep:
        raise ValueError("16-bit colour, of which Pillow reads 8 bits; convert it to .npy or TIFF for --dtype")
    if upright.mode in (*MODES_16_BIT, "F") and "transparency" not in upright.info:
        values = np.array(upright)
        if options.dtype == "uint16" and values.dtype.kind in "iu" and 0 <= values.min() and values.max() <= 65535:
            values = values.astype(np.uint16)
        return fit_array(check_array(values), options, count)
    values = to_8_bit(upright, options, count)
    if options.dtype == "uint16":
        count(EIGHT_BIT)
        return values.astype(np.uint16) * 257
    return values


def raw_mode(image: Image.Image) -> str:
    """How a picture that is not loaded yet stores its pixels, in Pillow's words, such as "RGB;16B"; "" if unknown."""
    tiles: list[Any] = getattr(image, "tile", [])
    arguments = tiles[0][3] if tiles else None
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def bits_dropped(image: Image.Image) -> bool:
    """Whether Pillow reads only 8 of the 16 bits of a colour image that is not loaded yet."""
    return image.mode in ("RGB", "RGBA", "LA", "RGBX", "CMYK") and ";16" in raw_mode(image)


def correct_transparency(image: Image.Image) -> None:
    """Give the transparent grey of a PNG of 2 or 4 bits in 8 bits, as Pillow gives its pixels; not loaded yet.

    Raises ValueError for a transparent colour of 16 bits, of which Pillow compares 8.
    """
    transparent = image.info.get("transparency")
    if transparent is None:
        return
    if bits_dropped(image):
        raise ValueError("16-bit colour with a transparent colour, of which Pillow reads 8 bits; save it with 8 bits")
    scale = {"L;2": 85, "L;4": 17}.get(raw_mode(image))
    if scale is not None:
        image.info["transparency"] = transparent * scale


def is_transparent(image: Image.Image) -> bool:
    """Whether some of its pixels may be transparent."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def conversion_needed(image: Image.Image) -> str | None:
    """What `prepare` would do to a picture that reading it from a shard does not; None for nothing. Not loaded yet."""
    if image.mode in MODES_16_BIT or bits_dropped(image):
        return "16-bit"
    if is_transparent(image):
        return "transparent"
    if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
        return "EXIF-rotated"
    return None


def to_8_bit(image: Image.Image, options: "Options", count: Callable[[str], None]) -> np.ndarray:
    """uint8 [height, width, channels] of the options."""
    channels = options.shape[2]
    if channels not in MODES:
        raise ValueError(f"a picture has 1, 3 or 4 channels, not {channels}; --channels N")
    converted = convert_mode(image, MODES[channels], options.background, count)
    return np.array(fit_image(converted, options, count)).reshape(options.shape)


def is_animated(image: Image.Image) -> bool:
    """Whether the image has several frames; not a JPEG with other images appended (MPO), which is one picture."""
    try:
        return image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # a truncated second frame: the first is all there is
        return False


def convert_mode(image: Image.Image, mode: str, background: str, count: Callable[[str], None]) -> Image.Image:
    """The image in `mode`: 16-bit is divided by 257, transparency is composited onto the background colour unless the
    mode has it, and CMYK, palette and grey are converted by Pillow."""
    if image.mode in MODES_16_BIT:
        count("16-bit")
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"values from {values.min()} to {values.max()} are not 16-bit; --dtype float32 keeps them")
        transparent = image.info.get("transparency")
        image = Image.fromarray((values // 257).astype(np.uint8))
        if transparent is not None:  # one grey value of 16 bits
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range; --dtype float32 keeps them")
    if mode != "RGBA" and is_transparent(image):
        count("transparent")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    if image.mode not in (mode, "RGBA"):
        count(f"from {image.mode}")
    return image.convert(mode)
