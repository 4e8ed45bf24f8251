"""The values of pixels: kept, converted with a count, or refused; never changed without a word."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from distgan.dataset_tool.convert import Options, prepare
from distgan.dataset_tool.sources.encoded import open_bytes

GREY, RGB, GREY_ALPHA = 0, 2, 4
"""Colour types of PNG."""


def encode_png(values: np.ndarray, bits: int, colour: int, transparent: bytes = b"") -> bytes:
    """A PNG of [8, 8, bands], also of the kinds that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    flat = values.reshape(8, -1)
    places = (flat[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1)) & 1
    rows = np.packbits(places.reshape(8, -1).astype(np.uint8), axis=1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0))
    key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + key + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encode_tiff(image: np.ndarray, **options) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, image, metadata=None, **options)
    return out.getvalue()


def converted(data: bytes, channels: int = 1, **changes) -> tuple[np.ndarray, list[str]]:
    options: dict = {"size": "8x8", "channels": channels, "dtype": "uint8"} | changes
    return prepare(open_bytes(data), Options(**options))


@pytest.mark.parametrize(("colour", "bands"), [(RGB, 3), (GREY_ALPHA, 2)])
def test_colour_of_16_bits_is_counted_in_8_and_refused_in_more(colour, bands):
    """Reading the EXIF of a PNG loads it, after which Pillow no longer says that it read 8 of 16 bits."""
    values = np.arange(64 * bands).reshape(8, 8, bands) * 300
    data = encode_png(values, 16, colour)
    assert "16-bit" in converted(data, 3)[1]
    for dtype in ("uint16", "float32"):
        with pytest.raises(ValueError, match="16-bit colour, of which Pillow reads 8 bits"):
            converted(data, 3, dtype=dtype)


def test_cmyk_of_16_bits_is_counted_in_8_and_refused_in_more():
    data = encode_tiff(np.full((8, 8, 4), 1000, np.uint16), photometric="separated")
    assert converted(data, 3)[1] == ["16-bit", "from CMYK"]
    with pytest.raises(ValueError, match="16-bit colour"):
        converted(data, 3, dtype="uint16")


@settings(max_examples=25, deadline=None)
@given(bits=st.sampled_from([1, 2, 4, 8, 16]), data=st.data())
def test_the_transparent_grey_is_the_one_of_the_file(bits, data):
    """Of any depth: exactly the pixels of that value become the background."""
    limit = 2**bits - 1
    values = np.random.default_rng(bits).integers(0, limit, (8, 8), endpoint=True)
    key = data.draw(st.integers(0, limit))
    values[3, 4] = key
    pixels, _ = converted(encode_png(values, bits, GREY, struct.pack(">H", key)))
    expected = values // 257 if bits == 16 else values * (255 // limit)
    assert np.array_equal(pixels[:, :, 0], np.where(values == key, 255, expected))


def test_a_transparent_colour_of_16_bits_is_refused():
    data = encode_png(np.arange(192).reshape(8, 8, 3), 16, RGB, struct.pack(">HHH", 0, 1, 2))
    with pytest.raises(ValueError, match="transparent colour, of which Pillow reads 8 bits; save it with 8 bits"):
        converted(data, 3)


def test_a_tiff_with_0_as_white_is_inverted_or_refused():
    values = np.arange(64, dtype=np.uint8).reshape(8, 8)
    assert np.array_equal(converted(encode_tiff(values, photometric="miniswhite"))[0][:, :, 0], 255 - values)
    for dtype in ("uint16", "float32"):
        with pytest.raises(ValueError, match="says that 0 is white, in .*; save it with 0 black"):
            converted(encode_tiff(values.astype(dtype), photometric="miniswhite"), dtype=dtype)


@settings(max_examples=20, deadline=None)
@given(
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16", "float16", "float32", "float64"]), seed=st.integers(0, 9)
)
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_a_tiff_of_any_type_keeps_its_values(byteorder, dtype, seed):
    """int8 once wrapped to uint8."""
    values = np.random.default_rng(seed).normal(0, 60, (8, 8))
    image = (np.abs(values) if dtype.startswith("u") else values).clip(-128, 127).astype(dtype)
    pixels, _ = converted(encode_tiff(image, byteorder=byteorder), dtype="float32")
    assert np.array_equal(pixels[:, :, 0], image.astype(np.float32))
