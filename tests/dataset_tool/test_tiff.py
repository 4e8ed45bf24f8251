"""TIFFs of several bands, of 16 bits and of floats are arrays; ordinary pictures go through Pillow, as before."""

import importlib.util
import io
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from distgan.dataset_tool.arrays import array_dtype
from distgan.dataset_tool.sources import open_source
from distgan.dataset_tool.sources.encoded import open_bytes
from distgan.errors import UsageError


def opened(src: Path) -> Any:
    return open_source(str(src), split="train", files=None, labels="none", samples=1, seed=0)


def pixels(bands: int, dtype: str = "uint8") -> np.ndarray:
    """[6, 9, bands], all values different."""
    values = np.arange(6 * 9 * bands).reshape(6, 9, bands) % 250
    return (values / 3 if dtype.startswith("float") else values * (257 if dtype == "uint16" else 1)).astype(dtype)


def encode(image: np.ndarray, planarconfig: Any = "contig", **options: Any) -> bytes:
    """A TIFF of [H, W, bands], or as the options say."""
    out = io.BytesIO()
    with tifffile.TiffWriter(
        out, bigtiff=options.pop("bigtiff", False), byteorder=options.pop("byteorder", "<")
    ) as file:
        file.write(image, metadata=None, planarconfig=planarconfig, **options)
    return out.getvalue()


def untagged(data: bytes) -> bytes:
    """The TIFF with another tag in place of ExtraSamples, which tifffile always writes."""
    (at,) = struct.unpack_from("<I", data, 4)
    entries = [at + 2 + 12 * i for i in range(struct.unpack_from("<H", data, at)[0])]
    (entry,) = [entry for entry in entries if struct.unpack_from("<H", data, entry)[0] == 338]
    return data[:entry] + struct.pack("<H", 33700) + data[entry + 2 :]


RGB: dict[str, Any] = {"photometric": "rgb"}
GREY: dict[str, Any] = {"photometric": "minisblack"}
AS_ARRAYS = {
    "4 bands, ExtraSamples 0": (4, "uint8", RGB | {"extrasamples": (0,)}),
    "4 bands of grey": (4, "uint8", GREY),
    "5 bands": (5, "uint8", GREY),
    "5 bands, RGB first": (5, "uint8", RGB | {"extrasamples": (0, 0)}),
    "RGB, alpha and one more": (5, "uint8", RGB | {"extrasamples": (2, 0)}),
    "2 bands": (2, "uint8", GREY),
    "RGB of 16 bits": (3, "uint16", RGB),
    "13 bands of 16 bits, deflated": (13, "uint16", GREY | {"compression": "zlib", "predictor": True}),
    "3 bands of floats": (3, "float32", GREY),
    "2 bands of half floats": (2, "float16", GREY),
    "big-endian": (5, "uint16", GREY | {"byteorder": ">"}),
    "BigTIFF": (5, "uint8", GREY | {"bigtiff": True}),
    "in tiles": (5, "uint8", GREY | {"tile": (16, 16)}),
}


@pytest.mark.parametrize("planar", [False, True], ids=["contiguous", "planar"])
@pytest.mark.parametrize("kind", AS_ARRAYS)
def test_bands_are_channels(tmp_path, kind, planar, caplog):
    bands, dtype, options = AS_ARRAYS[kind]
    expected = pixels(bands, dtype)
    image = np.moveaxis(expected, -1, 0) if planar else expected
    data = encode(image, planarconfig="separate" if planar else "contig", **options)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "0.tif").write_bytes(data)
    for found in (open_bytes(data), opened(tmp_path / "x").load(0)):
        assert isinstance(found, np.ndarray) and found.dtype == dtype and found.dtype.isnative
        assert np.array_equal(found, expected)
    assert not caplog.records  # a library would print it for every image


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "CMYK", "1", "I;16", "F", "YCbCr", "LAB"])
def test_ordinary_pictures_go_through_pillow(tmp_path, mode):
    image = Image.new(mode, (9, 6))
    image.save(tmp_path / "0.tiff")
    with opened(tmp_path).load(0) as found:
        assert isinstance(found, Image.Image) and found.mode == mode and found.size == (9, 6)


def test_a_tagged_alpha_is_alpha(tmp_path):
    for tag in (1, 2):
        (tmp_path / "0.tif").write_bytes(encode(pixels(4), extrasamples=(tag,), **RGB))
        with opened(tmp_path).load(0) as found:
            assert isinstance(found, Image.Image) and found.mode in ("RGBA", "RGBa")


def test_four_bands_without_a_tag_are_said(tmp_path, capsys):
    (tmp_path / "0.tif").write_bytes(untagged(encode(pixels(4), extrasamples=(1,), **RGB)))
    assert np.array_equal(opened(tmp_path).load(0), pixels(4))
    note = "note: 0.tif: the 4 bands of a TIFF are 4 channels: none is tagged as alpha (ExtraSamples 1 or 2)\n"
    assert capsys.readouterr().err == note
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.write(tmp_path / "0.tif", "0.tif")
    opened(tmp_path / "x.zip")
    assert capsys.readouterr().err == note
    (tmp_path / "0.tif").write_bytes(encode(pixels(5), **GREY))
    opened(tmp_path)
    assert capsys.readouterr().err == "note: left out, since they are no images: .zip 1\n"


def test_what_cannot_be_read_is_a_bad_image():
    with pytest.raises(ValueError, match="its axes are ZYX; those of images are YX, YXS or SYX"):
        open_bytes(encode(np.zeros((3, 8, 9), "float16"), volumetric=True, tile=(1, 16, 16), planarconfig=None, **GREY))
    turned = encode(pixels(5), extratags=[(274, "H", 1, 6, True)], **GREY)
    with pytest.raises(ValueError, match="the tag Orientation 6; save it upright"):
        open_bytes(turned)
    for data in (b"II*\0", encode(pixels(5), **GREY)[:-1]):
        with pytest.raises(ValueError, match="a TIFF that cannot be read: "):
            open_bytes(data)


def test_a_type_that_needs_a_decision_is_read_as_it_is():
    """`make` asks for --dtype then, as of any other array."""
    found = open_bytes(encode(pixels(5).astype("int32"), **GREY))
    assert isinstance(found, np.ndarray) and found.dtype == "int32" and np.array_equal(found, pixels(5))
    with pytest.raises(UsageError, match="arrays of int32 are stored as one of"):
        array_dtype(found)


def test_a_compression_that_needs_more_codecs():
    """LZW, which GDAL writes by default: imagecodecs is in the extra."""
    out = io.BytesIO()
    Image.fromarray(pixels(4)).save(out, "TIFF", compression="tiff_lzw")
    try:
        image = open_bytes(untagged(out.getvalue()))
    except ValueError as error:
        assert not importlib.util.find_spec("imagecodecs")
        assert "requires the 'imagecodecs' package; pip install 'distgan[tiff]'" in str(error)
    else:
        assert isinstance(image, np.ndarray) and np.array_equal(image, pixels(4))


def test_an_image_so_large_that_it_may_be_an_attack(monkeypatch):
    data = encode(pixels(5), **GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 6 * 9 * 5 - 1)
    with pytest.raises(ValueError, match="it has 270 values; images have at most 269"):
        open_bytes(data)


def test_without_tifffile_one_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "0.tif").write_bytes(encode(pixels(5), **GREY))
    with pytest.raises(UsageError, match=r"needs tifffile, which is not installed; pip install 'distgan\[tiff\]'"):
        opened(tmp_path)
    (tmp_path / "0.tif").write_bytes(encode(pixels(3), **RGB))
    with opened(tmp_path).load(0) as found:
        assert found.mode == "RGB"
