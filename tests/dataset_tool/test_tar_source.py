"""`shards make` of the tars of others: any images, labels beside them, compressed or not; what is left out is said."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distgan.commands import shards
from distgan.data.index_file import NUMBERS
from distgan.data.stream import Reader
from distgan.dataset_tool.sources import open_source
from distgan.dataset_tool.sources.source import Source
from helpers import ROOT, fill

Files = dict[str, bytes]


def command(*args: object) -> int:
    return shards.main([str(arg) for arg in args])


def picture(i: int = 0, size: tuple[int, int] = (8, 8), suffix: str = "png") -> bytes:
    """An image in the format of the suffix, width x height; every `i` gives another one."""
    pixels = np.random.default_rng(i).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    out = io.BytesIO()
    if suffix == "npy":
        np.save(out, pixels)
    else:
        Image.fromarray(pixels).save(out, {"jpg": "JPEG", "tif": "TIFF", "jfif": "JPEG"}.get(suffix, suffix.upper()))
    return out.getvalue()


def tar_bytes(files: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def write_tars(folder: Path, tars: dict[str, Files]) -> Path:
    for name, files in tars.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tar_bytes(files))
    return folder


def open_tars(source: Path, **changes) -> Source:
    options: dict = {"split": "train", "files": None, "samples": 1, "seed": 0, "labels": "auto"} | changes
    return open_source(str(source), **options)


def pixels(source: Source, index: int) -> np.ndarray:
    return np.asarray(source.load(index))


def read_dataset(folder: Path) -> tuple[list[str], np.ndarray, list[str]]:
    """The paths of the samples, their labels, and the names of the classes."""
    dataset = shards.open_dataset(str(folder), None)
    paths = dataset.sources()
    assert paths is not None
    return paths, Reader(dataset).read(np.arange(len(paths))).labels, [row.name for row in dataset.classes]


def refused(capsys, *args: object) -> str:
    """The one line that a command is refused with."""
    assert command(*args) in (1, 2)
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if not line.startswith("note: ")]
    assert len(lines) == 1 and lines[0].startswith("distgan: "), error
    return lines[0]


SUFFIXES = ("jpg", "webp", "png", "npy", "bmp", "tif", "jfif")


def test_all_formats_and_sizes_in_one_set(tmp_path, capsys):
    files = {f"{i}.{suffix}": picture(i, (8 + i, 9), suffix) for i, suffix in enumerate(SUFFIXES)}
    labels = {f"{i}.cls": str(i % 2).encode() for i in range(len(SUFFIXES))}
    folder = write_tars(tmp_path / "tars", {"a.tar": files | labels, "sub/b.tar": {"x.png": picture(9), "x.cls": b"1"}})
    assert command("make", folder, tmp_path / "dataset", "--size", 8, "--jobs", 2) == 0
    assert "8 images 8x8x3 npy, 2 classes" in capsys.readouterr().out
    paths, numbers, classes = read_dataset(tmp_path / "dataset")
    expected = {f"a.tar/{name}": i % 2 for i, name in enumerate(files)} | {"sub/b.tar/x.png": 1}
    assert dict(zip(paths, numbers.tolist(), strict=True)) == expected and classes == ["0", "1"]
    assert command("verify", tmp_path / "dataset") == 0


def test_pixels_and_names_are_those_of_the_members(tmp_path):
    folder = write_tars(
        tmp_path / "tars", {"b.tar": {"x.png": picture(1)}, "a.tar": {"./k/x.npy": picture(2, (9, 8), "npy")}}
    )
    source = open_tars(folder)
    assert source.names == ["a.tar/k/x.npy", "b.tar/x.png"] and source.has_paths and source.labels is None
    assert np.array_equal(pixels(source, 0), np.load(io.BytesIO(picture(2, (9, 8), "npy"))))
    assert np.array_equal(pixels(source, 1), np.asarray(Image.open(io.BytesIO(picture(1)))))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar", "a.tar.bz2", "a.tar.xz", "A.TAR.GZ"])
def test_compressed_tars_are_decompressed_once_and_leave_nothing(tmp_path, monkeypatch, name):
    """Also a gzip that is called .tar, beside a plain one."""
    compress = {"bz2": bz2.compress, "xz": lzma.compress}.get(name.rpartition(".")[2], gzip.compress)
    folder = write_tars(tmp_path / "tars", {"b.tar": {"x.png": picture(5)}})
    files = {f"{i}.png": picture(i) for i in range(4)}
    (folder / name).write_bytes(compress(tar_bytes(files | {"0.cls": b"0"})))
    (folder / "c.tgz").write_bytes(gzip.compress(tar_bytes({"y.png": picture(6)})))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    source = open_tars(folder, labels="none")
    assert source.names == [f"{name}/{file}" for file in files] + ["b.tar/x.png", "c.tgz/y.png"]
    for i, data in enumerate([*files.values(), picture(5), picture(6)]):
        assert np.array_equal(pixels(source, i), np.asarray(Image.open(io.BytesIO(data))))
    assert not list((tmp_path / "temporary").iterdir())  # it has no name: a killed run leaves none
    assert command("make", folder, tmp_path / "dataset", "--labels", "none", "--jobs", 2) == 0
    assert command("make", folder / name, tmp_path / "one", "--labels", "none") == 0
    assert read_dataset(tmp_path / "one")[0] and not list((tmp_path / "temporary").iterdir())


def test_files_of_decompressed_tars_are_closed_with_their_source(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_bytes({"x.png": picture()})))
    before = len(os.listdir("/proc/self/fd"))
    source = open_tars(tmp_path / "a.tar.gz")
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del source
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_room_for_decompressing(tmp_path, small_disk, monkeypatch, capsys):
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_bytes({"x.bmp": picture(0, (1000, 1000), "bmp")})))
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    error = refused(capsys, "make", tmp_path / "a.tar.gz", tmp_path / "dataset")
    assert f"a.tar.gz: it does not fit into {small_disk} (No space left on device); set TMPDIR" in error
    fill(small_disk).unlink()
    assert os.statvfs(small_disk).f_bavail > 200  # pages: what was written is free again


@pytest.mark.parametrize("damage", [lambda data: data[:-20], lambda data: data[:30] + b"\0" * 30 + data[60:]])
def test_damaged_compressed_tar(tmp_path, capsys, damage):
    data = gzip.compress(tar_bytes({f"{i}.png": picture(i) for i in range(4)}))
    (tmp_path / "a.tar.gz").write_bytes(damage(data))
    assert "a.tar.gz: " in refused(capsys, "make", tmp_path / "a.tar.gz", tmp_path / "dataset")


def test_killed_make_of_compressed_tars_is_resumed(tmp_path):
    files = {f"{i}.png": picture(i, (32, 32)) for i in range(200)}
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(tar_bytes(files)))
    words = [str(tmp_path / "a.tar.gz"), str(tmp_path / "killed"), "--shard_mb", "0.1", "--jobs", "1"]
    killed_after_some_shards = """
import os, signal, sys
import distgan.dataset_tool.parts, distgan.commands.shards
distgan.dataset_tool.parts.DatasetWriter.finish = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
distgan.commands.shards.main(["make", *sys.argv[1:]])
"""
    env = os.environ | {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    done = subprocess.run([sys.executable, "-c", killed_after_some_shards, *words], cwd=ROOT, env=env)
    assert done.returncode == -signal.SIGKILL and (tmp_path / "killed" / "shard-000000.tar").exists()
    assert not list((tmp_path / "temporary").glob("tmp*"))
    assert command("make", *words) == 0
    assert command("make", words[0], tmp_path / "whole", *words[2:]) == 0
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()


def test_changed_tar_is_not_resumed(tmp_path, capsys):
    folder = write_tars(tmp_path / "tars", {"a.tar": {"x.png": picture(1)}})
    assert command("make", folder, tmp_path / "dataset") == 0
    write_tars(folder, {"a.tar": {"x.png": picture(2)}})
    os.utime(folder / "a.tar", ns=(1, 1))
    assert "the images have changed since" in refused(capsys, "make", folder, tmp_path / "dataset")


def test_members_that_are_no_samples_are_counted(tmp_path, capsys):
    files = {
        "a.jpg": picture(1, suffix="jpg"),
        "a.txt": b"a caption",
        "._a.jpg": b"macOS",
        "__MACOSX/._a.jpg": b"macOS",
        "lone.txt": b"a caption without an image",
        "lone.json": b"{}",
        "phone.heic": b"?",
    }
    folder = write_tars(tmp_path / "tars", {"0.tar": files})
    (folder / "stats.parquet").write_bytes(b"")
    assert command("make", folder, tmp_path / "dataset", "--size", 8) == 0
    out, error = capsys.readouterr()
    assert "1 images 8x8x3 npy, no labels" in out
    assert error.splitlines()[:4] == [
        "note: left out, since they are no tars: .parquet 1",
        "note: left out: 2 hidden members, such as ._ files of macOS",
        "note: left out: 2 samples without an image (.heic 1, .json 1, .txt 1), the first is 0.tar/lone.txt",
        "note: members beside the images that are not read: .txt 1",
    ]


def test_dots_in_names_are_explained(tmp_path, capsys):
    files = {f"{key}.{part}.png": picture(i) for i, (key, part) in enumerate([(22, "05"), (22, "06"), (23, "05")])}
    labels = {"22.05.cls": b"0", "22.06.cls": b"1", "23.05.cls": b"1"}
    folder = write_tars(tmp_path / "tars", {"0.tar": files | labels})
    assert command("make", folder, tmp_path / "dataset") == 0
    rule = "by WebDataset's rule the first dot ends the key, here the last one does"
    assert f"note: 2 images have dots in their names, such as 22.05.png; {rule}\n" == capsys.readouterr().err
    paths, labels_read, _ = read_dataset(tmp_path / "dataset")
    assert sorted(paths) == [f"0.tar/{name}" for name in files]
    assert dict(zip(paths, labels_read.tolist(), strict=True))["0.tar/22.06.png"] == 1


PAIRS = {
    f"{i}.{part}.jpg": picture(2 * i + (part == "target"), suffix="jpg")
    for i in range(3)
    for part in ("input", "target")
}


def test_samples_of_several_images_need_the_image_key(tmp_path, capsys):
    folder = write_tars(tmp_path / "tars", {"0.tar": PAIRS | {f"{i}.cls": str(i).encode() for i in range(3)}})
    error = refused(capsys, "make", folder, tmp_path / "dataset", "--size", 8)
    assert "0.tar: the sample 0 has several images (.input.jpg, .target.jpg); --image_key input.jpg takes one" in error
    assert "and --image_key jpg takes all that end in .jpg as samples of their own" in error
    source = open_tars(folder, image_key="target.jpg")
    assert source.names == [f"0.tar/{i}.target.jpg" for i in range(3)]
    assert source.labels is not None and source.labels.tolist() == [0, 1, 2]
    assert np.array_equal(pixels(source, 1), np.asarray(Image.open(io.BytesIO(PAIRS["1.target.jpg"]))))
    assert open_tars(folder, image_key="jpg").labels is not None and len(open_tars(folder, image_key="jpg")) == 6
    assert "no member ends in .gif; there are .jpg 6, .cls 3" in refused(
        capsys, "make", folder, tmp_path / "dataset", "--image_key", "gif"
    )


def test_image_key_names_an_extension_that_is_no_suffix_of_images(tmp_path, capsys):
    folder = write_tars(tmp_path / "tars", {"0.tar": {"a.img": picture(1), "b.img": picture(2)}})
    assert "there is no image; there are .img 2" in refused(capsys, "make", folder, tmp_path / "dataset")
    for key in ("img", ".img", "IMG"):
        assert len(open_tars(folder, image_key=key)) == 2
    assert command("make", folder, tmp_path / "dataset", "--image_key", "img") == 0


def test_jpg_beside_png_of_one_sample(tmp_path, capsys):
    files = {f"{i}.{suffix}": picture(i, suffix=suffix) for i in range(3) for suffix in ("jpg", "png")}
    folder = write_tars(tmp_path / "tars", {"0.tar": files})
    error = refused(capsys, "make", folder, tmp_path / "dataset")
    assert "the sample 0 has several images (.jpg, .png); --image_key jpg takes one of each" in error
    assert "samples of their own" not in error
    assert open_tars(folder, image_key="png").names == [f"0.tar/{i}.png" for i in range(3)]


def test_an_exact_extension_goes_before_one_that_ends_in_it(tmp_path, capsys):
    files = {"a.jpg": picture(1, suffix="jpg"), "a.mask.jpg": picture(2, suffix="jpg")}
    folder = write_tars(tmp_path / "tars", {"0.tar": files})
    assert open_tars(folder, image_key="jpg").names == ["0.tar/a.jpg"]
    assert capsys.readouterr().err == "note: members beside the images that are not read: .jpg 1\n"


JSONS = {
    f"{i}.json": json.dumps({"kind": "ab"[i % 2], "energy": i / 2, "on": i == 1, "v": [i, i / 4]}).encode()
    for i in range(4)
}
IMAGES = {f"{i}.png": picture(i) for i in range(4)}


def test_labels_under_a_key_of_json(tmp_path, capsys):
    folder = write_tars(tmp_path / "tars", {"0.tar": IMAGES | JSONS})
    source = open_tars(folder, label_key="kind")
    assert source.labels is not None and source.labels.tolist() == [0, 1, 0, 1] and source.classes == ["a", "b"]
    assert open_tars(folder).labels is None
    error = refused(capsys, "make", folder, tmp_path / "dataset", "--label_key", "sort")
    assert f"--label_key: no .json in {folder}/0.tar has a 'sort'" in error
    error = refused(capsys, "make", folder, tmp_path / "dataset", "--label_key", "energy")
    assert "0.tar/0.png: its label cannot be read: the label 0.0 is no class; --label_columns energy:number" in error


def test_columns_of_json_and_cls(tmp_path, capsys):
    files = IMAGES | JSONS | {f"{i}.cls": str(i // 2).encode() for i in range(4)}
    folder = write_tars(tmp_path / "tars", {"0.tar": files})
    source = open_tars(folder, label_columns="cls:class,energy,on,v_1")
    assert source.labels is not None and source.labels.tolist() == [0, 0, 1, 1]
    assert source.number_names == ["energy", "on", "v_1"] and source.numbers is not None
    assert source.numbers.tolist() == [[0, 0, 0], [0.5, 1, 0.25], [1, 0, 0.5], [1.5, 0, 0.75]]
    error = refused(capsys, "make", folder, tmp_path / "dataset", "--label_columns", "sort")
    assert "has no column 'sort'" in error
    missing = write_tars(tmp_path / "missing", {"0.tar": files | {"2.json": b"{}"}})
    error = refused(capsys, "make", missing, tmp_path / "dataset", "--label_columns", "energy")
    assert "0.tar/2.png, column 'energy': an empty cell" in error
    words = ["--label_columns", "energy", "--label_key", "kind"]
    assert "leave out one of the two" in refused(capsys, "make", folder, tmp_path / "dataset", *words)


@pytest.mark.parametrize("lists", [lambda i: f"0.tar/{i}.png", lambda i: f"{i}.png", lambda i: str(i)])
@pytest.mark.parametrize("kind", ["dataset.json beside", "dataset.json inside", "csv"])
def test_files_of_labels_name_members(tmp_path, lists: Callable[[int], str], kind):
    rows = [[lists(i), i % 2] for i in range(4)]
    table = {"labels": rows}
    inside = {"dataset.json": json.dumps(table).encode()} if kind == "dataset.json inside" else {}
    folder = write_tars(tmp_path / "tars", {"0.tar": IMAGES | inside})
    labels = "auto"
    if kind == "csv":
        labels = str(tmp_path / "labels.csv")
        with open(labels, "w") as file:
            csv.writer(file).writerows(rows)
    elif not inside:
        (folder / "dataset.json").write_text(json.dumps(table))
    source = open_tars(folder, labels=labels)
    assert source.labels is not None and source.labels.tolist() == [0, 1, 0, 1]


def test_a_member_of_two_tars_is_named_with_its_tar(tmp_path, capsys):
    folder = write_tars(tmp_path / "tars", {"0.tar": {"x.png": picture(0)}, "1.tar": {"x.png": picture(1)}})
    (folder / "dataset.json").write_text(json.dumps({"labels": [["x.png", 1]]}))
    error = refused(capsys, "make", folder, tmp_path / "dataset")
    assert "dataset.json: 2 images have no label, the first is 0.tar/x.png" in error
    (folder / "dataset.json").write_text(json.dumps({"labels": [["0.tar/x.png", 1], ["1.tar/x.png", 0]]}))
    labels = open_tars(folder).labels
    assert labels is not None and labels.tolist() == [1, 0]


def test_class_folders_and_class_names(tmp_path):
    files = {f"images/{kind}/{i}.png": picture(i) for i, kind in enumerate(["cat", "dog", "cat"])}
    folder = write_tars(tmp_path / "tars", {"0.tar": files})
    source = open_tars(folder)
    assert source.labels is not None and source.labels.tolist() == [0, 0, 1] or source.classes == ["cat", "dog"]
    named = write_tars(
        tmp_path / "named", {"0.tar": {"a.png": picture(0), "a.cls": b"1", "b.png": picture(1), "b.cls": b"0"}}
    )
    (named / "classes.json").write_text('["bee", "cow", "dog"]')
    assert open_tars(named).classes == ["bee", "cow", "dog"]


def test_a_dataset_of_ours_keeps_its_classes(folder_of_images, tmp_path):
    assert command("make", folder_of_images, tmp_path / "first") == 0
    assert command("make", tmp_path / "first", tmp_path / "second", "--size", 16) == 0
    _, labels, classes = read_dataset(tmp_path / "second")
    assert classes == ["a", "b"] and sorted(labels.tolist()) == [0] * 5 + [1] * 5


@pytest.mark.parametrize(
    ("tars", "words", "message"),
    [
        ({"0.tar": {"a.png": picture(), "a.cls": b"1", "b.png": picture()}}, [], "some .* have none, as 0.tar/b.png"),
        ({"0.tar": {"a.png": picture(), "a.cls": b"cat"}}, [], "a.png: its label .* .cls is b'cat', not a number"),
        ({"0.tar": {"a.png": picture(), "a.json": b"[1]"}}, [], "a.png: its label .* its .json is no object"),
        ({"0.tar": {"a.png": picture(), "a.json": b"{"}}, [], "a.png: its label cannot be read"),
        ({"0.tar": {"a.txt": b""}}, [], "there is no image; there are .txt 1"),
        ({"0.tar": {}}, [], "there is no image; there are nothing"),
        (
            {"train/0.tar": IMAGES, "test/0.tar": IMAGES},
            [],
            "test and train; take one: `.* make .*/test DEST`",
        ),
        ({"train-0.tar": IMAGES, "val-0.tar": IMAGES}, [], "train-0.tar and val-0.tar; move the tars of each into a"),
        ({"0.tar": IMAGES}, ["--labels", "folders"], "--labels folders: every image needs a class folder"),
        ({"0.tar": IMAGES}, ["--labels", "none", "--label_key", "x"], "labels come from --labels none"),
    ],
)
def test_bad_tars_are_refused_in_one_line(tmp_path, capsys, tars, words, message):
    folder = write_tars(tmp_path / "tars", tars)
    assert re.search(message, refused(capsys, "make", folder, tmp_path / "dataset", *words))
    assert not (tmp_path / "dataset").exists()


def test_two_members_of_a_name(tmp_path, capsys):
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "0.tar", "w") as archive:
        for i in range(2):
            info = tarfile.TarInfo("a.png")
            info.size = len(picture(i))
            archive.addfile(info, io.BytesIO(picture(i)))
    assert "0.tar: it has two members a.png" in refused(capsys, "make", tmp_path / "tars", tmp_path / "dataset")


def test_bad_images_in_tars_are_left_out_if_allowed(tmp_path, capsys):
    folder = write_tars(tmp_path / "tars", {"0.tar": {"a.png": picture(), "b.png": b"<html>", "c.npy": b"\x93NUMPY"}})
    assert command("make", folder, tmp_path / "dataset", "--size", 8) == 2
    error = capsys.readouterr().err
    assert "2 of 3 images cannot be used" in error and "0.tar/b.png: cannot identify image file" in error
    assert command("make", folder, tmp_path / "dataset", "--size", 8, "--skip_bad") == 0


def test_a_folder_of_images_and_tars_is_refused(tmp_path, capsys):
    folder = write_tars(tmp_path / "both", {"0.tar": IMAGES})
    (folder / "x.png").write_bytes(picture())
    error = refused(capsys, "make", folder, tmp_path / "dataset")
    assert "has images (x.png) and tars (0.tar); put the tars into a folder of their own" in error


@pytest.mark.parametrize("option", ["--image_key", "--label_key"])
def test_options_of_tars_are_refused_for_other_sources(folder_of_images, tmp_path, capsys, option):
    for source in (folder_of_images, "digits"):
        error = refused(capsys, "make", source, tmp_path / "dataset", option, "x")
        assert f"{option}: {source} has nothing that it could choose from" in error


COLUMNS = "energy,kind,on"
SAMPLES = dict(sorted((IMAGES | JSONS).items()))
"""The members of a sample one after another, as `index` needs them."""


def check_columns(folder: Path) -> None:
    """Of `ROWS`."""
    dataset = shards.open_dataset(str(folder), None)
    assert [row.name for row in dataset.classes] == ["a", "b"]
    assert [(one.name, one.kind) for one in dataset.spec.conditions] == [("energy", "number"), ("on", "flag")]
    columns = zip(dataset.columns["label"], dataset.columns[NUMBERS], strict=True)
    rows = [(int(label), *numbers) for label, numbers in columns]
    assert sorted(rows) == [(0, 0, 0), (0, 1, 0), (1, 0.5, 1), (1, 1.5, 0)]


def test_make_and_index_take_the_same_columns(tmp_path):
    folder = write_tars(tmp_path / "tars", {"0.tar": SAMPLES})
    assert command("make", folder, tmp_path / "made", "--label_columns", COLUMNS) == 0
    check_columns(tmp_path / "made")
    assert command("index", folder, "--label_columns", COLUMNS) == 0
    check_columns(folder)
    assert command("verify", folder) == 0


def test_index_takes_numbers_of_a_dataset_json(tmp_path):
    folder = write_tars(tmp_path / "tars", {"0.tar": IMAGES})
    rows = [[f"{i}.png", [i / 2, i % 2]] for i in range(4)]
    (folder / "dataset.json").write_text(json.dumps({"labels": rows}))
    (folder / "classes.json").write_text('["even", "odd"]')
    assert command("index", folder, "--label_columns", "label_0,label_1:class") == 0
    dataset = shards.open_dataset(str(folder), None)
    assert [row.name for row in dataset.classes] == ["even", "odd"]
    assert dataset.columns["label"].tolist() == [0, 1, 0, 1]
    assert dataset.columns[NUMBERS].tolist() == [[0], [0.5], [1], [1.5]]


def test_index_restores_the_numbers_of_a_made_dataset(tmp_path, capsys):
    folder = write_tars(tmp_path / "tars", {"0.tar": SAMPLES})
    assert command("make", folder, tmp_path / "made", "--label_columns", COLUMNS) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}
    (tmp_path / "made" / "index.npz").unlink()
    assert command("index", tmp_path / "made") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == before
    error = refused(capsys, "index", tmp_path / "made", "--label_columns", "on")
    assert "--label_columns: `shards make` wrote " in error


def test_a_dataset_of_ours_keeps_its_numbers(tmp_path):
    folder = write_tars(tmp_path / "tars", {"0.tar": SAMPLES})
    assert command("make", folder, tmp_path / "first", "--label_columns", COLUMNS) == 0
    assert command("make", tmp_path / "first", tmp_path / "second", "--size", 16) == 0
    check_columns(tmp_path / "second")


def test_columns_that_index_does_not_find_are_refused(tmp_path, capsys):
    folder = write_tars(tmp_path / "tars", {"0.tar": SAMPLES})
    assert "has no column 'mass'" in refused(capsys, "index", folder, "--label_columns", "mass")
    write_tars(folder, {"0.tar": SAMPLES | {"1.json": b"{}"}})
    assert "0.tar/1.png, column 'energy': an empty cell" in refused(
        capsys, "index", folder, "--label_columns", "energy"
    )
    assert not (folder / "manifest.json").exists()
