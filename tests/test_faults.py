"""Corrupt shards, manifests and indexes: reported by shard and key, or counted by the budget; never silent."""

import io
import json
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distgan.data.order import Lanes
from distgan.data.remote.cache import open_storage
from distgan.data.shardset import LocalStorage, open_shardset
from distgan.data.stream import Reader, Stream
from distgan.data.tar import members
from distgan.dataset_tool import check, index
from distgan.dataset_tool.scan import Scan
from distgan.errors import CorruptDataError, UsageError
from helpers import make_dataset, metrics, noise, train


@pytest.fixture
def folder(tmp_path) -> Path:
    """40 images of 16x16 pixels in 4 shards, writable."""
    return make_dataset(tmp_path / "dataset", noise(40, 16), shards=4)


def open_dataset(folder: Path):
    return open_shardset(LocalStorage(folder), str(folder))


def read_epoch(folder: Path, skip_bad: int = 0, batch: int = 8) -> tuple[list[np.ndarray], list[str]]:
    """The images of every minibatch of an epoch, read as in training, and the messages about corrupt images."""
    dataset = open_dataset(folder)
    order, reader = Lanes(dataset.counts, 0, batch), Reader(dataset, skip_bad=skip_bad)
    batches = Stream(order, reader, lambda position: {}, batch=batch, position=0, threads=2)
    epoch = [next(batches) for _ in range(order.epoch_images // batch)]
    return [minibatch.images for minibatch in epoch], [line for minibatch in epoch for line in minibatch.corrupt]


def member(folder: Path, shard: int = 1, index: int = 5, extension: str = "npy"):
    path = folder / f"shard-{shard:06d}.tar"
    return path, [m for m in members(path) if m.name.endswith(extension)][index]


def write_at(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def truncate_at_member(folder: Path) -> str:
    path, found = member(folder)
    os.truncate(path, found.offset - 512)
    return path.name


def truncate_in_header(folder: Path) -> str:
    path, found = member(folder)
    os.truncate(path, found.offset - 200)
    return path.name


def truncate_in_data(folder: Path) -> str:
    path, found = member(folder)
    os.truncate(path, found.offset + 300)
    return path.name


def truncate_before_label(folder: Path) -> str:
    path, found = member(folder, extension="cls")
    os.truncate(path, found.offset - 512)
    return path.name


def append_a_block(folder: Path) -> str:
    path, _ = member(folder)
    with open(path, "ab") as file:
        file.write(bytes(512))
    return path.name


def delete_shard(folder: Path) -> str:
    (folder / "shard-000001.tar").unlink()
    return "shard-000001.tar"


def replace_by_web_page(folder: Path) -> str:
    (folder / "shard-000001.tar").write_text("<!DOCTYPE html><html>404 Not Found</html>")
    return "shard-000001.tar"


def flip_bit_of_data(folder: Path) -> str:
    path, found = member(folder)
    data = path.read_bytes()
    write_at(path, found.offset + 500, bytes([data[found.offset + 500] ^ 4]))
    return f"{path.name}.*key {found.name[:9]}"


def fill_with_zeros(folder: Path) -> str:
    path = folder / "shard-000001.tar"
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)
    return path.name


FAULTS = [
    truncate_at_member,
    truncate_in_header,
    truncate_in_data,
    truncate_before_label,
    append_a_block,
    delete_shard,
    replace_by_web_page,
    flip_bit_of_data,
    fill_with_zeros,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_reading_raises_and_names_the_fault(folder, fault):
    name = fault(folder)
    with pytest.raises(CorruptDataError, match=name):
        read_epoch(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_the_fault(folder, fault):
    name = fault(folder)
    faults = list(check.verify(open_dataset(folder)))
    assert faults and any(re.search(name, line) for line in faults)


def test_flipped_bit_of_a_header(folder):
    """Reading does not use the header, so the images are right; verify reports it, and indexing refuses the shard."""
    path, found = member(folder)
    expected = [batch.tobytes() for batch in read_epoch(folder)[0]]
    data = path.read_bytes()
    write_at(path, found.offset - 512 + 3, bytes([data[found.offset - 512 + 3] ^ 1]))
    assert [batch.tobytes() for batch in read_epoch(folder)[0]] == expected
    assert any(path.name in line and "checksum" in line for line in check.verify(open_dataset(folder)))
    with pytest.raises(CorruptDataError, match=rf"{path.name}: header at byte {found.offset - 512}: bad checksum"):
        Scan(path)


@pytest.mark.parametrize("fault", [truncate_at_member, truncate_in_header, truncate_in_data, replace_by_web_page])
def test_indexing_raises_and_names_the_fault(folder, fault):
    name = fault(folder)
    with pytest.raises(CorruptDataError, match=name):
        index.index(folder)


def test_budget_counts_and_replaces_corrupt_images(folder):
    flip_bit_of_data(folder)
    batches, bad = read_epoch(folder, skip_bad=1)
    assert len(bad) == 1 and len(batches) == 5
    seen = np.concatenate(batches).reshape(40, -1)
    assert len(np.unique(seen, axis=0)) == 39  # one image is read twice in place of the corrupt one


def epoch_args(folder: Path) -> list[object]:
    return ["--data.shards", folder, "--batch", 8, "--epochs", 1, "--model.options.width", 2]


def test_corrupt_shard_exhausts_the_budget(folder, tmp_path, capsys):
    replace_by_web_page(folder)
    assert len(read_epoch(folder, skip_bad=200)[1]) >= 10
    assert train(*epoch_args(folder), "--run_dir", tmp_path / "run", "--data.skip_bad", 9) == 1
    assert "shard-000001.tar: 41 bytes, 30720 in the manifest" in capsys.readouterr().err


def test_missing_shard_is_reported_before_the_run_starts(folder, tmp_path, capsys):
    delete_shard(folder)
    assert train("--data.shards", folder, "--run_dir", tmp_path / "run") == 2
    assert "lacks shard-000001.tar; restore the missing" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_training_reports_skipped_images(folder, tmp_path, capsys):
    flip_bit_of_data(folder)
    args = [*epoch_args(folder), "--report.every_images", 8]
    assert train(*args, "--run_dir", tmp_path / "strict") == 1
    assert "shard-000001.tar, byte" in capsys.readouterr().err
    assert train(*args, "--run_dir", tmp_path / "lenient", "--data.skip_bad", 3) == 0
    assert metrics(tmp_path / "lenient")[-1]["skipped"] == 1
    assert "skipped a corrupt image: " in capsys.readouterr().err


def test_budget_is_kept_across_resumes(folder, tmp_path):
    """Checkpoint and metrics count skipped images as if the run had not been interrupted."""
    flip_bit_of_data(folder)
    args = ["--data.shards", folder, "--batch", 8, "--model.options.width", 2, "--data.skip_bad", 9]
    for name, lengths in {"uninterrupted": [160], "resumed": [40, 120, 160]}.items():
        for images in lengths:
            assert train(*args, "--run_dir", tmp_path / name, "--images", images) == 0
    skipped = {
        name: {row["images"]: row["skipped"] for row in metrics(tmp_path / name)}
        for name in ("uninterrupted", "resumed")
    }
    assert skipped["uninterrupted"] == skipped["resumed"] and skipped["resumed"][160] == 4


def test_shards_of_the_same_name_in_two_folders(tmp_path):
    for part in ("one", "three"):
        folder = make_dataset(tmp_path / part, noise(10, seed=len(part)), shards=1)
        (tmp_path / "all" / part).mkdir(parents=True)
        shutil.copy(folder / "shard-000000.tar", tmp_path / "all" / part / "000.tar")
    index.index(tmp_path / "all")
    images = Reader(open_dataset(tmp_path / "all")).read(np.arange(20)).images
    assert len(np.unique(images.reshape(20, -1), axis=0)) == 20


def tar(path: Path, files: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def png(size: int = 8, value: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (size, size), (value,) * 3).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.png", png()), ("b.png", png()), ("a.png", png())], "duplicate key a"),
        ([("a.png", png()), ("a.png", png())], "key a has two members .png"),
        ([("a.png", png()), ("a.jpg", png())], "key a needs one image .* it has .png, .jpg"),
        ([("a.txt", b"hello")], "key a needs one image"),
        ([("a.png", png()), ("b.png", png(16))], "key b is 16x16x3 png, the images before it 8x8x3 png"),
        ([("a.png", b"<html>")], "key a: cannot identify image"),
        ([("a.png", png()), ("a.cls", b"cat")], "key a: its .cls is b'cat', not a number"),
        ([("a.png", png()), ("a.cls", b"1"), ("b.png", png())], "some samples have a label and some have none"),
    ],
)
def test_invalid_datasets_are_not_indexed(tmp_path, files, message):
    tar(tmp_path / "dataset" / "0.tar", files)
    with pytest.raises(CorruptDataError, match=message):
        index.index(tmp_path / "dataset")


def test_pickles_are_not_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    evil = pickle.dumps(Bomb())
    pickle.loads(evil)
    assert (tmp_path / "executed").exists()  # the pickle does run if it is loaded
    (tmp_path / "executed").unlink()
    files = [
        (f"{i}.{e}", d) for i in range(4) for e, d in (("png", png(8, i)), ("pkl", evil), ("pth", evil), ("pyd", evil))
    ]
    tar(tmp_path / "dataset" / "0.tar", files)
    index.index(tmp_path / "dataset")
    assert len(Reader(open_dataset(tmp_path / "dataset")).read(np.arange(4)).images) == 4
    array = io.BytesIO()
    np.save(array, np.array([Bomb()], dtype=object), allow_pickle=True)
    tar(tmp_path / "objects" / "0.tar", [("0.npy", array.getvalue())])
    with pytest.raises(CorruptDataError, match="an array of .O"):
        index.index(tmp_path / "objects")
    assert os.environ["WDS_SECURE"] == "1" and not (tmp_path / "executed").exists()


def test_decompression_bomb_is_not_decoded(tmp_path):
    """A small file that declares a huge image is refused by its header, before memory is allocated."""
    tar(tmp_path / "dataset" / "0.tar", [(f"{i}.png", png(8, i)) for i in range(4)])
    index.index(tmp_path / "dataset")
    bomb = tar(tmp_path / "bomb" / "0.tar", [("0.png", png(8)), ("1.png", png(9_000))])
    with pytest.raises(CorruptDataError, match="key 1"):
        index.index(bomb.parent)
    reader = Reader(open_dataset(tmp_path / "dataset"))
    with pytest.raises(ValueError, match="9000x9000 pixels"):
        reader.decode(png(9_000), np.empty(reader.shards.spec.stored_shape, np.uint8))


def edit_manifest(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_index_that_does_not_match_is_reported_before_the_run_starts(folder, tmp_path, capsys):
    column = open_dataset(folder).columns["label"]
    data = (folder / "index.npz").read_bytes()
    at = data.index(np.asarray(column).tobytes())
    write_at(folder / "index.npz", at, bytes([data[at] ^ 1]))
    assert train("--data.shards", folder, "--data.labels", "true", "--run_dir", tmp_path / "run") == 2
    assert "does not match the manifest" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [b"-00000001000", b"0x000000010\0", b"1_0\0"])
def test_tar_size_that_is_not_octal_is_refused(folder, size):
    path, found = member(folder, shard=0, index=0)
    header = bytearray(path.read_bytes()[found.offset - 512 : found.offset])
    header[156:157], header[124 : 124 + len(size)], header[148:156] = b"g", size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    write_at(path, found.offset - 512, bytes(header))
    with pytest.raises(CorruptDataError, match=rf"header at byte {found.offset - 512}: "):
        list(members(path))


@pytest.mark.parametrize("record", [b"0 path=x\n", b"zz path=x\n", b"-1 path=x\n", b"9999"])
def test_invalid_pax_record_is_refused(folder, record):
    path, found = member(folder, shard=0, index=0)
    header = bytearray(path.read_bytes()[found.offset - 512 : found.offset])
    header[156:157], header[124:136], header[148:156] = b"x", b"%011o\0" % len(record), b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    write_at(path, found.offset - 512, bytes(header) + record.ljust(512, b"\0"))
    with pytest.raises(CorruptDataError, match=rf"header at byte {found.offset - 512}: "):
        list(members(path))


@pytest.mark.parametrize("threads", [0, 2, 8])
def test_threads_keep_the_order_of_minibatches(tmp_path, threads):
    dataset = open_dataset(make_dataset(tmp_path / "dataset", noise(40), shards=4, format="png"))
    order, reader = Lanes(dataset.counts, 0, 8), Reader(dataset)
    batches = Stream(order, reader, lambda position: {}, batch=8, position=0, threads=threads)
    for at in range(0, 120, 8):
        expected = reader.read(order.ids(at, 8))
        assert np.array_equal(next(batches).images, expected.images)


@pytest.mark.parametrize(
    ("corrupt", "message"),
    [
        (lambda folder: (folder / "index.npz").unlink(), "index.npz is missing or corrupt"),
        (lambda folder: os.truncate(folder / "index.npz", 700), "index.npz is missing or corrupt"),
        (lambda folder: os.truncate(folder / "manifest.json", 100), "manifest.json is corrupt"),
        (
            lambda folder: (folder / "manifest.json").unlink(),
            "has no manifest.json; create it with `distgan shards index`",
        ),
        (lambda folder: (folder / "manifest.json").write_text(json.dumps({"format": "other"})), "has format 'other'"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "manifest.json is corrupt"),
        (
            lambda folder: edit_manifest(folder, lambda manifest: manifest["fields"]["image"].pop("channels")),
            "manifest.json is corrupt .Object missing required field `channels`",
        ),
        (
            lambda folder: edit_manifest(folder, lambda manifest: manifest["shards"][0].update(name="../x.tar")),
            "manifest.json is corrupt .*shards.0..name",
        ),
        (
            lambda folder: edit_manifest(folder, lambda manifest: manifest["shards"][0].update(sha256="/etc/x")),
            "manifest.json is corrupt .*shards.0..sha256",
        ),
    ],
)
def test_corrupt_manifest_or_index_is_bad_input(folder, corrupt, message):
    corrupt(folder)
    with pytest.raises(UsageError, match=message):
        open_dataset(folder)


def test_other_schemes_are_refused(tmp_path):
    for address in ("pipe://cat x", "file:///x", "ftp://x/y"):
        with pytest.raises(
            UsageError, match="unknown scheme in .*; use a folder, http://, https://, s3://, gs:// or az://"
        ):
            open_storage(address, str(tmp_path))


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_decoders_reproduce_the_written_images(tmp_path, decoder):
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(1, 16, 16, 3).astype(np.uint8)
    folder = make_dataset(tmp_path / "dataset", np.concatenate([smooth, smooth[:, ::-1]]), shards=1, format="jpg")
    images = Reader(open_dataset(folder), decoder=decoder).read(np.arange(2)).images.astype(int)
    assert min(np.abs(image - smooth[0]).max() for image in images) < 12
