"""Decoding of the images in shards."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from distgan.errors import UsageError
from distgan.images import SHARD_PIL_FORMATS


def decode_pillow(data: bytes, out: np.ndarray) -> None:
    """Decode into uint8 `out` [height, width, channels]. Raises ValueError and what Pillow raises."""
    mode = "L" if out.shape[2] == 1 else "RGB"
    with Image.open(io.BytesIO(data), formats=SHARD_PIL_FORMATS) as image:
        if image.size != out.shape[1::-1]:  # before decoding: a small file can declare a huge image
            raise ValueError(f"{image.size[0]}x{image.size[1]} pixels")
        array = np.asarray(image if image.mode == mode else image.convert(mode))  # convert copies without need
    out[:] = array.reshape(out.shape)


def decode_simplejpeg(data: bytes, out: np.ndarray) -> None:
    """Decode a JPEG into contiguous uint8 `out` [height, width, channels]. Raises ValueError."""
    import simplejpeg

    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if (height, width) != out.shape[:2]:
        raise ValueError(f"{width}x{height} pixels")
    simplejpeg.decode_jpeg(data, colorspace="GRAY" if out.shape[2] == 1 else "RGB", buffer=out)


DECODERS: dict[str, Callable[[bytes, np.ndarray], None]] = {
    "pillow": decode_pillow,
    "simplejpeg": decode_simplejpeg,
}


def check_decoder(decoder: str, encoding: str) -> None:
    """Raises UsageError if the decoder is not installed or cannot read the dataset."""
    if decoder == "simplejpeg":
        if encoding != "jpg":
            raise UsageError(f"data.decoder: simplejpeg reads JPEG; the dataset is {encoding}")
        try:
            import simplejpeg  # noqa: F401
        except ImportError:
            raise UsageError("data.decoder: simplejpeg is not installed; pip install 'distgan[fast]'") from None
