"""Images of any shape and type: through shards bit by bit, and converted by `make` and `index` alike or refused."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from distgan.commands import shards
from distgan.data.order import Lanes
from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader, Stream
from distgan.dataset_tool import make
from distgan.dataset_tool.sources.source import Source
from distgan.errors import CorruptDataError, UsageError
from distgan.images import grid
from distgan.pixels import normalize, to_picture, to_stored
from distgan.samples import LIMITS, Condition

IMAGES = 24


def command(*args: object) -> int:
    return shards.main([str(arg) for arg in args])


def open_dataset(folder: Path) -> ShardSet:
    return shards.open_dataset(str(folder), None)


def pixels(dtype: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype in LIMITS:
        return rng.integers(0, LIMITS[dtype][1], shape, dtype, endpoint=True)  # type: ignore[arg-type]
    return (rng.standard_normal(shape) * 50).astype(dtype)


def source_of(images: np.ndarray, classes: int = 0, numbers: np.ndarray | None = None) -> Source:
    """Of arrays, whose names are their places."""
    names = [f"{i:06d}" for i in range(len(images))]
    source = Source("arrays", names, images.__getitem__)
    if classes:
        source.labels = np.arange(len(images)) % classes
        source.classes = [f"class {i}" for i in range(classes)]
    if numbers is not None:
        source.numbers = numbers
        source.number_names = [f"number{i}" for i in range(numbers.shape[1])]
    return source


def write(folder: Path, source: Source, **changes) -> ShardSet:
    values: dict[str, Any] = {"shard_mb": 0.02} | changes
    options = make.Options(**values)
    make.make(source, folder, options, jobs=1)
    return open_dataset(folder)


def in_order(dataset: ShardSet) -> list[int]:
    """The index in the source of every sample."""
    keys = [dataset.keys(shard) for shard in range(len(dataset.counts))]
    shard = np.repeat(np.arange(len(dataset.counts)), dataset.counts)
    return [int(keys[s](int(offset))) for s, offset in zip(shard, dataset.columns["offset"], strict=True)]


specs = st.fixed_dictionaries(
    {
        "height": st.integers(8, 40),
        "width": st.integers(8, 40),
        "channels": st.integers(1, 6),
        "dtype": st.sampled_from(["uint8", "uint16", "float16", "float32"]),
        "classes": st.sampled_from([0, 2, 3]),
        "numbers": st.integers(0, 3),
    }
)


PHASES = [Phase.explicit, Phase.reuse, Phase.generate]


@settings(max_examples=12, deadline=None, phases=PHASES)
@given(spec=specs)
def test_any_samples_come_back_bit_by_bit(spec, tmp_path_factory):
    """Through make, verify, a second index, the stream, normalization and back, and a grid."""
    shape = (IMAGES, spec["height"], spec["width"], spec["channels"])
    images = pixels(spec["dtype"], shape)
    numbers = np.random.default_rng(1).normal(5, 3, (IMAGES, spec["numbers"])) if spec["numbers"] else None
    folder = tmp_path_factory.mktemp("any") / "set"
    dataset = write(folder, source_of(images, spec["classes"], numbers))
    found = dataset.spec
    assert (*found.shape[1:], found.channels, found.dtype) == (*shape[1:], spec["dtype"])
    assert (found.num_classes, len(found.conditions)) == (spec["classes"], spec["numbers"])
    assert command("verify", folder) == 0
    order = in_order(dataset)
    assert sorted(order) == list(range(IMAGES))
    read = Reader(dataset).read(np.arange(IMAGES))
    assert read.images.dtype == spec["dtype"] and read.images.tobytes() == images[order].tobytes()
    if numbers is not None:
        rows = read.labels[:, spec["classes"] :]
        wanted = (numbers - numbers.mean(0)) / numbers.std(0)
        np.testing.assert_allclose(rows, wanted[order], rtol=1e-4, atol=1e-5)
        one_hot = np.array(order)[:, None] % max(spec["classes"], 1) == np.arange(spec["classes"])
        assert (read.labels[:, : spec["classes"]] == one_hot).all()
    before = [(folder / name).read_bytes() for name in ("manifest.json", "index.npz")]
    (folder / "index.npz").unlink()
    assert command("index", folder) == 0
    assert [(folder / name).read_bytes() for name in ("manifest.json", "index.npz")] == before
    lanes = Lanes(dataset.counts, 0, 4)
    stream = Stream(lanes, Reader(dataset), lambda at: {}, batch=8, position=0, threads=2, stop=IMAGES)
    streamed = np.concatenate([np.asarray(batch.images) for batch in stream])
    assert {image.tobytes() for image in streamed} == {image.tobytes() for image in images}
    seen = normalize(torch.from_numpy(images), found)
    assert seen.min() >= -1 and seen.max() <= 1 and seen.shape[1:] == found.shape
    back = to_stored(seen, found).numpy()
    if spec["dtype"] in LIMITS:
        assert back.tobytes() == images.tobytes()
    else:
        scale = {"float16": 2e-3, "float32": 2e-6}[spec["dtype"]] * np.abs(images.astype(np.float64)).max()
        np.testing.assert_allclose(back.astype(np.float64), images.astype(np.float64), atol=scale)
    assert grid(to_picture(seen.numpy())).dtype == np.uint8


def png(image: Image.Image, **save) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **save)
    return out.getvalue()


def jpeg(image: Image.Image, **save) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **save)
    return out.getvalue()


def colours(mode: str = "RGB") -> Image.Image:
    image = Image.fromarray(pixels("uint8", (8, 8, len(Image.new(mode, (1, 1)).getbands())), 3).squeeze(), mode)
    return image


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(colours(), exif=exif)


def palette(**save) -> bytes:
    return png(colours().quantize(8), **save)


def deep_rgb() -> bytes:
    """A PNG of 16-bit RGB, which Pillow does not write: an 8x8 one, filter 0."""
    import struct
    import zlib

    rows = pixels("uint16", (8, 8, 3)).astype(">u2")
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


PICTURES = {
    "rgb.png": (png(colours()), None),
    "grey.png": (png(colours("L")), None),
    "bilevel.png": (png(colours("L").convert("1")), None),
    "palette.png": (palette(), None),
    "rgb.jpg": (jpeg(colours()), None),
    "cmyk.jpg": (jpeg(colours("CMYK")), None),
    "16bit.png": (png(Image.fromarray(np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8))), "16-bit"),
    "16bit_rgb.png": (deep_rgb(), "16-bit"),
    "alpha.png": (png(Image.new("RGBA", (8, 8), (255, 0, 0, 0))), "transparent"),
    "grey_alpha.png": (png(colours("LA")), "transparent"),
    "palette_alpha.png": (palette(transparency=0), "transparent"),
    "key_colour.png": (png(colours(), transparency=(1, 2, 3)), "transparent"),
    "rotated.jpg": (rotated(), "EXIF-rotated"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_index_reads_what_make_would_write_or_refuses(name, tmp_path, capsys):
    """A tar of others gives exactly the pixels of `make` for the same file, or a line with the reason and the way."""
    data, change = PICTURES[name]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(data)
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "a.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    code = command("index", tmp_path / "tars")
    error = capsys.readouterr().err
    if change:
        assert code == 1 and not (tmp_path / "tars" / "manifest.json").exists()
        key = name.split(".")[0]
        assert f"a.tar: key {key}: {change}; `distgan shards make DIR_OF_TARS DEST` converts it" in error
        return
    assert code == 0
    indexed = open_dataset(tmp_path / "tars")
    assert command("make", tmp_path / "folder", tmp_path / "made", "--channels", indexed.spec.channels) == 0
    made = open_dataset(tmp_path / "made")
    assert indexed.spec == made.spec
    ours, theirs = (Reader(dataset).read(np.arange(1)).images for dataset in (made, indexed))
    assert ours.tobytes() == theirs.tobytes()


def test_16_bit_grey_keeps_its_values_with_a_dtype(tmp_path):
    """The ramp of a 16-bit PNG, of which an index once made 99.6 % white."""
    ramp = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    (tmp_path / "folder").mkdir()
    Image.fromarray(ramp).save(tmp_path / "folder" / "ramp.png")
    Image.fromarray((ramp // 257).astype(np.uint8)).save(tmp_path / "folder" / "small.png")
    assert command("make", tmp_path / "folder", tmp_path / "eight", "--channels", 1) == 0
    eight = Reader(open_dataset(tmp_path / "eight")).read(np.arange(2)).images
    assert (eight[..., 0] == ramp // 257).all()
    assert command("make", tmp_path / "folder", tmp_path / "sixteen", "--dtype", "uint16") == 0
    sixteen = open_dataset(tmp_path / "sixteen")
    assert (sixteen.spec.dtype, sixteen.spec.channels, sixteen.spec.range) == ("uint16", 1, (0.0, 65472.0))
    read = {image.tobytes() for image in Reader(sixteen).read(np.arange(2)).images}
    assert read == {ramp.tobytes(), (ramp // 257 * 257).tobytes()}


def test_a_picture_keeps_its_alpha_as_a_fourth_channel(tmp_path):
    image = colours("RGBA")
    (tmp_path / "folder").mkdir()
    image.save(tmp_path / "folder" / "a.png")
    assert command("make", tmp_path / "folder", tmp_path / "set", "--channels", 4) == 0
    dataset = open_dataset(tmp_path / "set")
    assert dataset.spec.channels == 4
    assert Reader(dataset).read(np.arange(1)).images.tobytes() == np.asarray(image).tobytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, (10.0, 4000.0)), ("0,4095", (0.0, 4095.0)), ("0%,100%", (10.0, 4000.0)), ("-5,1e9", (0.0, 65535.0))],
)
def test_the_range_of_integers(text, expected, tmp_path):
    images = np.random.default_rng(0).integers(10, 4001, (IMAGES, 8, 12, 2)).astype(np.uint16)
    images[0, 0, 0] = (10, 4000)
    dataset = write(tmp_path / "set", source_of(images), range=text)
    assert dataset.spec.range == expected
    assert str(dataset.spec).startswith("8x12x2 uint16 in [")


def test_percentiles_are_those_of_the_pixels(tmp_path):
    images = pixels("float32", (200, 16, 16, 3))
    dataset = write(tmp_path / "set", source_of(images), range="1%,99%", shard_mb=10)
    wanted = np.percentile(images, [1, 99])
    np.testing.assert_allclose(dataset.spec.range, wanted, rtol=0.03)
    seen = normalize(torch.from_numpy(images), dataset.spec)
    assert 0.015 < float((seen.abs() == 1).float().mean()) < 0.025  # the two per cent outside


@pytest.mark.parametrize(
    ("images", "changes", "message"),
    [
        (np.full((4, 8, 8, 1), np.nan, np.float32), {}, "NaN or Inf among the pixels"),
        (np.full((4, 8, 8, 1), 1e6, np.float32), {"dtype": "float16"}, "do not fit into float16"),
        (np.zeros((4, 8, 8, 1), np.float32), {}, "--range: all values are 0; give a range"),
        (np.zeros((4, 8, 8, 1), np.int32), {}, "arrays of int32 are stored as one of uint8, uint16"),
        (np.zeros((4, 8, 8, 1), np.int32), {"dtype": "uint8"}, "for --dtype uint8 give --range LOW,HIGH"),
        (np.zeros((4, 8, 8, 70), np.uint8), {}, "--channels: 70 is not between 1 and 64"),
        (np.zeros((4, 8, 8, 5), np.uint8), {"channels": 3}, "5 channels, and samples have 3; --channels 5"),
        (np.zeros((4, 8, 8, 5), np.uint8), {"format": "png"}, "--format png holds 1 or 3 channels of uint8"),
        (np.zeros((4, 8, 8, 1), np.uint8), {"range": "5"}, "--range: '5' is not LOW,HIGH"),
        (np.zeros((4, 8, 8, 1), np.uint8), {"range": "5,5"}, "the first number must be below the second"),
        (np.zeros((4, 8, 8, 1), np.uint8), {"size": "8x8x8"}, "--size: '8x8x8' is neither N nor HxW"),
        (np.zeros((4, 8, 8, 1, 2), np.uint8), {}, "an array of [8, 8, 1, 2]; an image is"),
    ],
)
def test_arrays_that_need_a_decision_are_refused(images, changes, message, tmp_path):
    with pytest.raises(UsageError) as error:
        write(tmp_path / "set", source_of(images), **changes)
    assert message in str(error.value)
    assert not (tmp_path / "set" / "manifest.json").exists()


def test_integers_are_scaled_from_a_given_range(tmp_path):
    images = np.array([0, 1000, 2047.5, 4095, 9000], np.float32)[:, None, None, None] * np.ones((8, 8, 1), np.float32)
    dataset = write(tmp_path / "set", source_of(images), dtype="uint8", range="0,4095")
    assert dataset.spec.range == (0.0, 255.0) and dataset.manifest.converted["clipped to --range"] == 1  # type: ignore[index]
    read = Reader(dataset).read(np.arange(5)).images[:, 0, 0, 0]
    assert sorted(read.tolist()) == [0, 62, 128, 255, 255]


def test_arrays_of_two_dtypes_are_refused_where_one_would_be_scaled(tmp_path):
    images = [pixels("uint8", (8, 8, 1)), pixels("uint16", (8, 8, 1))]
    source = Source("arrays", ["a", "b"], images.__getitem__)
    with pytest.raises(UsageError, match="--dtype uint8: 1 of 2 images are scaled from uint16, and the others are not"):
        write(tmp_path / "set", source, dtype="uint8", range="0,65535")


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("kind", ["picture", "array"])
def test_fit_to_a_rectangle(fit, kind, tmp_path):
    """A picture of 20x40 whose left half is bright, in 16x16; an array of the same values goes the same way."""
    values = np.zeros((20, 40), np.uint8)
    values[:, :20] = 200
    load = Image.fromarray(values) if kind == "picture" else values.astype(np.float32)
    dataset = write(
        tmp_path / "set", Source("one", ["a"], lambda i: load, channels=1), size="16x16", fit=fit, pad_color="7"
    )
    image = Reader(dataset).read(np.arange(1)).images[0, :, :, 0].astype(np.float32)
    assert image.shape == (16, 16)
    top, middle = image[0], image[8]
    assert abs(middle[2] - 200) < 3 and abs(middle[13]) < 3
    assert (abs(top - 7) < 1e-3).all() == (fit == "pad")
    assert dataset.manifest.converted is not None
    name = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}[fit]
    assert dataset.manifest.converted[name] == 1


def test_fit_none_refuses_another_shape(tmp_path):
    source = Source("one", ["a"], lambda i: Image.new("RGB", (40, 20)))
    with pytest.raises(UsageError, match="20x40 is not of the shape 16x16; --fit crop, pad or stretch"):
        write(tmp_path / "set", source, size="16", fit="none")


def test_conditions_are_in_the_tars_the_manifest_and_the_index(tmp_path):
    numbers = np.stack([np.linspace(1, 100, IMAGES), np.arange(IMAGES) % 2], axis=1)
    source = source_of(pixels("uint8", (IMAGES, 8, 8, 3)), 3, numbers)
    source.number_names = ["energy", "tilted"]
    dataset = write(tmp_path / "set", source)
    energy, tilted = dataset.spec.conditions
    assert tilted == Condition("tilted", "flag", 0.0, 1.0, 0.0, 1.0)
    assert (energy.name, energy.kind, energy.low, energy.high) == ("energy", "number", 1.0, 100.0)
    assert energy.mean == pytest.approx(50.5) and energy.std == pytest.approx(numbers[:, 0].std())
    first = sorted((tmp_path / "set").glob("*.tar"))[0]
    with tarfile.open(first) as tar:
        name = next(name for name in tar.getnames() if name.endswith(".json"))
        member = tar.extractfile(name)
        assert member is not None
        assert json.loads(member.read())["energy"] == np.float32(numbers[int(name[:9]), 0])
    drawn = dataset.draw_labels(np.random.default_rng(0).random(5000))
    assert drawn.shape == (5000, 5) and drawn.dtype == np.float32
    assert (drawn[:, :3].sum(1) == 1).all() and set(drawn[:, 4].tolist()) == {0.0, 1.0}
    assert abs(drawn[:, 3].mean()) < 0.05 and abs(drawn[:, 3].std() - 1) < 0.05


def test_a_number_that_is_the_same_in_all_samples_is_0_for_networks(tmp_path):
    """Of 0.1 in float32 the standard deviation is rounded to 1e-17, not to 0."""
    numbers = np.stack([np.full(IMAGES, 0.1), np.full(IMAGES, 7e8)], axis=1)
    dataset = write(tmp_path / "set", source_of(pixels("uint8", (IMAGES, 8, 8, 3)), 0, numbers))
    assert [condition.std for condition in dataset.spec.conditions] == [1.0, 1.0]
    assert not dataset.labels(np.arange(IMAGES)).any()


def test_numbers_of_more_digits_than_are_stored_are_refused(tmp_path):
    """Times of a day in seconds since 1970, of which float32 keeps every 128th."""
    numbers = 1.7e9 + np.linspace(0, 86_400, IMAGES)[:, None]
    source = source_of(pixels("uint8", (IMAGES, 8, 8, 3)), 0, numbers)
    with pytest.raises(UsageError, match="number0 have more digits than the 7 that are stored; subtract .* 1700000000"):
        write(tmp_path / "set", source)
    assert source.numbers is not None
    source.numbers -= 1.7e9
    write(tmp_path / "set", source)


def test_a_number_that_is_not_finite_in_the_index_is_refused(tmp_path):
    from distgan.data.index_file import write_index

    numbers = np.linspace(1, 100, IMAGES)[:, None]
    dataset = write(tmp_path / "set", source_of(pixels("uint8", (IMAGES, 8, 8, 3)), 0, numbers))
    columns = {name: np.array(array) for name, array in dataset.columns.items()}
    columns["numbers"][3] = np.nan
    row = write_index(tmp_path / "set", columns)
    manifest = json.loads((tmp_path / "set" / "manifest.json").read_text())
    manifest["index"] = {"bytes": row.bytes, "sha256": row.sha256}
    (tmp_path / "set" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match="a number of a condition is not finite"):
        open_dataset(tmp_path / "set")


def tar_of(folder: Path, images: list[np.ndarray]) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, image in enumerate(images):
            out = io.BytesIO()
            np.save(out, image)
            info = tarfile.TarInfo(f"{i}.npy")
            info.size = out.tell()
            out.seek(0)
            tar.addfile(info, out)
    return folder


def test_index_reads_arrays_of_all_dtypes(tmp_path):
    for dtype in ("uint8", "uint16", "float16", "float32"):
        images = pixels(dtype, (6, 8, 12, 5))
        folder = tar_of(tmp_path / dtype, list(images))
        assert command("index", folder) == 0
        dataset = open_dataset(folder)
        low, high = (0, 255) if dtype == "uint8" else (float(images.min()), float(images.max()))
        assert (dataset.spec.dtype, dataset.spec.range) == (dtype, (low, high))
        assert Reader(dataset).read(np.arange(6)).images.tobytes() == images.tobytes()
    assert command("index", tmp_path / "uint16", "--range", "0,4095") == 0
    assert open_dataset(tmp_path / "uint16").spec.range == (0.0, 4095.0)
    assert command("index", tmp_path / "float32", "--range", "-3,8") == 0
    assert open_dataset(tmp_path / "float32").spec.range == (-3.0, 8.0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 1), np.float64), "an array of <f8"),
        (np.zeros((8, 8, 1), ">u2"), "an array of >u2"),
        (np.full((8, 8, 2), np.inf, np.float32), "NaN or Inf among the pixels"),
        (np.zeros((8, 8, 65), np.uint8), "1 to 4096 pixels a side and 1 to 64 channels"),
        (np.zeros((0, 8, 2), np.uint8), "key 1 is 0x8x2 npy; images have 1 to 4096 pixels a side"),
        (np.asfortranarray(pixels("uint8", (8, 8, 2))), "an array of |u1 in Fortran order; images are"),
        (np.zeros((8, 8, 2), np.uint16), "8x8x2 uint16 npy, the images before it 8x8x2 npy"),
    ],
)
def test_index_refuses_other_arrays(image, message, tmp_path):
    folder = tar_of(tmp_path / "tars", [image] if "NaN" in message else [np.zeros((8, 8, 2), np.uint8), image])
    with pytest.raises(CorruptDataError) as error:
        shards.index(str(folder))
    assert message in str(error.value)
