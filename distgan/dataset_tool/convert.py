"""Images as they are put into shards: converted, cropped or padded, resized, encoded."""

import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from distgan.data.schema import MAX_CHANNELS
from distgan.dataset_tool.arrays import EIGHT_BIT, array_dtype, check_array, convert_values, fit_array
from distgan.dataset_tool.fit import fit_image, pad_number, pad_value, parse_size
from distgan.dataset_tool.sources.source import Source, escape_name
from distgan.errors import UsageError
from distgan.samples import DType

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode of an 8-bit image by its channels."""
MODES_16_BIT = ("I;16", "I;16B", "I;16L", "I")


@dataclass(frozen=True)
class Options:
    """How images become samples: options of `shards make`, recorded in the manifest in this order."""

    size: str | None = None
    """N, or HxW: height and width of the images in pixels; default: those of the images, which must be the same for
    all."""
    channels: Literal["auto"] | int = "auto"
    """1 (grey), 3 (RGB) or 4 (RGB and alpha) of picture files, or those of arrays; auto: those of arrays and built-in
    datasets, and 3 for pictures (1 with 16 bits)."""
    dtype: Literal["auto", "uint8", "uint16", "float16", "float32"] = "auto"
    """Of the stored pixels; auto: that of arrays, and uint8 for pictures."""
    range: str | None = None
    """LOW,HIGH: the values that networks see as -1 and 1; values outside are clipped in training. Percentiles such as
    0.1%,99.9% are taken of the stored pixels. Default: 0,255 for uint8, else the least and the greatest value."""
    fit: Literal["crop", "pad", "stretch", "none"] = "crop"
    """For images of another aspect ratio than the samples: crop (the centre), pad, stretch, or none (fail)."""
    resize: Literal["lanczos", "bicubic", "box"] = "lanczos"
    """Filter, always antialiased; recorded in the manifest, since it changes FID."""
    pad_color: str = "black"
    """Of --fit pad: a colour of pictures by name or #rrggbb, or a number for all channels. Black of arrays is the low
    end of --range, and without it 0 of unsigned integers."""
    background: Literal["white", "black"] = "white"
    """Colour behind transparent pixels."""
    format: Literal["npy", "png", "jpg"] = "npy"
    """npy (raw pixels, fastest to read), png, or jpg (lossy: G learns its artefacts)."""
    quality: int = 95
    """Of jpg, 1 to 95, without chroma subsampling."""
    seed: int = 0
    """Of the order in the shards, and of the digits of stacked-mnist."""
    shard_mb: float = 64
    """Size of a shard in MB."""
    skip_bad: bool = False
    """Leave out images that cannot be used; default: fail with a list of them."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a sample: height, width, channels. For options that are resolved."""
        assert self.size is not None and self.channels != "auto"
        return *parse_size(self.size), self.channels

    @property
    def pixel_type(self) -> DType:
        """Of stored pixels. For options that are resolved."""
        return cast(DType, self.dtype)


class Kind(NamedTuple):
    """What an image of a source is, before its conversion."""

    size: str
    """HxW"""
    channels: int
    array: np.ndarray | None
    """None for a picture."""


def resolve_options(source: Source, options: Options) -> Options:
    """Fill in what the source or its first image decides: size, channels and dtype; without a size, `resize` is "none".

    Options that are resolved stay as they are. Raises UsageError if the first image has no such thing to take.
    """
    try:
        first = kind_of(source.load(0))
    except Exception as error:
        if not options.size and not source.size:
            name = escape_name(source.names[0])
            raise UsageError(f"{name}: {reason(error)}; give --size N to get a list of all bad images") from None
        first = Kind("", source.channels, None)  # it is listed with the others
    channels = options.channels
    dtype = options.dtype
    if channels == "auto" and first.array is None:
        channels = source.channels if dtype in ("auto", "uint8") else 1
    elif channels == "auto":
        channels = first.channels
    if dtype == "auto":
        dtype = "uint8" if first.array is None else array_dtype(first.array)
    height, width = parse_size(options.size or (str(source.size) if source.size else first.size))
    resize = options.resize if options.size else "none"
    resolved = dataclasses.replace(options, size=f"{height}x{width}", resize=resize, channels=channels, dtype=dtype)
    check_options(resolved)
    if resolved.fit == "pad":
        check_padding(first, resolved)
    return resolved


def kind_of(image: Image.Image | np.ndarray) -> Kind:
    """Raises ValueError."""
    if isinstance(image, np.ndarray):
        height, width, channels = check_array(image).shape
        return Kind(f"{height}x{width}", channels, image)
    with image:
        rotated = image.getexif().get(ExifTags.Base.Orientation) in range(5, 9)
        width, height = image.size[::-1] if rotated else image.size
    return Kind(f"{height}x{width}", 0, None)


def check_options(options: Options) -> None:
    """Raises UsageError for resolved options that contradict each other."""
    channels = options.shape[2]
    if not 1 <= channels <= MAX_CHANNELS:
        raise UsageError(f"--channels: {channels} is not between 1 and {MAX_CHANNELS}")
    if options.format != "npy" and not (options.dtype == "uint8" and channels in (1, 3)):
        raise UsageError(
            f"--format {options.format} holds 1 or 3 channels of uint8; take --format npy for {channels} channels of "
            f"{options.dtype}"
        )


def check_padding(first: Kind, options: Options) -> None:
    """Raises UsageError if the padding is none of images such as the first."""
    try:
        if first.array is not None:
            pad_number(options, first.array.dtype)
        elif options.dtype == "uint8" and options.shape[2] in MODES:
            pad_value(options, MODES[options.shape[2]])
    except ValueError as error:
        raise UsageError(str(error)) from None


def reason(error: Exception) -> str:
    """Why an image cannot be used, in one line: the same for the same image, so without Pillow's path or address."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.split()) or repr(error)


def prepare(image: Image.Image | np.ndarray, options: Options) -> tuple[np.ndarray, list[str]]:
    """Any image as pixels [height, width, channels] of the options' dtype, and its conversions by name.

    A picture is EXIF-rotated, converted to 8-bit grey or RGB (or kept in 16 bits), fitted and resized by Pillow's
    antialiased filters; an animation gives its first frame. An array keeps its values, unless the options ask for
    integers of another dtype. Raises ValueError for what cannot be converted without a guess, for NaN and Inf, and for
    a wrong shape or size if `fit` or `resize` is "none".
    """
    conversions: list[str] = []
    if isinstance(image, np.ndarray) and image.dtype == options.dtype and image.shape == options.shape:
        pixels = image
    elif isinstance(image, np.ndarray):
        pixels = fit_array(check_array(image), options, conversions.append)
    else:
        pixels = prepare_picture(image, options, conversions.append)
    if pixels.shape != options.shape:
        found, wanted = pixels.shape[2], options.shape[2]
        raise ValueError(f"{found} channels, and samples have {wanted}; --channels {found} takes such images")
    return convert_values(pixels, options, conversions.append), conversions


def prepare_picture(image: Image.Image, options: Options, count: Callable[[str], None]) -> np.ndarray:
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


def conversion_needed(image: Image.Image) -> str | None:
    """What `prepare` would do to a picture that reading it from a shard does not; None for nothing. Not loaded yet."""
    if image.mode in MODES_16_BIT or bits_dropped(image):
        return "16-bit"
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return "transparent"
    if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
        return "EXIF-rotated"
    return None


def to_8_bit(image: Image.Image, options: Options, count: Callable[[str], None]) -> np.ndarray:
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
    if mode != "RGBA" and (image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info):
        count("transparent")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    if image.mode not in (mode, "RGBA"):
        count(f"from {image.mode}")
    return image.convert(mode)


def encode(pixels: np.ndarray, options: Options) -> bytes:
    out = io.BytesIO()
    if options.format == "npy":
        np.save(out, pixels)
    elif options.format == "png":
        Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels).save(out, "PNG", compress_level=6)
    else:
        picture = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels)
        picture.save(out, "JPEG", quality=options.quality, subsampling=0)
    return out.getvalue()
