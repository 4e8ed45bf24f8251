"""`distgan shards`: every source, image conversion, reproducible bytes, resuming an interrupted make, bad input."""

import gzip
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from distgan.commands import shards
from distgan.data.schema import ClassCount
from distgan.data.stream import Reader
from distgan.dataset_tool import make
from distgan.samples import SampleSpec
from helpers import ROOT, make_dataset, noise


def command(*args: object) -> int:
    return shards.main([str(arg) for arg in args])


def open_dataset(folder: Path):
    return shards.open_dataset(str(folder), None)


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def read_images(folder: Path) -> np.ndarray:
    dataset = open_dataset(folder)
    return Reader(dataset).read(np.arange(len(dataset.columns["label"]))).images


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_images_and_labels_are_read_back_unchanged(tmp_path):
    images = noise(50)
    dataset = open_dataset(make_dataset(tmp_path / "dataset", images, shards=4))
    read = Reader(dataset).read(np.arange(50))
    originals = {image.tobytes(): i % 3 for i, image in enumerate(images)}
    assert len(dataset.counts) == 4 and max(dataset.counts) - min(dataset.counts) <= 1
    assert {i.tobytes(): int(label) for i, label in zip(read.images, read.labels, strict=True)} == originals
    assert dataset.classes == [ClassCount(n, 17 - (n == "c")) for n in "abc"]
    np.testing.assert_allclose(read_manifest(tmp_path / "dataset")["mean"], images.mean((0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(read_manifest(tmp_path / "dataset")["std"], images.std((0, 1, 2)), atol=1e-3)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset does not close its files
@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("format", ["npy", "png"])
def test_webdataset_reads_the_shards(tmp_path, format):
    images = noise(20)
    folder = make_dataset(tmp_path / "dataset", images, shards=2, format=format)
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    decode = "rgb8" if format == "png" else None
    pipeline: Any = wds.compat.WebDataset(tars, shardshuffle=False, empty_check=False)
    samples = list((pipeline.decode(decode) if decode else pipeline.decode()).to_tuple("__key__", format, "cls"))
    assert {key: (image.tobytes(), label) for key, image, label in samples} == {
        f"{i:09d}": (image.tobytes(), i % 3) for i, image in enumerate(images)
    }


def test_same_input_gives_the_same_bytes_for_any_number_of_jobs(tmp_path):
    one = files(make_dataset(tmp_path / "a", noise(50), shards=4, jobs=1))
    two = files(make_dataset(tmp_path / "b", noise(50), shards=4, jobs=2))
    assert one == two and len(one) == 7
    assert files(make_dataset(tmp_path / "c", noise(50), shards=4, seed=1)) != one


def test_class_folders_become_labels(folder_of_images, tmp_path, capsys):
    assert command("make", folder_of_images, tmp_path / "dataset") == 0
    assert "10 images 8x8x3 npy, 2 classes, 1 shard, 0.0 MB\n" in capsys.readouterr().out
    assert [row.name for row in open_dataset(tmp_path / "dataset").classes] == ["a", "b"]
    assert command("make", folder_of_images, tmp_path / "plain", "--labels", "none") == 0
    assert open_dataset(tmp_path / "plain").classes == []


def test_zip_gives_the_same_dataset_as_its_folder(folder_of_images, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder_of_images.rglob("*.png"):
            archive.write(path, path.relative_to(folder_of_images))
    assert (
        command("make", folder_of_images, tmp_path / "a")
        == command("make", tmp_path / "images.zip", tmp_path / "b")
        == 0
    )
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    for name in ("manifest.json", ".source"):  # both describe the source
        assert a.pop(name) != b.pop(name)
    assert a == b


@pytest.mark.parametrize("kind", ["csv", "csv with a BOM and no header", "jsonl", "json"])
def test_labels_from_a_file(folder_of_images, tmp_path, kind):
    names = sorted(p.relative_to(folder_of_images).as_posix() for p in folder_of_images.rglob("*.png"))
    rows = {name: i % 5 for i, name in enumerate(names)}
    text = {
        "csv": "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows.items()),
        "csv with a BOM and no header": "\ufeff" + "".join(f"{name},{label}\n" for name, label in rows.items()),
        "jsonl": "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in rows.items()),
        "json": json.dumps({"labels": [[name, label] for name, label in rows.items()]}),
    }[kind]
    path = tmp_path / f"labels.{kind.split()[0]}"
    path.write_text(text)
    assert command("make", folder_of_images, tmp_path / "dataset", "--labels", path) == 0
    assert [row.samples for row in open_dataset(tmp_path / "dataset").classes] == [2] * 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.csv", "a/0.png,0\na/2.png,1\na/2.png,0\n"),
        ("labels.jsonl", '{"file_name": "a/2.png", "label": 0}\n' * 2),
        ("dataset.json", '{"labels": [["a/2.png", 0], ["a/0.png", 0], ["a/2.png", 1]]}'),
    ],
    ids=["csv", "jsonl", "json"],
)
def test_two_labels_of_a_file_are_an_error(folder_of_images, tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    assert command("make", folder_of_images, tmp_path / "dataset", "--labels", tmp_path / name) == 2
    assert capsys.readouterr().err == f"distgan: {tmp_path / name}: more than one label of 'a/2.png'; keep one\n"


def test_numbers_as_labels_are_spelled_in_one_way(folder_of_images, tmp_path, capsys):
    names = sorted(p.relative_to(folder_of_images).as_posix() for p in folder_of_images.rglob("*.png"))

    def make_with(*labels: str) -> int:
        rows = zip(names, labels * 5, strict=True)
        (tmp_path / "labels.csv").write_text("".join(f"{name},{label}\n" for name, label in rows))
        return command("make", folder_of_images, tmp_path / "dataset", "--labels", tmp_path / "labels.csv")

    assert make_with("1", "01") == 2
    error = "labels.csv: column '2': the labels '01' and '1' are the same number; write it in one way\n"
    assert capsys.readouterr().err == f"distgan: {tmp_path}/{error}"
    assert make_with("00", "01") == 0
    assert [row.samples for row in open_dataset(tmp_path / "dataset").classes] == [5, 5]


def test_dataset_json_takes_precedence_over_class_folders(folder_of_images, tmp_path):
    names = sorted(p.relative_to(folder_of_images).as_posix() for p in folder_of_images.rglob("*.png"))
    (folder_of_images / "dataset.json").write_text(json.dumps({"labels": [[name, 3] for name in names]}))
    assert command("make", folder_of_images, tmp_path / "dataset") == 0
    assert [row.samples for row in open_dataset(tmp_path / "dataset").classes] == [10]


def idx_files(folder: Path, images: np.ndarray, labels: np.ndarray) -> None:
    folder.mkdir()
    for name, header, data in (
        ("train-images-idx3-ubyte.gz", struct.pack(">4i", 2051, len(images), 28, 28), images),
        ("train-labels-idx1-ubyte.gz", struct.pack(">2i", 2049, len(labels)), labels),
    ):
        (folder / name).write_bytes(gzip.compress(header + data.tobytes()))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_files_keep_their_pixels(tmp_path, name):
    images, labels = noise(30, 28, 1)[..., 0], (np.arange(30) % 10).astype(np.uint8)
    idx_files(tmp_path / "files", images, labels)
    assert command("make", name, tmp_path / "dataset", "--source", tmp_path / "files") == 0
    read = read_images(tmp_path / "dataset")
    assert {i.tobytes() for i in read[:, 2:-2, 2:-2, 0]} == {i.tobytes() for i in images}
    assert not read[:, :2].any() and not read[:, :, -2:].any()


def test_stacked_mnist(tmp_path):
    images = np.repeat(np.arange(10, dtype=np.uint8), 28 * 28).reshape(10, 28, 28)
    idx_files(tmp_path / "files", images, np.arange(10, dtype=np.uint8))
    assert command("make", "stacked-mnist", tmp_path / "dataset", "--source", tmp_path / "files", "--samples", 200) == 0
    dataset = open_dataset(tmp_path / "dataset")
    read = Reader(dataset).read(np.arange(200))
    assert (read.images[:, 16, 16] @ [100, 10, 1] == read.labels).all()
    assert len(dataset.classes) == 1000 and len(set(read.labels.tolist())) > 150


def test_digits_are_complete(tmp_path):
    assert command("make", "digits", tmp_path / "dataset", "--format", "png") == 0
    dataset = open_dataset(tmp_path / "dataset")
    assert (dataset.spec, len(dataset.columns["label"])) == (SampleSpec(32, 32, 1, 10), 1797)


def make_one(tmp_path: Path, image: Image.Image, suffix: str = "png", **save) -> np.ndarray:
    (tmp_path / "one").mkdir()
    image.save(tmp_path / "one" / f"image.{suffix}", **save)
    assert command("make", tmp_path / "one", tmp_path / "dataset", "--size", 8) == 0
    return read_images(tmp_path / "dataset")[0]


def test_transparent_images_are_composited_onto_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    pixels = make_one(tmp_path, image)
    assert pixels[0, 0].tolist() == [0, 0, 255] and pixels[0, 7].tolist() == [255, 255, 255]
    assert read_manifest(tmp_path / "dataset")["converted"] == {"transparent": 1}


def test_16_bit_images_are_divided_by_257(tmp_path):
    assert make_one(tmp_path, Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)))[0, 0].tolist() == [100] * 3
    assert read_manifest(tmp_path / "dataset")["converted"]["16-bit"] == 1


def test_transparent_grey_of_16_bits_is_composited(tmp_path):
    values = np.full((8, 8), 257 * 100, np.uint16)
    values[:, 4:] += 1  # the same in 8 bits
    pixels = make_one(tmp_path, Image.fromarray(values), transparency=257 * 100)
    assert pixels[0, 0].tolist() == [255] * 3 and pixels[0, 7].tolist() == [100] * 3
    assert read_manifest(tmp_path / "dataset")["converted"] == {"16-bit": 1, "transparent": 1}


def test_cmyk_images_are_converted(tmp_path):
    assert make_one(tmp_path, Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "jpg")[0, 0].max() < 10
    assert read_manifest(tmp_path / "dataset")["converted"] == {"from CMYK": 1}


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff", "png"])
def test_first_frame_of_animated_images_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    lossless = {"lossless": True} if suffix == "webp" else {}
    pixels = make_one(tmp_path, frames[0], suffix, save_all=True, append_images=frames[1:], **lossless)
    assert (pixels == [255, 0, 0]).all()
    assert read_manifest(tmp_path / "dataset")["converted"]["animated, first frame"] == 1


def test_jpeg_with_a_second_picture_is_not_animated(tmp_path):
    """Phones append depth and gain maps to a JPEG."""
    image = Image.new("RGB", (8, 8), "red")
    make_one(tmp_path, image, "jpg", format="MPO", save_all=True, append_images=[image])
    assert read_manifest(tmp_path / "dataset")["converted"] == {}


def test_animated_image_that_ends_after_its_first_frame(tmp_path):
    frames = [Image.fromarray(image) for image in noise(2, 40)]
    (tmp_path / "one").mkdir()
    frames[0].save(tmp_path / "one" / "0.gif", save_all=True, append_images=frames[1:])
    data = (tmp_path / "one" / "0.gif").read_bytes()
    (tmp_path / "one" / "0.gif").write_bytes(data[: data.rindex(b"\x21\xf9\x04") + 20])  # in the second frame's header
    assert command("make", tmp_path / "one", tmp_path / "dataset") == 0


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_images_are_rotated_by_exif(tmp_path, suffix):
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise by 90 degrees: the bright top becomes the right side
    pixels = make_one(tmp_path, image, suffix, exif=exif)
    assert pixels[4, 7].min() > 200 and pixels[4, 0].max() < 50
    assert read_manifest(tmp_path / "dataset")["converted"]["EXIF-rotated"] == 1


@pytest.mark.parametrize("orientation", [None, 1])
def test_upright_tiff_is_not_counted_as_rotated(tmp_path, orientation):
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    make_one(tmp_path, Image.new("RGB", (8, 8)), "tiff", exif=exif)
    assert read_manifest(tmp_path / "dataset")["converted"] == {}


def test_crop_and_antialiased_resize(tmp_path):
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, ::2] = 255
    pixels = make_one(tmp_path, Image.fromarray(stripes))
    assert 115 < pixels.mean() < 140 and pixels.std() < 20  # aliasing would give 0 and 255
    recorded = read_manifest(tmp_path / "dataset")["options"]
    assert recorded["resize"] == "lanczos" and recorded["fit"] == "crop"
    assert command("make", tmp_path / "one", tmp_path / "other", "--size", 8, "--fit", "none") == 2


def test_corrupt_images_are_listed(folder_of_images, tmp_path, capsys):
    (folder_of_images / "a" / "cut.png").write_bytes((folder_of_images / "a" / "0.png").read_bytes()[:60])
    (folder_of_images / "b" / "page.png").write_bytes(b"<html>not found</html>")
    assert command("make", folder_of_images, tmp_path / "dataset") == 2
    error = capsys.readouterr().err
    assert "2 of 12 images cannot be used" in error and "a/cut.png" in error and "b/page.png" in error
    assert not (tmp_path / "dataset").exists()
    assert command("make", folder_of_images, tmp_path / "dataset", "--skip_bad") == 0
    manifest = read_manifest(tmp_path / "dataset")
    assert manifest["samples"] == 10 and len(manifest["left_out"]) == 2


def test_reason_is_the_same_each_time(folder_of_images, tmp_path):
    """Pillow's message has the address of the buffer, which would be in the manifest."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder_of_images.rglob("*.png"):
            archive.write(path, path.relative_to(folder_of_images))
        archive.writestr("a/page.png", "<html>not found</html>")
    for name in ("a", "b"):
        assert command("make", tmp_path / "images.zip", tmp_path / name, "--skip_bad") == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert read_manifest(tmp_path / "a")["left_out"] == ["a/page.png: cannot identify image file"]


def test_make_prints_what_it_did_to_the_images(folder_of_images, tmp_path, capsys):
    assert command("make", folder_of_images, tmp_path / "unchanged") == 0
    assert capsys.readouterr().out.count("\n") == 1
    for i in range(5):
        (folder_of_images / "a" / f"bad{i}.png").write_text("not an image")
    Image.new("RGB", (4, 4)).save(folder_of_images / "b" / "small.png")
    Image.new("RGB", (20, 30)).save(folder_of_images / "b" / "high.png")
    Image.new("RGB", (16, 16)).save(folder_of_images / "b" / "large.png")
    Image.new("RGB", (8, 30)).save(folder_of_images / "b" / "narrow.png")
    Image.new("L", (8, 8)).save(folder_of_images / "b" / "grey.png")
    Image.new("F", (8, 12)).save(folder_of_images / "b" / "float.tiff")
    assert command("make", folder_of_images, tmp_path / "dataset", "--size", 8, "--skip_bad") == 0
    out = capsys.readouterr().out.splitlines()
    manifest = read_manifest(tmp_path / "dataset")
    first = "; ".join(manifest["left_out"][:3])
    assert out[1:] == [
        f"left out: 6 ({first}; and 3 more in manifest.json)",
        "converted: from L (1)",
        "resized: 3, of which enlarged: 1",
        "cropped: 2",
    ]
    assert manifest["converted"] == {"cropped": 2, "enlarged": 1, "from L": 1, "resized": 3}
    assert command("make", folder_of_images, tmp_path / "dataset", "--size", 8, "--skip_bad") == 0
    assert capsys.readouterr().out.splitlines() == out


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["SRC", "DEST", "--skip_bad"], 0),
        (["SRC", "DEST", "--skip_bad", "--size", 8], 0),
        (["--skip_bad", "SRC", "DEST"], 0),
        (["SRC", "DEST", "--skip_bad", "True"], 0),
        (["SRC", "DEST", "--skip_bad=yes"], 0),
        (["SRC", "DEST", "--skip_bad", "False"], 2),
        (["SRC", "DEST", "--skip_bad", "no", "--size", 8], 2),
        (["SRC", "DEST"], 2),
    ],
)
def test_skip_bad_is_a_flag_or_has_a_value(folder_of_images, tmp_path, capsys, args, code):
    (folder_of_images / "a" / "bad.png").write_text("not an image")
    paths = {"SRC": folder_of_images, "DEST": tmp_path / "dataset"}
    assert command("make", *(paths.get(arg, arg) for arg in args)) == code
    assert ("1 of 11 images cannot be used" in capsys.readouterr().err) == (code == 2)


def test_size_that_no_network_takes_gives_a_warning(folder_of_images, tmp_path, capsys):
    def warning(size: int) -> str:
        assert command("make", folder_of_images, tmp_path / str(size), "--size", size) == 0
        return capsys.readouterr().err

    line = "warning: no convolutional network takes {} images; dcgan and r3gan take {}\n"
    assert warning(30) == line.format("30x30", "--size 28x28 or --size 32x32")
    assert warning(6) == line.format("6x6", "--size 8x8")
    assert warning(28) == ""
    assert make.size_warning(1100, 40) == line.format("1100x40", "--size 1024x40").rstrip()


def test_decompression_bomb_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "one").mkdir()
    Image.new("L", (4000, 4000)).save(tmp_path / "one" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
    assert command("make", tmp_path / "one", tmp_path / "dataset", "--size", 8) == 2
    assert "decompression bomb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["make", "nothing", "DEST"],
            "nothing is not a folder, .zip, .tar, .* or built-in dataset; choose from digits",
        ),
        (["make", "EMPTY", "DEST"], "there is no image in the source"),
        (["make", "SRC", "DEST", "--format", "gif"], "format"),
        (["make", "SRC", "DEST", "--size", "0"], "--size: 0 is not between"),
        (["make", "SRC", "DEST", "--quality", "96"], "--quality: 96 is not between 1 and 95"),
        (["make", "SRC", "DEST", "--shard_mb", "0"], "--shard_mb: 0 is not above 0"),
        (["make", "SRC", "DEST", "--jobs", "0"], "--jobs: 0 is not above 0"),
        (["make", "SRC", "DEST", "--samples", "-1"], "--samples: -1 is not above 0"),
        (["make", "SRC", "DEST", "--labels", "nowhere.csv"], "there is no file nowhere.csv"),
        (["make", "mnist", "DEST", "--source", "EMPTY"], "no train-images-idx3-ubyte"),
        (["make", "cifar10", "DEST", "--source", "EMPTY"], "cifar10|CIFAR10"),
        (["make", "SRC", "SRC"], "is not empty"),
        (["index", "EMPTY"], "there is no .tar in it"),
        (["verify", "EMPTY"], "has no manifest.json"),
        (["verify", "nowhere"], "there is nothing at nowhere"),
        (["order", "DATASET", "--batch", "16", "--world", "3"], "3 processes do not divide the 16 lanes"),
        (["order", "DATASET", "--batch", "16", "--world", "2", "--rank", "2"], "--rank: 2 is not in .0, 2."),
        (["order", "DATASET", "--batch", "0"], "--batch: 0 is too small"),
        (["order", "DATASET", "--start", "-2"], "--start: -2 is too small"),
        (["order", "DATASET", "--batch", "128", "--lanes", "128"], "128 lanes need at least 128 images; .* has 80"),
        (["stats", "DATASET", "--duplicates", "-1"], "--duplicates: -1 is too small"),
        (["make", "SRC", "PLAIN/x"], "cannot be written: Not a directory"),
        (["make", "SRC", "DEST", "--labels", "PLAIN"], "not a list of file names and labels"),
        (["verify", "http://localhost:abc/x"], "no host or bucket in http://localhost:abc/x"),
        (["verify", "s3://"], "no host or bucket in s3://"),
        (["order", "DATASET", "--batsh", "16"], "batsh: no such key; did you mean batch"),
        (["order", "DATASET", "--world", "0"], "--world: 0 is too small"),
    ],
)
def test_bad_input_is_reported_in_one_line(args, message, folder_of_images, tmp_path, tiny, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain").write_bytes(b"\xff\xfe not text")
    paths = {"DEST": tmp_path / "dataset", "SRC": folder_of_images, "EMPTY": tmp_path / "empty", "DATASET": tiny}
    paths |= {"PLAIN": tmp_path / "plain", "PLAIN/x": tmp_path / "plain" / "x"}
    assert command(*(paths.get(arg, arg) for arg in args)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("distgan: ") and error.count("\n") == 1
    assert not (tmp_path / "dataset").exists()


def test_make_is_idempotent_and_refuses_other_options(folder_of_images, tmp_path, capsys):
    assert command("make", folder_of_images, tmp_path / "dataset") == 0
    before = files(tmp_path / "dataset")
    assert command("make", folder_of_images, tmp_path / "dataset") == 0 and files(tmp_path / "dataset") == before
    assert command("make", folder_of_images, tmp_path / "dataset", "--format", "png") == 2
    assert "holds another dataset" in capsys.readouterr().err and files(tmp_path / "dataset") == before


def test_make_detects_changed_images_and_missing_shards(folder_of_images, tmp_path, capsys):
    assert command("make", folder_of_images, tmp_path / "dataset") == 0
    image = next(folder_of_images.rglob("*.png"))
    before, when = image.read_bytes(), image.stat()
    Image.fromarray(noise(1, seed=5)[0]).save(image)
    assert command("make", folder_of_images, tmp_path / "dataset") == 2
    assert "the images have changed since" in capsys.readouterr().err
    image.write_bytes(before)
    os.utime(image, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert command("make", folder_of_images, tmp_path / "dataset") == 0
    (tmp_path / "dataset" / "shard-000000.tar").unlink()
    assert command("make", folder_of_images, tmp_path / "dataset") == 2
    assert "shard-000000.tar is missing or truncated" in capsys.readouterr().err


def test_links_are_followed_and_broken_ones_are_reported(folder_of_images, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(noise(1, seed=5)[0]).save(tmp_path / "elsewhere" / "5.png")
    (folder_of_images / "c").symlink_to(tmp_path / "elsewhere")
    (folder_of_images / "c" / "loop").symlink_to(folder_of_images)
    assert command("make", folder_of_images, tmp_path / "dataset") == 0
    dataset = open_dataset(tmp_path / "dataset")
    assert [row.name for row in dataset.classes] == ["a", "b", "c"] and dataset.counts.sum() == 11
    (folder_of_images / "a" / "broken.png").symlink_to(tmp_path / "nowhere.png")
    assert command("make", folder_of_images, tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "1 of 12 images cannot be used" in error and "a/broken.png: " in error and not (tmp_path / "other").exists()
    for name in ("itself", "itself.png"):
        (folder_of_images / "a" / name).symlink_to(name)
    assert command("make", folder_of_images, tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "2 of 13 images cannot be used" in error and "a/itself.png: " in error


def test_images_of_different_size_need_the_size_option(folder_of_images, tmp_path, capsys):
    Image.fromarray(noise(1, size=16)[0]).save(folder_of_images / "b" / "z.png")
    assert command("make", folder_of_images, tmp_path / "dataset") == 2
    assert "b/z.png: 16x16, the first image 8x8; --size N or HxW resizes all" in capsys.readouterr().err
    assert command("make", folder_of_images, tmp_path / "dataset", "--size", 8) == 0


def test_failed_make_removes_only_its_own_files(folder_of_images, tmp_path):
    bad = folder_of_images / "a" / "bad.png"
    bad.write_text("not an image")
    args = [str(folder_of_images), str(tmp_path / "dataset"), "--size=8"]
    killed_before_the_manifest = """
import os, signal, sys
import distgan.dataset_tool.parts, distgan.commands.shards
distgan.dataset_tool.parts.DatasetWriter.finish = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
distgan.commands.shards.main(["make", *sys.argv[1:]])
"""
    subprocess.run([sys.executable, "-c", killed_before_the_manifest, *args], cwd=ROOT, capture_output=True)
    assert (tmp_path / "dataset" / "shard-000000.tar").exists()
    (tmp_path / "dataset" / "notes.txt").write_text("mine")
    assert command("make", *args) == 2
    assert [path.name for path in (tmp_path / "dataset").iterdir()] == ["notes.txt"]


def test_no_image_runs_an_external_program(folder_of_images, tmp_path, monkeypatch, capsys):
    """Pillow passes EPS data to Ghostscript, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\necho started >>{tmp_path}/started\nexit 1\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (folder_of_images / "a" / "x.png").write_bytes(eps)
    assert command("make", folder_of_images, tmp_path / "dataset", "--size", 8) == 2
    (tmp_path / "foreign").mkdir()
    with open(tmp_path / "foreign" / "0.tar", "wb") as file, wds.writer.TarWriter(file, encoder=False) as tar:
        tar.write({"__key__": "0", "png": eps})
    assert command("index", tmp_path / "foreign") == 1
    assert not (tmp_path / "started").exists() and capsys.readouterr().err.count("cannot identify image") == 2


def test_index_restores_a_deleted_index_and_changes_nothing_else(folder_of_images, tmp_path, capsys):
    folder = tmp_path / "dataset"
    assert command("make", folder_of_images, folder) == 0
    before = files(folder)
    (folder / "index.npz").unlink()
    assert command("index", folder) == 0 and files(folder) == before
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000001.tar")
    assert command("index", folder) == 2 and "its shards are not those of" in capsys.readouterr().err


def test_killed_make_is_resumed_by_the_same_command(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i, image in enumerate(noise(400, 64)):
        Image.fromarray(image).save(images / f"{i}.png")
    (images / "bad.png").write_text("not an image")
    command_line = [sys.executable, "-m", "distgan", "shards", "make", str(images), str(tmp_path / "dataset")]
    command_line += ["--format", "png", "--shard_mb", "0.2", "--jobs", "2", "--skip_bad"]

    def written() -> int:
        return len(list((tmp_path / "dataset").glob("*.tar")))

    killed = 0
    for _ in range(3):
        process = subprocess.Popen(
            command_line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        before = written()
        while process.poll() is None and written() < before + 3:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed >= 2 and not (tmp_path / "dataset" / "manifest.json").exists()
    subprocess.run(command_line, check=True, capture_output=True)
    assert command("verify", tmp_path / "dataset") == 0
    source = shards.open_source(str(images), split="train", files=None, labels="auto", samples=1, seed=0)
    reference = tmp_path / "reference"
    make.make(source, reference, make.Options(format="png", shard_mb=0.2, skip_bad=True), 1)
    assert files(tmp_path / "dataset") == files(reference)
    assert len((reference / "sources.txt").read_text().splitlines()) == 400


def test_shards_of_another_program_are_indexed(tmp_path):
    folder = tmp_path / "foreign"
    (folder / "more").mkdir(parents=True)
    images = noise(20)
    for part, path in enumerate((folder / "0.tar", folder / "more" / "0.tar")):
        with open(path, "wb") as file, wds.writer.TarWriter(file) as tar:
            for i in range(10 * part, 10 * part + 10):
                prefix = "long/" * 30 if part else ""
                tar.write({"__key__": f"{prefix}{i:03d}", "png": images[i], "json": {"label": i % 4}})
    assert command("index", folder) == 0 and command("verify", folder) == 0
    dataset = open_dataset(folder)
    read = Reader(dataset).read(np.arange(20))
    assert np.array_equal(read.images, images) and read.labels.tolist() == [i % 4 for i in range(20)]


def foreign(folder: Path, fields: list[dict[str, Any]], **beside: Any) -> Path:
    """A folder with a tar of 8x8 images that have these fields too, and JSON files beside it."""
    folder.mkdir()
    with open(folder / "0.tar", "wb") as file, wds.writer.TarWriter(file) as tar:
        for i, image in enumerate(noise(len(fields))):
            tar.write({"__key__": f"{i}", "png": image, **fields[i]})
    for name, value in beside.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


BESIDE = {"dataset": {"labels": [["0.png", "b"], ["1.png", "a"], ["2.png", "b"]]}}
NUMBERS = [{"json": {"label": i, "kind": n}} for i, n in zip((1, 0, 1), ("cat", "ant", "cat"), strict=True)]


@pytest.mark.parametrize(
    ("fields", "beside", "words", "names", "labels"),
    [
        (NUMBERS, {}, [], ["0", "1"], [1, 0, 1]),
        (NUMBERS, {"classes": ["bee", "cow", "dog"]}, [], ["bee", "cow", "dog"], [1, 0, 1]),
        (NUMBERS, {"classes": {"cow": 1, "bee": 0}}, [], ["bee", "cow"], [1, 0, 1]),
        (NUMBERS, {}, ["--label_key", "kind"], ["ant", "cat"], [1, 0, 1]),
        (NUMBERS, {"classes": ["cat", "ant"]}, ["--label_key", "kind"], ["cat", "ant"], [0, 1, 0]),
        ([{"cls": i} for i in (0, 2, 1)], {"classes": ["x", "y", "z"]}, [], ["x", "y", "z"], [0, 2, 1]),
        (
            [{}] * 3,
            {"dataset": {"labels": [["0.png", "b"], ["1.png", "a"], ["2.png", "b"]]}},
            [],
            ["a", "b"],
            [1, 0, 1],
        ),
        ([{}] * 3, {}, [], [], [-1] * 3),
    ],
)
def test_foreign_shards_keep_the_names_of_their_classes(tmp_path, fields, beside, words, names, labels):
    folder = foreign(tmp_path / "foreign", fields, **beside)
    assert command("index", folder, *words) == 0 and command("verify", folder) == 0
    dataset = open_dataset(folder)
    assert [row.name for row in dataset.classes] == names and dataset.columns["label"].tolist() == labels


@pytest.mark.parametrize(
    ("beside", "words", "message"),
    [
        ({"classes": ["one"]}, [], "the label 1 is not in .0, 1."),
        ({"classes": ["a", "a"]}, [], "classes.json: not the names of classes"),
        ({"classes": {"a": 0, "b": 2}}, [], "classes.json: .*its numbers are not 0 to 1"),
        ({"classes": 3}, [], "classes.json: .*Expected"),
        ({"classes": ["cat"]}, ["--label_key", "kind"], "the label 'ant' is not one of the 1 classes"),
        ({}, ["--label_key", "sort"], "--label_key: no .json in .* has a 'sort'"),
        ({"dataset": {"labels": [[1, 2]]}}, [], "dataset.json: not a list of file names and labels"),
    ],
)
def test_names_that_do_not_fit_are_reported(tmp_path, capsys, beside, words, message):
    folder = foreign(tmp_path / "foreign", NUMBERS, **beside)
    assert command("index", folder, *words) in (1, 2) and not (folder / "manifest.json").exists()
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_dataset_json_beside_tars_has_the_names_of_their_members(tmp_path, capsys):
    folder = tmp_path / "foreign"
    folder.mkdir()
    Image.fromarray(noise(1)[0]).save(tmp_path / "image.png")
    with tarfile.open(folder / "0.tar", "w") as tar:
        for name in ("a/x.PNG", "b/x.PNG"):
            tar.add(tmp_path / "image.png", name)

    def index(names: list[str]) -> int:
        rows = [[name, name[0]] for name in names]
        (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
        return command("index", folder)

    for names in (["a/x.PNG"], ["a/x.PNG", "images/b/x.PNG"], ["a/x.PNG", "b/x.png"]):
        assert index(names) == 2 and not (folder / "manifest.json").exists()
        error = capsys.readouterr().err
        assert "dataset.json: no label of b/x.PNG in 0.tar; list every image by its name in the tar" in error
        assert error.count("\n") == 1
    assert index(["a/x.PNG", "b/x.PNG"]) == 0
    assert [row.name for row in open_dataset(folder).classes] == ["a", "b"]


def test_order_prints_the_keys_of_each_rank(tiny, capsys):
    def printed(*args: object) -> list[list[str]]:
        assert command("order", tiny, "--batch", 16, "--seed", 3, "--count", 5, *args) == 0
        return [line.split() for line in capsys.readouterr().out.splitlines()]

    minibatches = printed()
    assert sorted(sum(minibatches, [])) == [f"{i:09d}" for i in range(80)]
    ranks = [printed("--world", 2, "--rank", rank) for rank in range(2)]
    assert [sorted(a + b) for a, b in zip(*ranks, strict=True)] == [sorted(keys) for keys in minibatches]


def test_order_takes_as_many_lanes_as_there_are_images(tmp_path, capsys):
    make_dataset(tmp_path / "few", noise(10), shards=2)
    assert command("order", tmp_path / "few", "--batch", 16, "--count", 1) == 0
    keys = capsys.readouterr().out.split()
    assert len(keys) == 16 and len(set(keys[:8])) == 8  # 8 lanes, one epoch of 8 images
    assert command("order", tmp_path / "few", "--batch", 16, "--lanes", 8) == 0
    assert capsys.readouterr().out.split() == keys


def test_stats_counts_classes_and_duplicates(tiny, tmp_path, capsys):
    assert command("stats", tiny, "--out", tmp_path / "grid.png") == 0
    out = capsys.readouterr().out
    assert "class a: 27" in out and "duplicate_images: 0" in out
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (82, 82)
    make_dataset(tmp_path / "twice", np.concatenate([noise(10), noise(10)]))
    assert command("stats", tmp_path / "twice") == 0 and "duplicate_images: 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args", [["--help"], ["order", "DATASET"], ["verify", "DATASET"], ["stats", "DATASET"], ["index", "DATASET"]]
)
def test_reading_commands_start_without_torch(args, tiny, tmp_path):
    """torch takes seconds to import, and webdataset imports torch."""
    shutil.copytree(tiny, tmp_path / "dataset")
    without_torch = """
import sys
sys.modules.update(dict.fromkeys(("torch", "torchvision", "webdataset")))  # None: an import raises ImportError
from distgan.commands.shards import main
sys.exit(main(sys.argv[1:]))
"""
    args = [arg.replace("DATASET", str(tmp_path / "dataset")) for arg in args]
    done = subprocess.run([sys.executable, "-c", without_torch, *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_hidden_files_are_skipped_and_a_stray_image_is_named(folder_of_images, tmp_path, capsys):
    """Thumbnails and what macOS adds are no images; without a stray image the folders are classes."""
    for name in (".thumbs/t.png", "a/._0.png", "__MACOSX/a/0.png"):
        path = folder_of_images / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes((folder_of_images / "a" / "0.png").read_bytes() if "thumbs" in name else b"no image")
    assert command("make", folder_of_images, tmp_path / "a") == 0
    assert "10 images 8x8x3 npy, 2 classes" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder_of_images.rglob("*.png"):
            archive.write(path, path.relative_to(folder_of_images))
    assert command("make", tmp_path / "images.zip", tmp_path / "b") == 0
    assert "10 images 8x8x3 npy, 2 classes" in capsys.readouterr().out
    shutil.copy(folder_of_images / "a" / "0.png", folder_of_images / "stray.png")
    assert command("make", folder_of_images, tmp_path / "c") == 0
    assert "warning: no labels: stray.png is not in a class folder" in capsys.readouterr().err
