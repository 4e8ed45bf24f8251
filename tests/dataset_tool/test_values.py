"""The values of pixels: kept, converted with a count, or refused; never changed without a word."""

import io
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from distgan.commands import shards
from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.dataset_tool import make
from distgan.dataset_tool.convert import Options, prepare
from distgan.dataset_tool.shard_info import ShardInfo
from distgan.dataset_tool.sources.encoded import open_bytes
from distgan.dataset_tool.sources.source import Source
from distgan.dataset_tool.value_range import PixelValues, resolve_range
from distgan.errors import UsageError

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


def encode_tiff(image: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    tifffile.imwrite(out, image, metadata=None, **options)
    return out.getvalue()


def converted(data: bytes, channels: int = 1, **changes) -> tuple[np.ndarray, list[str]]:
    options: dict[str, Any] = {"size": "8x8", "channels": channels, "dtype": "uint8"} | changes
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


def written(folder: Path, images: Sequence[np.ndarray | bytes], **changes) -> ShardSet:
    """A dataset of arrays, and of the bytes of image files."""
    names = [f"{i}" for i in range(len(images))]
    values: dict[str, Any] = {"channels": 1} | changes

    def load(i: int) -> Any:
        image = images[i]
        return open_bytes(image) if isinstance(image, bytes) else image

    make.make(Source("values", names, load), folder, Options(**values), jobs=1)
    return shards.open_dataset(str(folder), None)


EIGHT = encode_png(np.arange(64).reshape(8, 8), 8, GREY)
SIXTEEN = encode_png(np.arange(64).reshape(8, 8) * 1000, 16, GREY)
RAMP = np.arange(192).reshape(8, 8, 3)
FLOATS = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)


@pytest.mark.parametrize(
    ("images", "changes", "conversion"),
    [
        ([EIGHT, SIXTEEN], {"dtype": "float32"}, "values of uint16"),
        ([FLOATS, EIGHT], {"dtype": "float32"}, "values of uint8"),
        ([FLOATS, FLOATS.astype(np.uint8)], {}, "values of uint8"),
        ([FLOATS, FLOATS.astype(np.int16)], {}, "values of int16"),
        ([EIGHT, SIXTEEN], {"dtype": "uint16", "range": "0,4095"}, "8-bit, times 257"),
        ([FLOATS, FLOATS.astype(np.uint16)], {"dtype": "uint8", "range": "0,4095"}, "scaled from floats"),
        ([FLOATS.astype(np.int32), FLOATS.astype(np.uint16)], {"dtype": "uint8", "range": "0,9"}, "scaled from int32"),
        ([FLOATS > 0, FLOATS.astype(np.uint8)], {}, "scaled from bool"),
    ],
)
def test_images_whose_scales_may_differ_are_refused(images, changes, conversion, tmp_path):
    """8-bit pictures among others were once taken as they are, as black among floats of 0 to 65,535."""
    message = f"1 of 2 images are {conversion}, and the others are not: their scales may differ; make them of one type"
    with pytest.raises(UsageError, match=message):
        written(tmp_path / "set", images, **changes)
    assert not (tmp_path / "set").exists()  # so that other options need no other folder


def test_images_of_one_type_and_of_several_floats_are_taken(tmp_path):
    floats = [FLOATS, FLOATS.astype(np.float16), FLOATS.astype(np.float64)]
    assert written(tmp_path / "floats", floats).spec.dtype == "float32"
    scaled = written(tmp_path / "scaled", floats, dtype="uint8", range="0,1")
    assert Reader(scaled).read(np.arange(3)).images.reshape(3, -1).max(1).tolist() == [255] * 3
    eight = written(tmp_path / "eight", [EIGHT, FLOATS.astype(np.uint8)], dtype="float32")
    assert (eight.spec.range, eight.manifest.converted) == ((0.0, 63.0), {"values of uint8": 2})
    sixteen = written(tmp_path / "sixteen", [EIGHT, SIXTEEN], dtype="uint16")
    assert (sixteen.spec.range, sixteen.manifest.converted) == ((0.0, 63000.0), {"8-bit, times 257": 1})
    masks = written(tmp_path / "masks", [FLOATS > 0.5] * 2)
    assert set(Reader(masks).read(np.arange(2)).images.reshape(-1).tolist()) == {0, 255}


@pytest.mark.parametrize(("image", "channels"), [(EIGHT, 1), (SIXTEEN, 1), (encode_png(RAMP, 8, RGB), 3)])
def test_colour_stays_colour_in_more_bits(image, channels, tmp_path):
    """By default: RGB once became grey with any --dtype but uint8."""
    assert written(tmp_path / "set", [image], channels="auto", dtype="uint16").spec.channels == channels


PADDED = [
    (np.uint8, "black", None, 0),
    (np.uint16, "black", "100,4095", 100),
    (np.float32, "black", "-5,5", -5),
    (np.float32, "-0.5", None, -0.5),
    (np.int16, "-1000", None, -1000),
    (np.float32, "black", None, "what is black in float32"),
    (np.int16, "black", "1%,99%", "what is black in int16"),
    (np.uint16, "300.5", None, "--pad_color: 300.5 is no uint16"),
    (np.uint16, "70000", None, "--pad_color: 70000 is no uint16"),
    (np.uint16, "nan", None, "--pad_color: nan is not finite"),
    (np.uint16, "white", None, "--pad_color: 'white' is no number, which arrays need"),
    (None, "#102030", None, [16, 32, 48]),
    (None, "128", None, [128] * 3),
    (None, "128.5", None, "--pad_color: 128.5 is not an integer from 0 to 255"),
    (None, "300", None, "--pad_color: 300 is not an integer from 0 to 255"),
    (None, "inf", None, "--pad_color: inf is not finite"),
    (None, "reddish", None, "unknown color specifier: 'reddish'"),
]


@pytest.mark.parametrize(("dtype", "color", "limits", "expected"), PADDED)
def test_padding_is_the_value_that_is_asked_for(dtype, color, limits, expected, tmp_path):
    """Of pictures (None) and of arrays; numbers that are no pixels were once clipped, and NaN was 0."""
    image = np.full((4, 8, 3), 60, dtype or np.uint8)
    images = [encode_tiff(image, photometric="rgb") if dtype is None else image]
    options: dict[str, Any] = {"size": "8", "channels": 3, "fit": "pad", "pad_color": color, "range": limits}
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=re.escape(expected)):
            written(tmp_path / "set", images, **options)
        return
    if limits is None:
        options["range"] = "-2000,60000"
    pixels = Reader(written(tmp_path / "set", images, **options)).read(np.arange(1)).images[0]
    assert (pixels[:2] == expected).all() and (pixels[2:6] == 60).all() and (pixels[6:] == expected).all()


def test_a_number_pads_8_bit_pictures_in_the_values_that_are_stored():
    options: dict[str, Any] = {"fit": "pad", "dtype": "uint16"}
    data = encode_tiff(np.full((4, 8), 60, np.uint8), photometric="minisblack")
    assert converted(data, pad_color="25700", **options)[0][:2].tolist() == [[[25700]] * 8] * 2
    with pytest.raises(ValueError, match="--pad_color: 100 is not a multiple of 257 from 0 to 65535"):
        converted(data, pad_color="100", **options)


def test_resized_integers_do_not_overflow():
    image = np.full((16, 16), 2**31 - 1, np.int32)
    pixels, _ = prepare(image, Options(size="8x8", channels=1, dtype="float32"))
    assert (pixels == np.float32(2**31 - 1)).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_sums_of_a_shard_do_not_overflow(dtype):
    """Whatever --shard_mb is: the squares of 2 GB of 16-bit pixels are beyond int64."""
    info = ShardInfo("", "", sums=[2**62], squares=[2**63 - 1])
    info.add(np.ones((8, 8, 1), dtype), [], 0)
    assert (info.sums, info.squares) == ([2**62 + 64], [2**63 + 63])


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


@pytest.mark.parametrize("images", [50, 3000], ids=["few", "many"])
@pytest.mark.parametrize("channels", [1, 4, 5])
def test_percentiles_are_of_all_channels_and_places(images, channels):
    """At even distances they were of few channels, and of many images the first and last values: those of corners."""
    rng = np.random.default_rng(0)
    values = PixelValues()
    stack = rng.random((images, 16, 16, channels), np.float32) + np.arange(channels) * 10
    stack[:, :, 8:] += 5
    stack[:, [0, -1]] = -100  # a border, as of scans: an eighth of the pixels
    for image in stack:
        values.add(image, max(1, 3000 // images))
    shares = [20, 40, 60, 80]
    text = [f"{share}%,100%" for share in shares]
    found = [resolve_range(each, "float32", [values])[0] for each in text]
    np.testing.assert_allclose(
        np.searchsorted(np.sort(stack.reshape(-1)), found) / stack.size, np.divide(shares, 100), atol=0.03
    )


def test_percentiles_of_0_and_100_are_the_least_and_the_greatest():
    values = PixelValues()
    for i in range(1000):
        values.add(np.full((8, 8, 1), i, np.float32), 1 if i % 10 == 5 else 0)
    assert resolve_range("0%,100%", "float32", [values]) == (0.0, 999.0)


@pytest.mark.parametrize(("text", "dtype"), [("300,400", "uint8"), ("-9,-1", "uint16"), ("7e4,8e4", "float16")])
def test_a_range_that_the_type_does_not_have_is_refused(text, dtype):
    values = PixelValues()
    values.add(np.arange(64, dtype=dtype).reshape(8, 8, 1))
    with pytest.raises(UsageError, match=f"--range: {text} is outside of {dtype}, .*; give another range"):
        resolve_range(text, dtype, [values])
    assert resolve_range("-1e9,1e9", "float16", [values])[1] == 65504
