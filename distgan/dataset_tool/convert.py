"""Images as they are put into shards: cropped, resized, converted, encoded."""

import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from distgan.dataset_tool.sources.source import Source, escape_name
from distgan.errors import UsageError

RESIZES = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class Options:
    """How images become samples: options of `shards make`, recorded in the manifest in this order."""

    size: int | None = None
    """Side of the square images in pixels; default: that of the images, which must be the same for all."""
    channels: Literal["auto", 1, 3] = "auto"
    """1 (grey) or 3 (RGB); auto: those of a built-in dataset, and 3 for folders and zips."""
    crop: Literal["center", "none"] = "center"
    """For images that are not square: center crop, or fail."""
    resize: Literal["lanczos", "bicubic", "box"] = "lanczos"
    """Filter, always antialiased; recorded in the manifest, since it changes FID."""
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
        return self.size, self.size, self.channels


def resolve_options(source: Source, options: Options) -> Options:
    """Fill in what the source decides: channels, and the size if none is given, and then `resize` is "none".

    Options that are resolved stay as they are. Raises UsageError if the first image has no size to take.
    """
    size = options.size or source.size
    if size is None:
        try:
            image = load_image(source, 0)
        except Exception as error:
            name = escape_name(source.names[0])
            raise UsageError(f"{name}: {reason(error)}; give --size N to get a list of all bad images") from None
        with image:
            if image.width != image.height:
                raise UsageError(f"{source.names[0]} is {image.width}x{image.height}; give --size N to crop and resize")
            size = image.width
    resize = options.resize if options.size else "none"
    channels = source.channels if options.channels == "auto" else options.channels
    return dataclasses.replace(options, size=size, resize=resize, channels=channels)


def load_image(source: Source, index: int) -> Image.Image:
    image = source.load(index)
    return image if isinstance(image, Image.Image) else Image.fromarray(image.squeeze())


def reason(error: Exception) -> str:
    """Why an image cannot be used, in one line: the same for the same image, so without Pillow's path or address."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.split()) or repr(error)


def prepare(image: Image.Image | np.ndarray, options: Options) -> tuple[np.ndarray, list[str]]:
    """Any image as uint8 [size, size, channels]: EXIF-rotated, converted to 8-bit grey or RGB, center-cropped, resized.

    Also returns its conversions, by their names in the manifest's `converted`. An animation gives its first frame.
    Resizing uses Pillow's antialiased filters. Raises ValueError for floating-point pixels, and for a wrong shape or
    size if `crop` or `resize` is "none".
    """
    if isinstance(image, np.ndarray):
        if image.shape == options.shape:
            return image, []
        image = Image.fromarray(image.squeeze())
    conversions: list[str] = []
    with image:
        # Asked first: loading a TIFF rotates it.
        if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
            conversions.append("EXIF-rotated")
        upright = ImageOps.exif_transpose(image)  # a copy, of the first frame
        if is_animated(image):
            conversions.append("animated, first frame")
    converted = convert_mode(upright, "L" if options.channels == 1 else "RGB", options.background, conversions.append)
    fitted = crop_and_resize(converted, options, conversions.append)
    return np.array(fitted).reshape(options.shape), conversions


def is_animated(image: Image.Image) -> bool:
    """Whether the image has several frames; not a JPEG with other images appended (MPO), which is one picture."""
    try:
        return image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # a truncated second frame: the first is all there is
        return False


def crop_and_resize(image: Image.Image, options: Options, count: Callable[[str], None]) -> Image.Image:
    """The image in the size of the options; `count` is told what was done to it. Raises ValueError."""
    size = options.shape[0]
    if image.width != image.height:
        if options.crop == "none":
            raise ValueError(f"{image.width}x{image.height} is not square; --crop center crops it")
        count("cropped")
    if image.size == (size, size):
        return image
    if options.resize == "none":
        raise ValueError(f"{image.width}x{image.height}, the first image {size}x{size}; --size N resizes all")
    side = min(image.size)
    if side != size:
        count("resized")
    if side < size:
        count("enlarged")
    return ImageOps.fit(image, (size, size), RESIZES[options.resize])


def convert_mode(image: Image.Image, mode: str, background: str, count: Callable[[str], None]) -> Image.Image:
    """The image in `mode`: 16-bit is divided by 257, transparency is composited onto the background colour, and CMYK,
    palette and grey are converted by Pillow."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        count("16-bit")
        values = np.asarray(image).astype(np.int64)
        transparent = image.info.get("transparency")
        image = Image.fromarray((np.clip(values, 0, 65535) // 257).astype(np.uint8))
        if transparent is not None:  # one grey value of 16 bits
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
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
        Image.fromarray(pixels.squeeze()).save(out, "PNG", compress_level=6)
    else:
        Image.fromarray(pixels.squeeze()).save(out, "JPEG", quality=options.quality, subsampling=0)
    return out.getvalue()
