"""TIFF: ordinary pictures by Pillow; four bands and more, and several of 16 bits or floats, as arrays by tifffile.

Tags by the TIFF 6.0 specification (Adobe 1992).
"""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from distgan.dataset_tool.notes import note
from distgan.dataset_tool.sources.extras import extra
from distgan.dataset_tool.sources.pixels import to_image
from distgan.dataset_tool.sources.source import FORMATS, Source
from distgan.errors import UsageError

SUFFIXES = (".tif", ".tiff")
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""Of TIFF and BigTIFF in both byte orders."""
BITS_PER_SAMPLE = 258
PHOTOMETRIC = 262
SAMPLES_PER_PIXEL = 277
EXTRA_SAMPLES = 338
SAMPLE_FORMAT = 339
WHITE_IS_ZERO = 0
"""PhotometricInterpretation of grey, inverted: Pillow turns 8 bits the right way round, and no other type."""
COLOURS = {0: 1, 1: 1, 2: 3}
"""PhotometricInterpretation -> bands of colour: grey (0: white is zero) and RGB; others have no further bands."""
ALPHA = ((1,), (2,))
"""Values of ExtraSamples: one band of alpha, associated or not."""
# A line for each image of more than six bands, beside what it raises, which tifffile then reads.
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)


def is_tiff(data: bytes) -> bool:
    return data.startswith(MAGIC)


def open_tiff(file: Path | bytes) -> Image.Image | np.ndarray:
    """The first image of a TIFF: what Pillow opens if it reads it as it is, else an array [H, W, bands].

    Raises ValueError, OSError, and UsageError if tifffile is needed and not installed.
    """
    try:
        image = Image.open(stream(file), formats=FORMATS)
    except UnidentifiedImageError:
        if not is_tiff(read_start(file)):
            raise
        return read_bands(file)
    with contextlib.ExitStack() as stack:  # closes the image, also if its tags are damaged
        stack.enter_context(image)
        if image.format != "TIFF" or is_ordinary(image):
            stack.pop_all()
            return image
    return read_bands(file)


def stream(file: Path | bytes) -> Path | io.BytesIO:
    return io.BytesIO(file) if isinstance(file, bytes) else file


def read_start(file: Path | bytes) -> bytes:
    if isinstance(file, bytes):
        return file[:4]
    with open(file, "rb") as opened:
        return opened.read(4)


def is_ordinary(image: Any) -> bool:
    """Whether Pillow reads all bands of a TIFF as what they are.

    It takes an untagged fourth for alpha, the high bytes of RGB of 16 bits, int8 for uint8 and uint32 for int32, and
    inverts no grey of more than 8 bits.
    """
    tags = image.tag_v2
    samples = tags.get(SAMPLES_PER_PIXEL, 1)
    colours = COLOURS.get(tags.get(PHOTOMETRIC))
    bits = max(tags.get(BITS_PER_SAMPLE, (1,)))
    signed = tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    if samples == 1 and ((bits <= 8 and signed) or (bits == 32 and image.mode == "I" and not signed)):
        return False
    if samples == 1 and bits > 8 and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        return False
    if samples == 1 or colours is None:
        return True
    extra_samples = tags.get(EXTRA_SAMPLES, ())
    tagged = samples == colours or (samples == colours + 1 and extra_samples in ALPHA)
    return tagged and bits <= 8


def read_bands(file: Path | bytes) -> np.ndarray:
    """[H, W] or [H, W, bands] of the first image of a TIFF. Raises ValueError, and UsageError without tifffile."""
    with extra("tiff", "a TIFF of four or more bands, of 16 bits or of floats"):
        import tifffile
    tifffile.logger().setLevel(logging.CRITICAL)  # of damaged files it logs lines beside what it raises
    try:
        with tifffile.TiffFile(stream(file)) as tiff:
            return read_page(tiff.pages.first)
    except Exception as error:  # tifffile documents no exceptions
        missing = "; pip install 'distgan[tiff]'" if "imagecodecs" in str(error) else ""
        raise ValueError(f"a TIFF that cannot be read: {error}{missing}") from None


def read_page(page: Any) -> np.ndarray:
    """[H, W] or [H, W, bands] of a page that tifffile has opened. Raises ValueError, and what tifffile raises."""
    axes = page.axes
    if axes not in ("YX", "YXS", "SYX"):
        raise ValueError(f"its axes are {axes}; those of images are YX, YXS or SYX (S: bands)")
    if page.size > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"it has {page.size:,} values; images have at most {Image.MAX_IMAGE_PIXELS:,}")
    if page.photometric == WHITE_IS_ZERO:
        raise ValueError(
            f"its tag PhotometricInterpretation says that 0 is white, in {page.dtype}; save it with 0 black"
        )
    if (orientation := page.tags.valueof("Orientation", 1)) != 1:
        raise ValueError(f"it has the tag Orientation {int(orientation)}; save it upright")
    return to_image(page.asarray(maxworkers=1), "CHW" if axes == "SYX" else "HWC")


def announce_bands(source: Source) -> None:
    """Say what is made of the first TIFF, if its last band might be meant as alpha.

    Raises UsageError if it needs tifffile, which is not installed.
    """
    first = next((i for i, name in enumerate(source.names) if name.lower().endswith(SUFFIXES)), None)
    if first is None:
        return
    try:
        image = source.load(first)
    except UsageError:
        raise
    except Exception:  # a bad image, which is listed when it is converted
        return
    if isinstance(image, Image.Image):
        image.close()
    elif image.ndim == 3 and image.shape[2] in (2, 4):
        bands = image.shape[2]
        why = "none is tagged as alpha (ExtraSamples 1 or 2)"
        note(f"{source.names[first]}: the {bands} bands of a TIFF are {bands} channels: {why}")
