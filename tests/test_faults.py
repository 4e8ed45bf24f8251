"""Damaged shards, each with a real cause: named by shard and key, or counted by the budget; never silent."""

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

from distgan import CorruptDataError, UsageError
from distgan.data.order import Lanes
from distgan.data.remote import open_storage
from distgan.data.shardset import LocalStorage, open_shardset
from distgan.data.stream import Reader, stream
from distgan.data.tar import members
from distgan.dataset_tool import check
from distgan.dataset_tool.scan import Scan
from shared import make_dataset, metrics, noise, train


@pytest.fixture
def folder(tmp_path) -> Path:
    """40 images of 16x16 pixels in 4 shards, writable."""
    return make_dataset(tmp_path / "set", noise(40, 16), shards=4)


def opened(folder: Path):
    return open_shardset(LocalStorage(folder), str(folder))


def an_epoch(folder: Path, skip_bad: int = 0, batch: int = 8) -> tuple[list[np.ndarray], list[str]]:
    """Every minibatch of one epoch, as the trainer reads them, and what was stepped over."""
    found = opened(folder)
    order, reader = Lanes(found.counts, 0, batch), Reader(found, skip_bad=skip_bad)
    batches = stream(order, reader, lambda position: {}, batch=batch, position=0, threads=2)
    read = [next(batches) for _ in range(order.epoch_images // batch)]
    return [minibatch.images for minibatch in read], [line for minibatch in read for line in minibatch.corrupt]


def member(folder: Path, shard: int = 1, number: int = 5, extension: str = "npy"):
    path = folder / f"shard-{shard:06d}.tar"
    return path, [m for m in members(path) if m.name.endswith(extension)][number]


def write_at(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def cut_at_a_member(folder: Path) -> str:
    path, found = member(folder)
    os.truncate(path, found.offset - 512)
    return path.name


def cut_in_a_header(folder: Path) -> str:
    path, found = member(folder)
    os.truncate(path, found.offset - 200)
    return path.name


def cut_in_data(folder: Path) -> str:
    path, found = member(folder)
    os.truncate(path, found.offset + 300)
    return path.name


def cut_before_the_label(folder: Path) -> str:
    path, found = member(folder, extension="cls")
    os.truncate(path, found.offset - 512)
    return path.name


def a_wrong_length(folder: Path) -> str:
    path, _ = member(folder)
    with open(path, "ab") as file:
        file.write(bytes(512))
    return path.name


def a_missing_shard(folder: Path) -> str:
    (folder / "shard-000001.tar").unlink()
    return "shard-000001.tar"


def a_web_page(folder: Path) -> str:
    (folder / "shard-000001.tar").write_text("<!DOCTYPE html><html>404 Not Found</html>")
    return "shard-000001.tar"


def a_bit_of_data(folder: Path) -> str:
    path, found = member(folder)
    data = path.read_bytes()
    write_at(path, found.offset + 500, bytes([data[found.offset + 500] ^ 4]))
    return f"{path.name}.*key {found.name[:9]}"


def zeros(folder: Path) -> str:
    path = folder / "shard-000001.tar"
    size = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, size)
    return path.name


FAULTS = [
    cut_at_a_member,
    cut_in_a_header,
    cut_in_data,
    cut_before_the_label,
    a_wrong_length,
    a_missing_shard,
    a_web_page,
    a_bit_of_data,
    zeros,
]


@pytest.mark.parametrize("fault", FAULTS)
def test_reading_stops_and_names_it(folder, fault):
    name = fault(folder)
    with pytest.raises(CorruptDataError, match=name):
        an_epoch(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_names_it(folder, fault):
    name = fault(folder)
    faults = list(check.verify(opened(folder)))
    assert faults and any(re.search(name, line) for line in faults)


def test_a_bit_of_a_header(folder):
    """Reading does not need it, so the images come out right; verify names it, and indexing refuses the shard."""
    path, found = member(folder)
    whole = [batch.tobytes() for batch in an_epoch(folder)[0]]
    data = path.read_bytes()
    write_at(path, found.offset - 512 + 3, bytes([data[found.offset - 512 + 3] ^ 1]))
    assert [batch.tobytes() for batch in an_epoch(folder)[0]] == whole
    assert any(path.name in line and "checksum" in line for line in check.verify(opened(folder)))
    with pytest.raises(
        CorruptDataError, match=rf"{path.name}: header at byte {found.offset - 512} has a wrong checksum"
    ):
        Scan(path)


@pytest.mark.parametrize("fault", [cut_at_a_member, cut_in_a_header, cut_in_data, a_web_page])
def test_indexing_refuses_it(folder, fault):
    name = fault(folder)
    with pytest.raises(CorruptDataError, match=name):
        check.index(folder)


def test_the_budget_counts_and_replaces(folder):
    a_bit_of_data(folder)
    batches, bad = an_epoch(folder, skip_bad=1)
    assert len(bad) == 1 and len(batches) == 5
    seen = np.concatenate(batches).reshape(40, -1)
    assert len(np.unique(seen, axis=0)) == 39  # the one is gone, another stands in for it


def an_epochs_words(folder: Path) -> list[object]:
    return ["--data.shards", folder, "--batch", 8, "--epochs", 1, "--model.options.width", 2]


def test_a_whole_bad_shard_uses_the_budget_up(folder, tmp_path, capsys):
    a_web_page(folder)
    assert len(an_epoch(folder, skip_bad=200)[1]) >= 10
    assert train(*an_epochs_words(folder), "--run_dir", tmp_path / "run", "--data.skip_bad", 9) == 1
    assert "shard-000001.tar: 41 bytes, 30720 in the manifest" in capsys.readouterr().err


def test_a_shard_that_is_gone_is_told_before_the_run_starts(folder, tmp_path, capsys):
    a_missing_shard(folder)
    assert train("--data.shards", folder, "--run_dir", tmp_path / "run") == 2
    assert "lacks shard-000001.tar; copy" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_the_trainer_reports_the_budget(folder, tmp_path, capsys):
    a_bit_of_data(folder)
    words = [*an_epochs_words(folder), "--report.every_images", 8]
    assert train(*words, "--run_dir", tmp_path / "strict") == 1
    assert "shard-000001.tar, byte" in capsys.readouterr().err
    assert train(*words, "--run_dir", tmp_path / "lenient", "--data.skip_bad", 3) == 0
    assert metrics(tmp_path / "lenient")[-1]["skipped"] == 1
    assert "stepped over: " in capsys.readouterr().err


def test_the_budget_is_one_for_all_starts_of_a_run(folder, tmp_path):
    """What was stepped over is in the checkpoint, and in the lines, as if the run had not been interrupted."""
    a_bit_of_data(folder)
    words = ["--data.shards", folder, "--batch", 8, "--model.options.width", 2, "--data.skip_bad", 9]
    for name, ends in {"whole": [160], "parts": [40, 120, 160]}.items():
        for images in ends:
            assert train(*words, "--run_dir", tmp_path / name, "--images", images) == 0
    rows = [{row["images"]: row["skipped"] for row in metrics(tmp_path / name)} for name in ("whole", "parts")]
    assert rows[0] == rows[1] and rows[0][160] == 4


def test_the_same_basename_in_two_folders(tmp_path):
    for part in ("train", "val"):
        made = make_dataset(tmp_path / part, noise(10, seed=len(part)), shards=1)
        (tmp_path / "all" / part).mkdir(parents=True)
        shutil.copy(made / "shard-000000.tar", tmp_path / "all" / part / "000.tar")
    check.index(tmp_path / "all")
    found = opened(tmp_path / "all")
    images = Reader(found).read(np.arange(20)).images
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
        ([("a.png", png()), ("b.png", png()), ("a.png", png())], "key a comes twice"),
        ([("a.png", png()), ("a.png", png())], "key a has two members .png"),
        ([("a.png", png()), ("a.jpg", png())], "key a needs one image .* it has .png, .jpg"),
        ([("a.txt", b"hello")], "key a needs one image"),
        ([("a.png", png()), ("b.png", png(16))], "key b is .16, 3, 'png'., the images before it .8"),
        ([("a.png", b"<html>")], "key a: cannot identify image"),
        ([("a.png", png()), ("a.cls", b"cat")], "key a: invalid literal"),
        ([("a.png", png()), ("a.cls", b"1"), ("b.png", png())], "some samples have a label and some have none"),
    ],
)
def test_what_is_no_set_is_refused(tmp_path, files, message):
    tar(tmp_path / "set" / "0.tar", files)
    with pytest.raises(CorruptDataError, match=message):
        check.index(tmp_path / "set")


def test_a_pickle_never_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    evil = pickle.dumps(Bomb())
    pickle.loads(evil)
    assert (tmp_path / "executed").exists()  # it would
    (tmp_path / "executed").unlink()
    files = [
        (f"{i}.{e}", d) for i in range(4) for e, d in (("png", png(8, i)), ("pkl", evil), ("pth", evil), ("pyd", evil))
    ]
    tar(tmp_path / "set" / "0.tar", files)
    check.index(tmp_path / "set")
    assert len(Reader(opened(tmp_path / "set")).read(np.arange(4)).images) == 4
    array = io.BytesIO()
    np.save(array, np.array([Bomb()], dtype=object), allow_pickle=True)
    tar(tmp_path / "objects" / "0.tar", [("0.npy", array.getvalue())])
    with pytest.raises(CorruptDataError, match="an array of object"):
        check.index(tmp_path / "objects")
    assert os.environ["WDS_SECURE"] == "1" and not (tmp_path / "executed").exists()


def test_a_decompression_bomb_is_not_decoded(tmp_path):
    """A small file that claims a huge image: refused by its header, before memory is taken."""
    tar(tmp_path / "set" / "0.tar", [(f"{i}.png", png(8, i)) for i in range(4)])
    check.index(tmp_path / "set")
    bomb = tar(tmp_path / "bomb" / "0.tar", [("0.png", png(8)), ("1.png", png(9_000))])
    with pytest.raises(CorruptDataError, match="key 1"):
        check.index(bomb.parent)
    found = opened(tmp_path / "set")
    reader = Reader(found)
    with pytest.raises(ValueError, match="9000x9000 pixels"):
        reader.decode(png(9_000), reader.shape)


def edit(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_labels_that_are_not_the_manifests_are_told_before_the_run_starts(folder, tmp_path, capsys):
    column = opened(folder).columns["label"]
    data = (folder / "index.npz").read_bytes()
    at = data.index(np.asarray(column).tobytes())
    write_at(folder / "index.npz", at, bytes([data[at] ^ 1]))
    assert train("--data.shards", folder, "--data.labels", "true", "--run_dir", tmp_path / "run") == 2
    assert "is not the manifest's" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [b"-00000001000", b"0x000000010\0", b"1_0\0"])
def test_a_tar_size_that_is_not_octal(folder, size):
    path, found = member(folder, shard=0, number=0)
    header = bytearray(path.read_bytes()[found.offset - 512 : found.offset])
    header[156:157], header[124 : 124 + len(size)], header[148:156] = b"g", size, b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    write_at(path, found.offset - 512, bytes(header))
    with pytest.raises(CorruptDataError, match="is not a tar header"):
        list(members(path))


@pytest.mark.parametrize("record", [b"0 path=x\n", b"zz path=x\n", b"-1 path=x\n", b"9999"])
def test_a_pax_record_that_cannot_be_read(folder, record):
    path, found = member(folder, shard=0, number=0)
    header = bytearray(path.read_bytes()[found.offset - 512 : found.offset])
    header[156:157], header[124:136], header[148:156] = b"x", b"%011o\0" % len(record), b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    write_at(path, found.offset - 512, bytes(header) + record.ljust(512, b"\0"))
    with pytest.raises(CorruptDataError, match="the names at byte"):
        list(members(path))


@pytest.mark.parametrize("threads", [0, 2, 8])
def test_threads_keep_the_order(tmp_path, threads):
    found = opened(make_dataset(tmp_path / "set", noise(40), shards=4, format="png"))
    order, reader = Lanes(found.counts, 0, 8), Reader(found)
    batches = stream(order, reader, lambda position: {}, batch=8, position=0, threads=threads)
    for at in range(0, 120, 8):
        expected = reader.read(order.ids(at, 8))
        assert np.array_equal(next(batches).images, expected.images)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "index.npz").unlink(), "index.npz is missing or damaged"),
        (lambda folder: os.truncate(folder / "index.npz", 700), "index.npz is missing or damaged"),
        (lambda folder: os.truncate(folder / "manifest.json", 100), "manifest.json is damaged"),
        (lambda folder: (folder / "manifest.json").unlink(), "has no manifest.json; `distgan shards index` makes one"),
        (lambda folder: (folder / "manifest.json").write_text(json.dumps({"format": "other"})), "is of format 'other'"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff"), "manifest.json is damaged"),
        (lambda folder: edit(folder, lambda made: made.pop("channels")), "manifest.json is damaged .KeyError"),
        (lambda folder: edit(folder, lambda made: made["shards"][0].update(name="../x.tar")), "a file '../x.tar'"),
        (lambda folder: edit(folder, lambda made: made["shards"][0].update(sha256="/etc/x")), "the sha256 '/etc/x'"),
    ],
)
def test_a_damaged_manifest_or_index_is_bad_input(folder, spoil, message):
    spoil(folder)
    with pytest.raises(UsageError, match=message):
        opened(folder)


def test_no_shell_and_no_other_scheme(tmp_path):
    for address in ("pipe://cat x", "file:///x", "ftp://x/y"):
        with pytest.raises(UsageError, match="folders, http://, https:// and s3://"):
            open_storage(address, str(tmp_path))


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_decoders_agree_with_what_was_written(tmp_path, decoder):
    smooth = np.linspace(0, 255, 16 * 16 * 3).reshape(1, 16, 16, 3).astype(np.uint8)
    folder = make_dataset(tmp_path / "set", np.concatenate([smooth, smooth[:, ::-1]]), shards=1, format="jpg")
    images = Reader(opened(folder), decoder=decoder).read(np.arange(2)).images.astype(int)
    assert min(np.abs(image - smooth[0]).max() for image in images) < 12
