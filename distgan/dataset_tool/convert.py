"""Images as they are put into shards: converted, cropped or padded, resized, encoded."""

import dataclasses
import io
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from distgan.data.schema import MAX_CHANNELS
from distgan.dataset_tool.arrays import array_dtype, check_array, convert_values, fit_array
from distgan.dataset_tool.fit import pad_number, pad_value, parse_size
from distgan.dataset_tool.pictures import GREY_MODES, MODES, prepare_picture
from distgan.dataset_tool.sources.source import Source, escape_name
from distgan.errors import UsageError
from distgan.samples import DType


@dataclass(frozen=True)
class Options:
    """How images become samples: options of `shards make`, recorded in the manifest in this order."""

    size: str | None = None
    """N, or HxW: height and width of the images in pixels; default: those of the images, which must be the same for
    all."""
    channels: Literal["auto"] | int = "auto"
    """1 (grey), 3 (RGB) or 4 (RGB and alpha) of picture files, or those of arrays; auto: those of arrays and built-in
    datasets, and 3 for pictures (with more bits than 8, those of the first: 1 of grey)."""
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
        channels = source.channels if dtype in ("auto", "uint8") else first.channels
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
    return Kind(f"{height}x{width}", 1 if image.mode in GREY_MODES else 3, None)


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
