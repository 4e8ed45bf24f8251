"""Inputs that people bring, each with the right answer: what is taken is said, what is refused says what to type."""

import importlib.util
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distgan.commands import shards
from distgan.dataset_tool.sources import open_source
from distgan.dataset_tool.sources.source import Source
from distgan.images import PIL_FORMATS
from helpers import noise


def command(*args: object) -> int:
    return shards.main([str(arg) for arg in args])


def opened(source: Path, labels: str = "auto") -> Source:
    return open_source(str(source), split="train", files=None, samples=1, seed=0, labels=labels)


def refused(capsys, *args: object) -> str:
    """The one line that a command is refused with."""
    assert command(*args) in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("distgan: ") and error.count("\n") == 1, error
    return error


def picture(number: int = 0, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(noise(1, seed=number)[0]).save(out, format)
    return out.getvalue()


def write(folder: Path, *names: str) -> Path:
    """Files; those with the suffix of an image are images."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        format = PIL_FORMATS.get(path.suffix)
        path.write_bytes(picture(number, format) if format else b"other")
    return folder


def write_tar(path: Path, *names: str, mode: str = "w") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for number, name in enumerate(names):
            format = PIL_FORMATS.get(f".{name.rpartition('.')[2]}")
            data = picture(number, format) if format else b"other"
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.parent


def test_files_that_are_no_images_are_counted_by_suffix(tmp_path, capsys):
    names = ("a/0.png", "b/1.jfif", "b/2.png", "b/3.heic", "a/4.HEIC", "a/5.jpg~", "a/6", "dataset.txt")
    images = write(tmp_path / "images", *names)
    line = "note: left out, since they are no images: .heic 2, .jpg~ 1, .txt 1, no suffix 1\n"
    assert command("make", images, tmp_path / "dataset") == 0
    out, error = capsys.readouterr()
    assert "3 images 8x8x3 npy, 2 classes" in out and line in error
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(images.rglob("*")):
            archive.write(path, path.relative_to(images))
    assert command("make", tmp_path / "images.zip", tmp_path / "zipped") == 0
    assert line in capsys.readouterr().err


def test_a_line_lists_a_dozen_suffixes(tmp_path, capsys):
    assert opened(write(tmp_path / "images", "0.png", *(f"0.x{i:02d}" for i in range(14)))).labels is None
    assert ".x11 1, and 2 more suffixes\n" in capsys.readouterr().err


def test_what_is_there_is_said_if_there_is_no_image(tmp_path, capsys):
    write(tmp_path / "images", "0.heic", "1.txt", "2.heic")
    error = refused(capsys, "make", tmp_path / "images", tmp_path / "dataset")
    assert "there is no image in the source; there are .heic 2, .txt 1; images end in " in error


@pytest.mark.skipif(importlib.util.find_spec("PIL._avif") is None, reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_reads_it(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "images" / "0.avif")
    pixels = np.asarray(opened(tmp_path / "images").load(0))
    assert pixels.shape == (16, 16, 3) and pixels[8, 8, 0] > 180 and pixels[8, 8, 1:].max() < 40


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "TEST"), ("training", "validation", "test")])
@pytest.mark.parametrize("around", ["", "data/"])
def test_splits_are_no_classes(tmp_path, capsys, names, around):
    images = write(
        tmp_path / "images", *(f"{around}{split}/{kind}/0.png" for split in names for kind in ("cat", "dog"))
    )
    error = refused(capsys, "make", images, tmp_path / "dataset")
    first = sorted(names)[0]
    assert f"are splits, not classes: make one of them, `distgan shards make SRC/{around}{first} DEST`" in error
    assert "(with the classes cat, dog); of all together, --labels none leaves them without labels" in error
    assert opened(images, "none").labels is None
    assert opened(images, "folders").classes == sorted(names)
    assert opened(images / around / first).classes == ["cat", "dog"]


def test_one_class_may_be_called_train(tmp_path):
    assert opened(write(tmp_path / "images", "train/0.png", "plane/0.png")).classes == ["plane", "train"]


@pytest.mark.parametrize("names", [("00000", "01000"), ("0", "1", "2")])
def test_buckets_are_no_classes(tmp_path, capsys, names):
    images = write(tmp_path / "images", *(f"{name}/{i}.png" for name in names for i in range(2)))
    error = refused(capsys, "make", images, tmp_path / "dataset")
    assert f"the folders {', '.join(names)} are classes or only parts of one set; --labels none leaves" in error
    assert opened(images, "none").labels is None and opened(images, "folders").classes == list(names)
    rows = [[f"{name}/{i}.png", i] for name in names for i in range(2)]
    (images / "dataset.json").write_text(json.dumps({"labels": rows}))
    assert opened(images).classes == ["0", "1"]


def test_buckets_in_a_zip(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("00000/0.png", "01000/1.png"):
            archive.writestr(name, picture())
    assert "the folders 00000, 01000 are" in refused(capsys, "make", tmp_path / "images.zip", tmp_path / "dataset")


def test_one_folder_around_the_classes(tmp_path, capsys):
    images = write(tmp_path / "set", "a/images/cat/0.png", "a/images/dog/1.png", "a/images/cat/more/2.png")
    source = opened(images)
    assert source.classes == ["cat", "dog"] and source.names[0] == "a/images/cat/0.png"
    assert source.labels is not None and source.labels.tolist() == [0, 0, 1]
    assert capsys.readouterr().err == "note: the classes are the folders in a/images/\n"
    assert opened(write(tmp_path / "flat", "images/0.png", "images/1.png")).labels is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("names", [("0.png", "1.png"), ("a/0.png", "a/1.png"), ("a/0.png", "b/1.png", "2.png")])
def test_class_folders_that_are_not_there_are_refused_if_asked_for(tmp_path, capsys, names):
    images = write(tmp_path / "images", *names)
    error = refused(capsys, "make", images, tmp_path / "dataset", "--labels", "folders")
    assert "--labels folders: " in error


def test_backslashes_in_a_zip_are_folders(tmp_path, capsys):
    """As zips that were written on Windows have."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for number, name in enumerate(("cat\\1.png", "dog\\2.png", "cat\\.hidden\\3.png")):
            archive.writestr(name, picture(number))
    assert command("make", tmp_path / "images.zip", tmp_path / "dataset") == 0
    out, error = capsys.readouterr()
    assert "2 images 8x8x3 npy, 2 classes" in out
    assert "note: backslashes in the names of the zip are taken for /, as in cat\\1.png\n" in error
    assert (tmp_path / "dataset" / "sources.txt").read_text().splitlines() in (
        ["cat/1.png", "dog/2.png"],
        ["dog/2.png", "cat/1.png"],
    )


def test_a_backslash_beside_slashes_is_part_of_a_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("cat/1.png", picture(1))
        archive.writestr("dog/a\\2.png", picture(2))
    assert opened(tmp_path / "images.zip").names == ["cat/1.png", "dog/a\\2.png"]


@pytest.mark.parametrize("verb", ["index", "make"])
def test_tars_of_train_and_test_together(tmp_path, capsys, verb):
    for split in ("train", "test"):
        write_tar(tmp_path / "d" / split / "0.tar", "a.png", "b.png")
    words = [tmp_path / "dataset"] if verb == "make" else []
    error = refused(capsys, verb, tmp_path / "d", *words)
    assert re.search(
        rf"/d has tars of several splits, test and train; take one: `distgan shards {verb} \S+/d/test", error
    )
    assert command(verb, tmp_path / "d" / "train", *words) == 0


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("22.05.png", "22.06.png"),
            "key 22 .*: a dot in the name ends the key .WebDataset's rule., as in 22.05.png; `",
        ),
        (("22.png", "22.05.png"), "key 22 .* a dot in the name ends the key .*, as in 22.05.png"),
        (("a.input.jpg", "a.target.jpg"), "several images; `.*` --image_key input.jpg takes one of each sample"),
        (("a.jpg", "a.png"), "several images; `.*` --image_key jpg takes one of each sample"),
        (("a.img",), "it has .img, and no image; `.*` leaves it out, or takes it with --image_key"),
        (("a.png", "b.txt"), "key b .* it has .txt, and no image; `.*` leaves it out"),
        (("a.webp",), "it has .webp: a.webp is not read as it is; `.*` converts it"),
        (("a.input.jpg",), "it has .input.jpg: a.input.jpg is not read as it is; `.*` converts it"),
        (("a.png", "._a.png"), "._a.png is a hidden file, such as macOS adds; `.*` leaves it out"),
    ],
)
def test_index_names_the_member_and_the_way(tmp_path, capsys, names, message):
    folder = write_tar(tmp_path / "d" / "0.tar", *names)
    error = refused(capsys, "index", folder)
    assert re.search(message, error) and f"distgan: {folder}/0.tar: key " in error
    assert "`distgan shards make DIR_OF_TARS DEST`" in error


def test_index_of_images_that_differ(tmp_path, capsys):
    folder = write_tar(tmp_path / "d" / "0.tar", "a.png", "b.jpg")
    error = refused(capsys, "index", folder)
    assert "key b is 8x8x3 jpg, the images before it 8x8x3 png; all images of a dataset have the same size" in error
    assert "`distgan shards make DIR_OF_TARS DEST --size N` makes them alike" in error


@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz", "0.tgz"])
def test_index_of_a_compressed_tar(tmp_path, capsys, name):
    write_tar(tmp_path / "d" / "1.tar", "a.png")
    folder = write_tar(tmp_path / "d" / name, "a.png", mode="w:gz")
    error = refused(capsys, "index", folder)
    assert f"{name}: a compressed tar, of which no image can be read alone; `distgan shards make DIR" in error


def test_index_of_a_made_dataset_keeps_the_numbers_of_its_classes(tmp_path):
    """Also if no image of the first class could be used."""
    images = write(tmp_path / "images", "a/0.png", "b/1.png", "c/2.png")
    (images / "a" / "0.png").write_bytes(b"no image")
    assert command("make", images, tmp_path / "dataset", "--size", 8, "--skip_bad") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "dataset").iterdir()}
    (tmp_path / "dataset" / "index.npz").unlink()
    assert command("index", tmp_path / "dataset") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "dataset").iterdir()} == before


@pytest.mark.parametrize("made_by", ["make", "index"])
def test_classes_1_and_2_are_two_classes(tmp_path, capsys, made_by):
    rows = [["a.png", 1], ["b.png", 2]]
    if made_by == "make":
        folder = write(tmp_path / "images", "a.png", "b.png")
        (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
        assert command("make", folder, tmp_path / "d") == 0
    else:
        write_tar(tmp_path / "d" / "0.tar", "a.png", "b.png")
        (tmp_path / "d" / "dataset.json").write_text(json.dumps({"labels": rows}))
        assert command("index", tmp_path / "d") == 0
    assert "no image has the label 0, and some have 2; the 2 that occur are numbered from 0" in capsys.readouterr().err
    dataset = shards.open_dataset(str(tmp_path / "d"), None)
    assert [(row.name, row.samples) for row in dataset.classes] == [("1", 1), ("2", 1)]
    assert sorted(dataset.columns["label"].tolist()) == [0, 1]
