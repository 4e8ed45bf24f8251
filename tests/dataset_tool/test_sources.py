"""sources.txt: the file that each sample was made from; in datasets without it, everything else works as before."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distgan.commands import shards
from distgan.data.stream import Reader
from distgan.errors import CorruptDataError, UsageError
from helpers import ROOT, make_dataset, noise


def command(*args: object) -> int:
    return shards.main([str(arg) for arg in args])


def open_dataset(folder: Path):
    return shards.open_dataset(str(folder), None)


def edit_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | changes))


@pytest.fixture
def dataset(folder_of_images, tmp_path) -> Path:
    """Ten images in four shards, one image left out."""
    (folder_of_images / "a" / "bad.png").write_text("not an image")
    args = ["--skip_bad", "--shard_mb", 0.007]
    assert command("make", folder_of_images, tmp_path / "dataset", *args) == 0
    assert len(open_dataset(tmp_path / "dataset").counts) == 4
    return tmp_path / "dataset"


def test_line_is_the_file_of_the_sample(dataset, folder_of_images):
    opened = open_dataset(dataset)
    images = Reader(opened).read(np.arange(10)).images
    lines = (dataset / "sources.txt").read_text().splitlines()
    assert lines == opened.sources() and len(set(lines)) == 10
    for image, line in zip(images, lines, strict=True):
        with Image.open(folder_of_images / line) as original:
            assert np.array_equal(image, np.asarray(original))
    row = opened.manifest.sources
    assert row is not None and row.bytes == (dataset / "sources.txt").stat().st_size


def test_zip_has_the_sources_of_its_folder(dataset, folder_of_images, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder_of_images.rglob("*.png"):
            archive.write(path, path.relative_to(folder_of_images))
    assert command("make", tmp_path / "images.zip", tmp_path / "zip", "--skip_bad", "--shard_mb", 0.007) == 0
    assert (tmp_path / "zip" / "sources.txt").read_bytes() == (dataset / "sources.txt").read_bytes()


def test_zip_is_opened_once_in_each_process(folder_of_images, tmp_path, monkeypatch):
    """Opening it reads the list of all members: half a second for 70,000."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder_of_images.rglob("*.png"):
            archive.write(path, path.relative_to(folder_of_images))

    class Counted(zipfile.ZipFile):
        def __init__(self, *args: Any, **options: Any) -> None:
            if args[0] == tmp_path / "images.zip":
                with open(tmp_path / "opened", "a") as log:
                    log.write(f"{os.getpid()}\n")
            super().__init__(*args, **options)

    monkeypatch.setattr(zipfile, "ZipFile", Counted)
    assert command("make", tmp_path / "images.zip", tmp_path / "zip", "--shard_mb", 0.002, "--jobs", 2) == 0
    opened = (tmp_path / "opened").read_text().split()
    assert len(set(opened)) == len(opened) > 1


def test_sources_can_be_left_out(folder_of_images, tmp_path, capsys):
    assert command("make", folder_of_images, tmp_path / "without", "--record_paths", "false") == 0
    assert command("make", folder_of_images, tmp_path / "with", "--record_paths") == 0
    assert not (tmp_path / "without" / "sources.txt").exists() and (tmp_path / "with" / "sources.txt").exists()
    without = open_dataset(tmp_path / "without")
    assert without.manifest.sources is None and without.sources() is None
    assert "sources" not in json.loads((tmp_path / "without" / "manifest.json").read_text())
    for args in (["verify"], ["stats"], ["order", "--batch", 5], ["index"]):
        assert command(args[0], tmp_path / "without", *args[1:]) == 0
    # Datasets made before sources.txt existed look the same: the same command accepts them and adds nothing.
    assert command("make", folder_of_images, tmp_path / "without") == 0
    assert not (tmp_path / "without" / "sources.txt").exists()


def test_built_in_datasets_have_no_sources(tmp_path):
    assert command("make", "digits", tmp_path / "digits") == 0
    assert not (tmp_path / "digits" / "sources.txt").exists()


def test_every_name_is_one_line(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    names = ["two\nlines", "carriage\rreturn", "back\\nslash", "ünïcode", "bytes-\udcff"]
    for name, image in zip(names, noise(5), strict=True):
        Image.fromarray(image).save(tmp_path / "images" / f"{name}.png")
    (tmp_path / "images" / "bad\n\udcff.png").write_text("not an image")
    assert command("make", tmp_path / "images", tmp_path / "dataset", "--skip_bad") == 0
    escaped = [r"two\nlines", r"carriage\rreturn", r"back\\nslash", "ünïcode", r"bytes-\udcff"]
    lines = (tmp_path / "dataset" / "sources.txt").read_bytes().decode().splitlines()
    assert sorted(lines) == sorted(f"{name}.png" for name in escaped)
    assert r"left out: 1 (bad\n\udcff.png: cannot identify image file)" in capsys.readouterr().out


def test_every_class_has_a_name_in_one_line_of_utf_8(tmp_path):
    names = ["two\nlines", "back\\nslash", "ünïcode", "bytes-\udcff"]
    for name, image in zip(names, noise(4), strict=True):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / "images" / name / "0.png")
    assert command("make", tmp_path / "images", tmp_path / "dataset") == 0
    escaped = [r"two\nlines", r"back\\nslash", "ünïcode", r"bytes-\udcff"]
    assert {row.name for row in open_dataset(tmp_path / "dataset").classes} == set(escaped)


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda path: path.unlink(), "sources.txt: No such file or directory"),
        (lambda path: os.truncate(path, 20), "sources.txt: the sha256 does not match the manifest"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"a/", b"b/")), "sources.txt: the sha256 does not"),
    ],
)
def test_verify_checks_the_sources(dataset, capsys, corrupt, message):
    assert command("verify", dataset) == 0
    corrupt(dataset / "sources.txt")
    assert command("verify", dataset) == 1
    error = capsys.readouterr().err
    assert message in error and "1 errors" in error
    assert command("order", dataset, "--batch", 5) == 0  # what does not need the file works without it


def test_wrong_number_of_sources_is_corrupt(dataset):
    lines = (dataset / "sources.txt").read_bytes().replace(b"a/", b"a\n/", 1)
    (dataset / "sources.txt").write_bytes(lines)
    edit_manifest(dataset, sources={"bytes": len(lines), "sha256": hashlib.sha256(lines).hexdigest()})
    with pytest.raises(CorruptDataError, match="sources.txt: 11 lines, 10 samples in the manifest"):
        open_dataset(dataset).sources()


@pytest.mark.parametrize(
    "row", [{"bytes": 3}, {"bytes": 3, "sha256": "../../x"}, {"bytes": "3", "sha256": "0" * 64}, []]
)
def test_invalid_row_of_the_manifest_is_bad_input(dataset, row):
    edit_manifest(dataset, sources=row)
    with pytest.raises(UsageError, match="manifest.json is corrupt"):
        open_dataset(dataset)


def test_kill_between_sources_and_manifest(dataset, folder_of_images, tmp_path):
    args = [str(folder_of_images), str(tmp_path / "killed"), "--skip_bad", "--shard_mb", "0.007"]
    killed_before_the_manifest = """
import os, signal, sys
import distgan.dataset_tool.parts, distgan.commands.shards
distgan.dataset_tool.parts.write_manifest = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
distgan.commands.shards.main(["make", *sys.argv[1:]])
"""
    subprocess.run([sys.executable, "-c", killed_before_the_manifest, *args], cwd=ROOT, capture_output=True)
    assert (tmp_path / "killed" / "sources.txt").exists() and not (tmp_path / "killed" / "manifest.json").exists()
    assert command("make", *args) == 0
    for path in dataset.iterdir():
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes()


def test_make_detects_missing_sources(dataset, folder_of_images, capsys):
    (dataset / "sources.txt").unlink()
    assert command("make", folder_of_images, dataset, "--skip_bad", "--shard_mb", 0.007) == 2
    assert "sources.txt is missing or truncated" in capsys.readouterr().err


def test_index_keeps_the_sources(dataset):
    before = (dataset / "manifest.json").read_bytes()
    (dataset / "index.npz").unlink()
    assert command("index", dataset) == 0 and (dataset / "manifest.json").read_bytes() == before
    assert command("verify", dataset) == 0


def test_verify_names_the_source_of_a_corrupt_image(dataset, capsys):
    opened = open_dataset(dataset)
    id = int(opened.counts[0]) + 1
    path, offset = opened.shard_path(1), int(opened.columns["offset"][id])
    data = bytearray(path.read_bytes())
    data[offset + 50] ^= 4
    path.write_bytes(data)
    assert command("verify", dataset) == 1
    sources = opened.sources()
    assert sources and f"do not match the index; made from {sources[id]}\n" in capsys.readouterr().err


def test_stats_lists_duplicates_by_source(folder_of_images, tmp_path, capsys):
    for number in range(3):
        original = next(folder_of_images.rglob(f"{number}.png"))
        for copy in range(number + 1):
            shutil.copy(original, folder_of_images / "b" / f"copy{copy}-{number}.png")
    assert command("make", folder_of_images, tmp_path / "dataset", "--shard_mb", 0.01) == 0
    capsys.readouterr()

    def listed(*args: object) -> list[str]:
        assert command("stats", tmp_path / "dataset", *args) == 0
        out = capsys.readouterr().out
        assert "duplicate_images: 6" in out
        return [line.removeprefix("duplicates: ") for line in out.splitlines() if line.startswith("duplicates")]

    groups = [set(line.split(", ")) for line in listed()]
    expected = [
        {"a/0.png", "b/copy0-0.png"},
        {"b/1.png", "b/copy0-1.png", "b/copy1-1.png"},
        {"a/2.png", "b/copy0-2.png", "b/copy1-2.png", "b/copy2-2.png"},
    ]
    assert len(groups) == 3 and all(group in groups for group in expected)
    assert listed("--duplicates", 1) == [listed()[0], "1 of 3 groups listed; --duplicates 3 lists all"]
    assert listed("--duplicates", 0) == ["0 of 3 groups listed; --duplicates 3 lists all"]


def test_stats_lists_duplicates_by_key_without_sources(tmp_path, capsys):
    make_dataset(tmp_path / "twice", np.concatenate([noise(30), noise(30)]), shards=4)
    assert command("stats", tmp_path / "twice") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("duplicates: ")]
    assert len(lines) == 21 and lines[-1] == "duplicates: 20 of 30 groups listed; --duplicates 30 lists all"
    for line in lines[:-1]:
        first, second = sorted(line.removeprefix("duplicates: ").split(", "))
        assert int(second) == int(first) + 30
