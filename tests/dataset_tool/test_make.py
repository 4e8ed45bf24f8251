"""Writing sets: every source, the policies for odd images, the same bytes for the same input, any WebDataset reader."""

import gzip
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from distgan import shards
from distgan.data.remote import open_storage
from distgan.data.shardset import open_shardset
from distgan.data.stream import Reader
from distgan.dataset_tool import make
from shared import ROOT, make_dataset, noise, options


def command(*words: object) -> int:
    return shards.main([str(word) for word in words])


def opened(folder: Path):
    return open_shardset(open_storage(str(folder)), str(folder))


def images_of(folder: Path) -> np.ndarray:
    found = opened(folder)
    return Reader(found).read(np.arange(len(found.columns["label"]))).images


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_goes_in_comes_out(tmp_path):
    images = noise(50)
    found = opened(make_dataset(tmp_path / "set", images, shards=4))
    read = Reader(found).read(np.arange(50))
    originals = {image.tobytes(): i % 3 for i, image in enumerate(images)}
    assert len(found.counts) == 4 and max(found.counts) - min(found.counts) <= 1
    assert {i.tobytes(): int(label) for i, label in zip(read.images, read.labels, strict=True)} == originals
    assert found.classes == [{"name": n, "samples": 17 - (n == "c")} for n in "abc"]
    np.testing.assert_allclose(found.manifest["mean"], images.mean((0, 1, 2)), atol=1e-3)
    np.testing.assert_allclose(found.manifest["std"], images.std((0, 1, 2)), atol=1e-3)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves them to the collector
@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("format", ["npy", "png"])
def test_webdatasets_own_reader_opens_it(tmp_path, format):
    images = noise(20)
    folder = make_dataset(tmp_path / "set", images, shards=2, format=format)
    tars = [str(path) for path in sorted(folder.glob("*.tar"))]
    decode = "rgb8" if format == "png" else None
    pipeline: Any = wds.compat.WebDataset(tars, shardshuffle=False, empty_check=False)
    samples = list((pipeline.decode(decode) if decode else pipeline.decode()).to_tuple("__key__", format, "cls"))
    assert {key: (image.tobytes(), label) for key, image, label in samples} == {
        f"{i:09d}": (image.tobytes(), i % 3) for i, image in enumerate(images)
    }


def test_the_same_input_gives_the_same_bytes(tmp_path):
    one = files(make_dataset(tmp_path / "a", noise(50), shards=4, jobs=1))
    two = files(make_dataset(tmp_path / "b", noise(50), shards=4, jobs=2))
    assert one == two and len(one) == 7
    assert files(make_dataset(tmp_path / "c", noise(50), shards=4, seed=1)) != one


def test_class_folders(folder_of_images, tmp_path, capsys):
    assert command("make", folder_of_images, tmp_path / "set") == 0
    assert "10 images 8x8x3 npy, 2 classes" in capsys.readouterr().out
    assert [row["name"] for row in opened(tmp_path / "set").classes] == ["a", "b"]
    assert command("make", folder_of_images, tmp_path / "plain", "--labels", "none") == 0
    assert opened(tmp_path / "plain").classes == []


def test_a_zip_is_the_folder(folder_of_images, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder_of_images.rglob("*.png"):
            archive.write(path, path.relative_to(folder_of_images))
    assert (
        command("make", folder_of_images, tmp_path / "a")
        == command("make", tmp_path / "images.zip", tmp_path / "b")
        == 0
    )
    a, b = files(tmp_path / "a"), files(tmp_path / "b")
    for name in ("manifest.json", ".source"):  # what they were made from
        assert a.pop(name) != b.pop(name)
    assert a == b


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
def test_labels_from_a_file(folder_of_images, tmp_path, kind):
    names = sorted(p.relative_to(folder_of_images).as_posix() for p in folder_of_images.rglob("*.png"))
    rows = {name: i % 5 for i, name in enumerate(names)}
    text = {
        "csv": "file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows.items()),
        "jsonl": "".join(json.dumps({"file_name": name, "label": label}) + "\n" for name, label in rows.items()),
        "json": json.dumps({"labels": [[name, label] for name, label in rows.items()]}),
    }[kind]
    (tmp_path / f"labels.{kind}").write_text(text)
    assert command("make", folder_of_images, tmp_path / "set", "--labels", tmp_path / f"labels.{kind}") == 0
    assert [row["samples"] for row in opened(tmp_path / "set").classes] == [2] * 5


def test_dataset_json_inside_the_folder_wins(folder_of_images, tmp_path):
    names = sorted(p.relative_to(folder_of_images).as_posix() for p in folder_of_images.rglob("*.png"))
    (folder_of_images / "dataset.json").write_text(json.dumps({"labels": [[name, 3] for name in names]}))
    assert command("make", folder_of_images, tmp_path / "set") == 0
    assert [row["samples"] for row in opened(tmp_path / "set").classes] == [0, 0, 0, 10]


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
    assert command("make", name, tmp_path / "set", "--source", tmp_path / "files") == 0
    read = images_of(tmp_path / "set")
    assert {i.tobytes() for i in read[:, 2:-2, 2:-2, 0]} == {i.tobytes() for i in images}
    assert not read[:, :2].any() and not read[:, :, -2:].any()


def test_stacked_mnist(tmp_path):
    images = np.repeat(np.arange(10, dtype=np.uint8), 28 * 28).reshape(10, 28, 28)
    idx_files(tmp_path / "files", images, np.arange(10, dtype=np.uint8))
    words = ["make", "stacked-mnist", tmp_path / "set", "--source", tmp_path / "files", "--samples", 200]
    assert command(*words) == 0
    found = opened(tmp_path / "set")
    read = Reader(found).read(np.arange(200))
    assert (read.images[:, 16, 16] @ [100, 10, 1] == read.labels).all()
    assert len(found.classes) == 1000 and len(set(read.labels.tolist())) > 150


def test_digits_are_all_there(tmp_path):
    assert command("make", "digits", tmp_path / "set", "--format", "png") == 0
    found = opened(tmp_path / "set")
    assert (found.size, found.channels, len(found.columns["label"]), len(found.classes)) == (32, 1, 1797, 10)


def saved(tmp_path: Path, image: Image.Image, suffix: str = "png", **save) -> np.ndarray:
    (tmp_path / "one").mkdir()
    image.save(tmp_path / "one" / f"image.{suffix}", **save)
    assert command("make", tmp_path / "one", tmp_path / "set", "--size", 8) == 0
    return images_of(tmp_path / "set")[0]


def test_policy_transparent_is_laid_on_white(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    pixels = saved(tmp_path, image)
    assert pixels[0, 0].tolist() == [0, 0, 255] and pixels[0, 7].tolist() == [255, 255, 255]
    assert opened(tmp_path / "set").manifest["converted"] == {"transparent": 1}


def test_policy_16_bit_is_divided_by_257(tmp_path):
    assert saved(tmp_path, Image.fromarray(np.full((8, 8), 257 * 100, np.uint16)))[0, 0].tolist() == [100] * 3
    assert opened(tmp_path / "set").manifest["converted"]["16-bit"] == 1


def test_policy_cmyk(tmp_path):
    assert saved(tmp_path, Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "jpg")[0, 0].max() < 10
    assert opened(tmp_path / "set").manifest["converted"] == {"from CMYK": 1}


def test_policy_exif_turns_the_image(tmp_path):
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees: the bright top becomes the right side
    pixels = saved(tmp_path, image, "jpg", exif=exif)
    assert pixels[4, 7].min() > 200 and pixels[4, 0].max() < 50
    assert opened(tmp_path / "set").manifest["converted"]["turned as EXIF says"] == 1


def test_policy_crop_and_antialiased_resize(tmp_path):
    stripes = np.zeros((64, 128), np.uint8)
    stripes[:, ::2] = 255
    pixels = saved(tmp_path, Image.fromarray(stripes))
    assert 115 < pixels.mean() < 140 and pixels.std() < 20  # aliasing would give 0 and 255
    found = opened(tmp_path / "set").manifest
    assert found["options"]["resize"] == "lanczos" and found["options"]["crop"] == "center"
    assert command("make", tmp_path / "one", tmp_path / "other", "--size", 8, "--crop", "none") == 2


def test_corrupt_images_are_refused_with_a_list(folder_of_images, tmp_path, capsys):
    (folder_of_images / "a" / "cut.png").write_bytes((folder_of_images / "a" / "0.png").read_bytes()[:60])
    (folder_of_images / "b" / "page.png").write_bytes(b"<html>not found</html>")
    assert command("make", folder_of_images, tmp_path / "set") == 2
    error = capsys.readouterr().err
    assert "2 of 12 images cannot be used" in error and "a/cut.png" in error and "b/page.png" in error
    assert not (tmp_path / "set").exists()
    assert command("make", folder_of_images, tmp_path / "set", "--skip_bad", "true") == 0
    manifest = opened(tmp_path / "set").manifest
    assert manifest["samples"] == 10 and len(manifest["left_out"]) == 2


def test_a_decompression_bomb_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "one").mkdir()
    Image.new("L", (4000, 4000)).save(tmp_path / "one" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000_000)
    assert command("make", tmp_path / "one", tmp_path / "set", "--size", 8) == 2
    assert "decompression bomb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["make", "nothing", "DEST"], "nothing is no folder, no .zip and no data set; the data sets are digits"),
        (["make", "EMPTY", "DEST"], "there is no image in the source"),
        (["make", "SRC", "DEST", "--format", "gif"], "format"),
        (["make", "SRC", "DEST", "--size", "0"], "--size: 0 is not between"),
        (["make", "SRC", "DEST", "--labels", "nowhere.csv"], "there is no file nowhere.csv"),
        (["make", "mnist", "DEST", "--source", "EMPTY"], "no train-images-idx3-ubyte"),
        (["make", "cifar10", "DEST", "--source", "EMPTY"], "cifar10|CIFAR10"),
        (["make", "SRC", "SRC"], "is not empty"),
        (["index", "EMPTY"], "there is no .tar in it"),
        (["verify", "EMPTY"], "has no manifest.json"),
        (["verify", "nowhere"], "there is nothing at nowhere"),
        (["order", "SET", "--batch", "16", "--world", "3"], "3 processes do not divide the 16 lanes"),
        (["order", "SET", "--batch", "16", "--world", "2", "--rank", "2"], "2 is not one of 2 processes"),
        (["order", "SET", "--batch", "0"], "--batch: 0 is too small"),
        (["order", "SET", "--start", "-2"], "--start: -2 is too small"),
        (["make", "SRC", "PLAIN/x"], "cannot be written: Not a directory"),
        (["make", "SRC", "DEST", "--labels", "PLAIN"], "not a list of file names and labels"),
        (["verify", "http://localhost:abc/x"], "names no server"),
        (["verify", "s3://"], "names no server"),
        (["order", "SET", "--batsh", "16"], "batsh: no such key; did you mean batch"),
    ],
)
def test_bad_input_is_one_line(words, message, folder_of_images, tmp_path, tiny, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "plain").write_bytes(b"\xff\xfe not text")
    places = {"DEST": tmp_path / "set", "SRC": folder_of_images, "EMPTY": tmp_path / "empty", "SET": tiny}
    places |= {"PLAIN": tmp_path / "plain", "PLAIN/x": tmp_path / "plain" / "x"}
    assert command(*(places.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.startswith("distgan: ") and error.count("\n") == 1
    assert not (tmp_path / "set").exists()


def test_made_again_it_says_so_and_another_is_refused(folder_of_images, tmp_path, capsys):
    assert command("make", folder_of_images, tmp_path / "set") == 0
    before = files(tmp_path / "set")
    assert command("make", folder_of_images, tmp_path / "set") == 0 and files(tmp_path / "set") == before
    assert command("make", folder_of_images, tmp_path / "set", "--format", "png") == 2
    assert "holds another set" in capsys.readouterr().err and files(tmp_path / "set") == before


def test_made_again_it_looks_at_what_is_there(folder_of_images, tmp_path, capsys):
    assert command("make", folder_of_images, tmp_path / "set") == 0
    image = next(folder_of_images.rglob("*.png"))
    before, when = image.read_bytes(), image.stat()
    Image.fromarray(noise(1, seed=5)[0]).save(image)
    assert command("make", folder_of_images, tmp_path / "set") == 2
    assert "was made before the images changed" in capsys.readouterr().err
    image.write_bytes(before)
    os.utime(image, ns=(when.st_atime_ns, when.st_mtime_ns))
    assert command("make", folder_of_images, tmp_path / "set") == 0
    (tmp_path / "set" / "shard-000000.tar").unlink()
    assert command("make", folder_of_images, tmp_path / "set") == 2
    assert "shard-000000.tar is gone or cut off" in capsys.readouterr().err


def test_links_are_followed_and_one_that_leads_nowhere_is_named(folder_of_images, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(noise(1, seed=5)[0]).save(tmp_path / "elsewhere" / "5.png")
    (folder_of_images / "c").symlink_to(tmp_path / "elsewhere")
    (folder_of_images / "c" / "loop").symlink_to(folder_of_images)
    assert command("make", folder_of_images, tmp_path / "set") == 0
    found = opened(tmp_path / "set")
    assert [row["name"] for row in found.classes] == ["a", "b", "c"] and found.counts.sum() == 11
    (folder_of_images / "a" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert command("make", folder_of_images, tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "1 of 12 images cannot be used" in error and "a/gone.png: " in error and not (tmp_path / "other").exists()


def test_without_a_size_images_must_be_alike(folder_of_images, tmp_path, capsys):
    Image.fromarray(noise(1, size=16)[0]).save(folder_of_images / "b" / "z.png")
    assert command("make", folder_of_images, tmp_path / "set") == 2
    assert "b/z.png: 16x16, the first image 8x8; --size N resizes all" in capsys.readouterr().err
    assert command("make", folder_of_images, tmp_path / "set", "--size", 8) == 0


def test_a_failed_make_removes_what_is_its_own(folder_of_images, tmp_path):
    bad = folder_of_images / "a" / "bad.png"
    bad.write_text("no image")
    words = [
        sys.executable,
        "-m",
        "distgan",
        "shards",
        "make",
        str(folder_of_images),
        str(tmp_path / "set"),
        "--size=8",
    ]
    hold = (
        "import os,signal,distgan.dataset_tool.make as m; m.finish = lambda *a: os.kill(os.getpid(), signal.SIGKILL); "
    )
    hold += "from distgan.shards import main; import sys; main(sys.argv[1:])"
    subprocess.run([sys.executable, "-c", hold, *words[4:]], cwd=ROOT, capture_output=True)  # all but the end
    (tmp_path / "set" / "notes.txt").write_text("mine")
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 2
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["notes.txt"]


def test_no_image_starts_another_program(folder_of_images, tmp_path, monkeypatch, capsys):
    """Pillow hands what looks like EPS to Ghostscript, whatever the file is called."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\necho started >>{tmp_path}/started\nexit 1\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (folder_of_images / "a" / "x.png").write_bytes(eps)
    assert command("make", folder_of_images, tmp_path / "set", "--size", 8) == 2
    (tmp_path / "foreign").mkdir()
    with open(tmp_path / "foreign" / "0.tar", "wb") as file, wds.writer.TarWriter(file, encoder=False) as tar:
        tar.write({"__key__": "0", "png": eps})
    assert command("index", tmp_path / "foreign") == 1
    assert not (tmp_path / "started").exists() and capsys.readouterr().err.count("cannot identify image") == 2


def test_the_index_of_a_made_set_comes_back_and_nothing_else_changes(folder_of_images, tmp_path, capsys):
    folder = tmp_path / "set"
    assert command("make", folder_of_images, folder) == 0
    before = files(folder)
    (folder / "index.npz").unlink()
    assert command("index", folder) == 0 and files(folder) == before
    shutil.copy(folder / "shard-000000.tar", folder / "shard-000001.tar")
    assert command("index", folder) == 2 and "holds other shards than" in capsys.readouterr().err


def test_a_killed_make_is_finished_by_the_same_command(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i, image in enumerate(noise(400, 64)):
        Image.fromarray(image).save(images / f"{i}.png")
    words = [sys.executable, "-m", "distgan", "shards", "make", str(images), str(tmp_path / "set")]
    words += ["--format", "png", "--shard_mb", "0.2", "--jobs", "2"]
    killed = 0
    for _ in range(3):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        have = len(list((tmp_path / "set").glob("*.tar"))) if (tmp_path / "set").exists() else 0
        while process.poll() is None and len(list((tmp_path / "set").glob("*.tar"))) < have + 3:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
    assert killed >= 2 and not (tmp_path / "set" / "manifest.json").exists()
    subprocess.run(words, check=True, capture_output=True)
    assert command("verify", tmp_path / "set") == 0
    source = shards.open_source(str(images), split="train", files=None, labels="auto", samples=1, seed=0)
    whole = tmp_path / "whole"
    make.make(source, whole, options(format="png", shard_mb=0.2), 1)
    assert files(tmp_path / "set") == files(whole)


def test_foreign_shards_are_indexed(tmp_path):
    folder = tmp_path / "foreign"
    (folder / "more").mkdir(parents=True)
    images = noise(20)
    for part, path in enumerate((folder / "0.tar", folder / "more" / "0.tar")):
        with open(path, "wb") as file, wds.writer.TarWriter(file) as tar:
            for i in range(10 * part, 10 * part + 10):
                long = "long/" * 30 if part else ""
                tar.write({"__key__": f"{long}{i:03d}", "png": images[i], "json": {"label": i % 4}})
    assert command("index", folder) == 0 and command("verify", folder) == 0
    found = opened(folder)
    read = Reader(found).read(np.arange(20))
    assert np.array_equal(read.images, images) and read.labels.tolist() == [i % 4 for i in range(20)]


def test_order_prints_keys(tiny, capsys):
    words = ["order", tiny, "--batch", 16, "--seed", 3, "--count", 5]
    assert command(*words) == 0
    whole = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert sorted(sum(whole, [])) == [f"{i:09d}" for i in range(80)]
    parts = []
    for rank in range(2):
        assert command(*words, "--world", 2, "--rank", rank) == 0
        parts.append([line.split() for line in capsys.readouterr().out.splitlines()])
    assert [sorted(a + b) for a, b in zip(*parts, strict=True)] == [sorted(line) for line in whole]


def test_stats(tiny, tmp_path, capsys):
    assert command("stats", tiny, "--out", tmp_path / "grid.png") == 0
    out = capsys.readouterr().out
    assert "class a: 27" in out and "duplicate_images: 0" in out
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (82, 82)
    make_dataset(tmp_path / "twice", np.concatenate([noise(10), noise(10)]))
    assert command("stats", tmp_path / "twice") == 0 and "duplicate_images: 10" in capsys.readouterr().out
