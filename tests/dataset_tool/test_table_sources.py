"""Parquet, the hub's cache, LMDB, HDF5, .npy and .npz as sources: images, labels, what is refused, and why."""

import io
import json
import os
import signal
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import h5py
import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from PIL import Image

from distgan.commands import shards
from distgan.data.stream import Reader
from distgan.dataset_tool.convert import Options, resolve_options
from distgan.dataset_tool.plan import plan_dataset
from distgan.dataset_tool.sources import arrays, hdf5, open_source, parquet
from distgan.dataset_tool.sources.apart import call_apart
from distgan.dataset_tool.sources.source import Source
from distgan.errors import UsageError
from helpers import noise

IMAGES = noise(10)
LABELS = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}


def opened(src: object, **changes: Any) -> Source:
    options: dict[str, Any] = {"split": "train", "files": None, "labels": "auto", "samples": 1, "seed": 0}
    return open_source(str(src), **options | changes)


def array(source: Source, index: int) -> np.ndarray:
    return np.asarray(source.load(index))


def encode(image: np.ndarray, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    if format == "npy":
        np.save(out, image)
    else:
        Image.fromarray(image).save(out, format)
    return out.getvalue()


def write_parquet(path: Path, images: Sequence[Any], rows: int = 4, features: Any = FEATURES, **columns: Any) -> Path:
    """A Parquet file with a column `image`, and the metadata of a Hugging Face dataset."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": images, **columns})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=rows)
    return path


def structs(images: Iterable[np.ndarray]) -> list[dict[str, Any]]:
    return [{"bytes": encode(image), "path": f"{i}.png"} for i, image in enumerate(images)]


def write_lmdb(folder: Path, values: dict[bytes, bytes]) -> Path:
    with lmdb.open(str(folder), map_size=1 << 24) as database, database.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return folder


def write_hdf5(path: Path, chunks: Any = None, **arrays: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            wanted = chunks if np.ndim(values) > 2 else None
            file.create_dataset(name, data=values, chunks=wanted, compression="gzip" if wanted else None)
    return path


def write_arrays(root: Path, kind: str, images: np.ndarray) -> Path:
    """`images` as hdf5, npz or npy, or the first of them in a folder."""
    if kind == "hdf5":
        return write_hdf5(root / "x.h5", images=images)
    path = root / {"npz": "x.npz", "npy": "x.npy", "folder": "folder"}[kind]
    if kind == "folder":
        path.mkdir()
        np.save(path / "0.npy", images[0])
    elif kind == "npz":
        np.savez(path, images=images)
    else:
        np.save(path, images)
    return path


@pytest.fixture
def sources(tmp_path) -> dict[str, Path]:
    """The same ten labelled images in every kind of table."""
    np.savez(tmp_path / "x.npz", images=IMAGES, label=LABELS)
    np.savez_compressed(tmp_path / "compressed.npz", images=IMAGES, label=LABELS)
    np.save(tmp_path / "x.npy", IMAGES)
    np.save(tmp_path / "labels.npy", LABELS)
    values = {f"{i:03d}".encode(): encode(image, "npy" if i % 2 else "PNG") for i, image in enumerate(IMAGES)}
    labels = "".join(f"{i:03d},{label}\n" for i, label in enumerate(LABELS))
    (tmp_path / "lmdb.csv").write_text("file_name,label\n" + labels)
    return {
        "parquet": write_parquet(tmp_path / "x.parquet", structs(IMAGES), label=LABELS),
        "lmdb": write_lmdb(tmp_path / "lmdb", values),
        "hdf5": write_hdf5(tmp_path / "x.h5", chunks=(3, 8, 8, 3), images=IMAGES, label=LABELS),
        "npy": tmp_path / "x.npy",
        "npz": tmp_path / "x.npz",
        "compressed": tmp_path / "compressed.npz",
    }


KINDS = ["parquet", "lmdb", "hdf5", "npy", "npz", "compressed"]
LABEL_FILES = {"lmdb": "lmdb.csv", "npy": "labels.npy"}
every_kind = pytest.mark.parametrize("kind", KINDS)


def options_of(kind: str, path: Path) -> dict[str, str]:
    return {"labels": str(path.parent / LABEL_FILES[kind])} if kind in LABEL_FILES else {}


@every_kind
def test_every_kind_has_the_images_and_the_labels(sources, kind):
    source = opened(sources[kind], **options_of(kind, sources[kind]))
    assert source.labels is not None and source.labels.tolist() == LABELS
    assert source.classes == (["cat", "dog", "owl"] if kind == "parquet" else ["0", "1", "2"])
    assert len(set(source.names)) == 10
    for index in np.random.default_rng(0).permutation(10):
        assert np.array_equal(array(source, int(index)), IMAGES[index])


@every_kind
def test_datasets_are_equal_in_parts_by_many_workers_and_after_a_resume(sources, kind, tmp_path):
    args = ["--shard_mb", "0.005", *(f"--{k}={v}" for k, v in options_of(kind, sources[kind]).items())]

    def make(name: str, *more: str) -> int:
        return shards.main(["make", str(sources[kind]), str(tmp_path / name), *args, *more])

    assert make("whole", "--jobs", "2") == 0
    for part in ("2/2", "1/2", "1/2"):
        assert make("parts", "--part", part, "--jobs", "1") == 0
    assert make("parts") == 0 and make("whole") == 0  # they are complete: nothing is written
    names = sorted(path.name for path in (tmp_path / "whole").glob("*"))
    assert len(list((tmp_path / "whole").glob("*.tar"))) > 2
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    dataset = shards.open_dataset(str(tmp_path / "whole"), None)
    batch = Reader(dataset).read(np.arange(10))
    lines = dataset.sources()
    assert lines is not None
    order = [opened(sources[kind]).names.index(line) for line in lines]
    assert np.array_equal(batch.images, IMAGES[order]) and batch.labels.tolist() == [LABELS[i] for i in order]


@every_kind
def test_a_changed_file_is_not_resumed(sources, kind, tmp_path, capsys):
    assert shards.main(["make", str(sources[kind]), str(tmp_path / "made")]) == 0
    changed = sources[kind] / "data.mdb" if kind == "lmdb" else sources[kind]
    stat = changed.stat()
    os.utime(changed, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert shards.main(["make", str(sources[kind]), str(tmp_path / "made")]) == 2
    assert "the images have changed since" in capsys.readouterr().err


def refused(src: object, message: str, **options: Any) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        opened(src, **options)
    assert "\n" not in str(caught.value)


def test_groups_stay_together_in_the_shards():
    """Every group of ten in at most two shards of ten, with the groups and their images in a hashed order."""
    names = [f"{i:03d}" for i in range(100)]
    plain = Source("x", names, lambda i: IMAGES[0], size=8, channels=3)
    grouped = Source("x", names, lambda i: IMAGES[0], size=8, channels=3, groups=[i // 10 for i in range(100)])
    options = resolve_options(plain, Options(shard_mb=0.0122))
    _, scattered = plan_dataset(plain, options, True)
    _, together = plan_dataset(grouped, options, True)
    assert sorted(sum(together, [])) == list(range(100)) and len(together) == 10
    assert all(len({i // 10 for i in shard}) == 1 for shard in together)
    assert [shard[0] // 10 for shard in together] != sorted(shard[0] // 10 for shard in together)
    assert together[0] != sorted(together[0])
    assert all(len({i // 10 for i in shard}) > 2 for shard in scattered)


def test_parquet_columns_of_bytes_and_of_paths(tmp_path):
    encoded = [encode(image) for image in IMAGES]
    for name, values in {"bytes": encoded, "large": pa.array(encoded, pa.large_binary())}.items():
        source = opened(write_parquet(tmp_path / f"{name}.parquet", values, features=None))
        assert np.array_equal(array(source, 7), IMAGES[7]) and source.labels is None
    (tmp_path / "files").mkdir()
    paths = [f"files/{i}.png" for i in range(10)]
    for path, data in zip(paths, encoded, strict=True):
        (tmp_path / path).write_bytes(data)
    source = opened(write_parquet(tmp_path / "paths.parquet", paths, features=None))
    assert np.array_equal(array(source, 7), IMAGES[7])
    source = opened(write_parquet(tmp_path / "struct.parquet", [{"bytes": None, "path": path} for path in paths]))
    assert np.array_equal(array(source, 7), IMAGES[7])


def test_parquet_paths_stay_in_its_folder(tmp_path):
    Image.fromarray(IMAGES[0]).save(tmp_path / "outside.png")
    paths = ["../outside.png", str(tmp_path / "outside.png"), "missing.png"]
    source = opened(write_parquet(tmp_path / "in" / "x.parquet", paths, features=None))
    for index in (0, 1):
        with pytest.raises(ValueError, match="is not in the folder of the Parquet file"):
            source.load(index)
    with pytest.raises(FileNotFoundError):
        source.load(2)


def test_parquet_image_column_is_found_or_named(tmp_path):
    encoded = [encode(image) for image in IMAGES]
    path = write_parquet(tmp_path / "two.parquet", encoded, mask=encoded[::-1], text=["a"] * 10)
    refused(path, r"image and mask may be the images; it has image \(binary\), mask.*--image_key COLUMN")
    assert np.array_equal(array(opened(path, image_key="mask"), 0), IMAGES[9])
    refused(path, "--image_key: .* has no column 'imgae'; it has image", image_key="imgae")
    path = write_parquet(tmp_path / "none.parquet", [1.0] * 10, text=["a"] * 10)
    refused(path, "no column of images; it has image .double., text .string.")
    refused(path, "'image' of .* is not a column of images", image_key="image")


def test_parquet_labels(tmp_path, capsys):
    """Those with class names, or `label`; others are taken when they are asked for, and are named in a note."""
    columns: dict[str, Any] = {"energy": [i / 4 for i in range(10)], "blond": [True, False] * 5, "fine": LABELS}
    path = write_parquet(tmp_path / "x.parquet", structs(IMAGES), label=LABELS, **columns)
    assert opened(path).classes == ["cat", "dog", "owl"] and opened(path).numbers is None
    source = opened(path, label_columns="energy,blond,label")
    assert source.number_names == ["energy", "blond"] and source.numbers is not None
    assert source.numbers[3].tolist() == [0.75, 0.0] and source.classes == ["cat", "dog", "owl"]
    assert opened(path, labels="none").labels is None
    refused(path, "no column 'age'; it has 'label', 'energy', 'blond', 'fine'", label_columns="age")
    refused(path, "'energy' .*row|energy", label_columns="energy:flag")
    assert capsys.readouterr().err == ""
    path = write_parquet(tmp_path / "captions.parquet", structs(IMAGES), caption=list("abcdefghij"))
    assert opened(path).labels is None
    assert "no labels are taken from the columns caption; --label_columns" in capsys.readouterr().err
    both = FEATURES | {"fine": FEATURES["label"]}
    path = write_parquet(tmp_path / "both.parquet", structs(IMAGES), features=both, coarse=LABELS, fine=LABELS)
    assert opened(path).classes == ["cat", "dog", "owl"]
    path = write_parquet(tmp_path / "vector.parquet", structs(IMAGES), label=[[i, i / 2] for i in range(10)])
    numbers = opened(path, label_columns="label:number").numbers
    assert numbers is not None and numbers[3].tolist() == [3.0, 1.5]
    path = write_parquet(tmp_path / "empty.parquet", structs(IMAGES), label=[*LABELS[:9], None])
    refused(path, "x.parquet:9|empty.parquet:9")


def test_parquet_row_groups_are_read_in_blocks(tmp_path, monkeypatch):
    """However large a row group is, a process holds a few blocks; what is before a block is read over once."""
    size = sum(len(row["bytes"]) for row in structs(IMAGES))
    monkeypatch.setattr(parquet, "BLOCK_BYTES", size // 4)
    path = write_parquet(tmp_path / "x.parquet", structs(IMAGES), rows=8, label=LABELS)
    source = opened(path)
    assert source.groups is not None and len(set(source.groups)) > 4
    assert source.groups[7] != source.groups[8]  # another row group
    assert all(source.groups.count(group) <= 3 for group in set(source.groups))
    batches: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(*args: Any, **options: Any) -> Any:
        for batch in iter_batches(*args, **options):
            batches.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for index in range(10):
        assert np.array_equal(array(source, index), IMAGES[index])
    assert sum(batches) == 10 and max(batches) <= 3  # in order, every row is decoded once
    for index in (9, 0, 7, 3, 8):
        assert np.array_equal(array(source, index), IMAGES[index])
    assert max(batches) <= 3


def test_parquet_of_other_columns_is_refused(tmp_path):
    write_parquet(tmp_path / "set" / "a.parquet", structs(IMAGES), label=LABELS)
    write_parquet(tmp_path / "set" / "b.parquet", structs(IMAGES), label=[str(i) for i in LABELS])
    refused(tmp_path / "set", "b.parquet: its columns or their types are not those of the first file")


def test_parquet_that_is_damaged_names_the_row(tmp_path, capsys, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 is not enough PAR1")
    refused(tmp_path / "x.parquet", "x.parquet: it cannot be read as Parquet")
    rows = [*structs(IMAGES[:6]), {"bytes": b"no image", "path": "6"}, {"bytes": None, "path": None}]
    write_parquet(tmp_path / "x.parquet", rows)
    assert shards.main(["make", str(tmp_path / "x.parquet"), str(tmp_path / "made")]) == 2
    error = capsys.readouterr().err
    assert "x.parquet:6: cannot identify image file" in error and "x.parquet:7: the row has no image" in error
    assert shards.main(["make", str(tmp_path / "x.parquet"), str(tmp_path / "made"), "--skip_bad"]) == 0
    size = sum(len(row["bytes"]) for row in structs(IMAGES))
    monkeypatch.setattr(parquet, "BLOCKS_KEPT", 1)
    monkeypatch.setattr(parquet, "BLOCK_BYTES", size // 3)  # two blocks of a row group of five
    path = write_parquet(tmp_path / "y.parquet", structs(IMAGES), rows=5)
    group = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    data[group.data_page_offset + 5 : group.data_page_offset + 300] = bytes(295)
    path.write_bytes(data)
    source = opened(path)
    assert np.array_equal(array(source, 4), IMAGES[4])
    reasons: dict[int, set[str]] = {5: set(), 9: set()}
    for index in (5, 9, 5, 9):
        with pytest.raises(ValueError) as caught:
            source.load(index)
        reasons[index].add(str(caught.value))
    assert all(len(found) == 1 for found in reasons.values())  # the same for the same image, in any order


def test_parquet_split(tmp_path, capsys):
    for split, first in (("train", 0), ("test", 5)):
        for part in range(2):
            images = structs(IMAGES[first + 2 * part : first + 2 * part + 2])
            write_parquet(tmp_path / "set" / "data" / f"{split}-{part:05d}-of-00002.parquet", images)
    source = opened(tmp_path / "set")
    assert source.names == [f"data/train-0000{part}-of-00002.parquet:{row}" for part in (0, 1) for row in (0, 1)]
    assert "2 files are of the split train; 2 others are not, as data/test-00000" in capsys.readouterr().err
    assert np.array_equal(array(opened(tmp_path / "set", split="test"), 2), IMAGES[7])
    refused(tmp_path / "set", "no Parquet file in .* is of 'validation'; there is test, train", split="validation")
    assert len(opened(tmp_path / "set" / "data" / "test-00000-of-00002.parquet")) == 2


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The hub's cache with the Parquet files of one commit of owner/birds, and no network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "hub" / "datasets--owner--birds"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    snapshot = root / "snapshots" / commit
    write_parquet(snapshot / "data" / "train-00000-of-00001.parquet", structs(IMAGES), label=LABELS)
    write_parquet(snapshot / "data" / "test-00000-of-00001.parquet", structs(IMAGES[:3]), label=LABELS[:3])
    return snapshot


def test_dataset_in_the_hubs_cache(hub, capsys):
    source = opened("hf://owner/birds")
    assert source.name == f"hf://owner/birds@{hub.name}" and len(source) == 10
    assert source.classes == ["cat", "dog", "owl"] and np.array_equal(array(source, 9), IMAGES[9])
    assert len(opened(f"hf://owner/birds@{hub.name}", split="test")) == 3
    refused("hf://owner/fish", "hf://owner/fish: LocalEntryNotFoundError: ")
    refused("hf://birds", "is hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    for path in hub.rglob("*.parquet"):
        path.unlink()
    refused("hf://owner/birds", "no Parquet file in it; .*@refs/convert/parquet")
    assert "hf_secret" not in capsys.readouterr().err


def test_lmdb_keys(tmp_path):
    keys = [b"\xff\0", b"two\nlines", "ü".encode()]
    source = opened(write_lmdb(tmp_path / "x", {key: encode(IMAGES[i]) for i, key in enumerate(keys)}))
    assert sorted(source.names) == sorted(["0xff00", f"0x{keys[1].hex()}", "ü"])
    assert np.array_equal(array(source, source.names.index("ü")), IMAGES[2])
    assert len(opened(tmp_path / "x" / "data.mdb")) == 3
    refused(write_lmdb(tmp_path / "empty", {}), "has no images")
    refused(tmp_path / "x", "leave it out", image_key="x")


def test_lmdb_that_is_damaged(sources, tmp_path):
    data = sources["lmdb"] / "data.mdb"
    whole = data.read_bytes()
    os.truncate(data, len(whole) // 2)
    refused(sources["lmdb"], "data.mdb: it is truncated: it has [0-9]+ pages")
    data.write_bytes(b"not a database" * 1000)
    refused(sources["lmdb"], "it cannot be read as LMDB")
    data.write_bytes(whole[:8192] + bytes(len(whole) - 8192))  # every page but the first two
    refused(sources["lmdb"], "it cannot be read as LMDB|crashed the library that reads it")


def test_a_crash_of_a_library_is_one_line():
    with pytest.raises(UsageError, match="x.h5: it is corrupt: reading it crashed the library"):
        call_apart(lambda: os.kill(os.getpid(), signal.SIGKILL), "x.h5")
    assert call_apart(lambda: [1], "x") == [1]
    with pytest.raises(KeyError):
        call_apart(lambda: {}["a"], "x")


def test_zipped_tables_are_refused(sources, tmp_path):
    for kind, name in (("lmdb", "lsun/data.mdb"), ("parquet", "x.parquet"), ("hdf5", "x.h5")):
        with zipfile.ZipFile(tmp_path / f"{kind}.zip", "w") as archive:
            archive.write(sources[kind] / "data.mdb" if kind == "lmdb" else sources[kind], name)
        refused(tmp_path / f"{kind}.zip", f"has {name}, .* unzip it")


def test_tfrecord_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x-00000.tfrecord").write_bytes(b"x")
    refused(tmp_path / "set", "TFRecord is not read; convert it to tars or Parquet")
    refused(tmp_path / "set" / "x-00000.tfrecord", "TFRecord is not read; convert it to tars or Parquet")


def test_hdf5_images_and_labels(tmp_path):
    text = ["cat", "dog"] * 5
    arrays = {"a/images": IMAGES, "masks": IMAGES[..., 0], "name": text, "energy": np.arange(10) / 4, "other": [1, 2]}
    path = write_hdf5(tmp_path / "x.h5", **arrays)
    refused(path, r"several arrays may be the images; it has a/images \[10, 8, 8, 3\].*--image_key NAME")
    refused(path, "has no array 'image'; it has a/images", image_key="image")
    refused(path, r"'name' of .* is \[10\]; images are \[N, H, W\]", image_key="name")
    refused(path, "has the columns 'energy', 'name'; say which", image_key="a/images")
    source = opened(path, image_key="/a/images", label_columns="name,energy")
    assert source.classes == ["cat", "dog"] and source.number_names == ["energy"]
    assert np.array_equal(array(source, 3), IMAGES[3])
    masks = opened(path, image_key="masks", labels="none")
    assert masks.groups is None and array(masks, 3).shape == (8, 8)
    chunked = opened(write_hdf5(tmp_path / "chunks.h5", chunks=(4, 8, 8, 3), images=IMAGES))
    assert chunked.groups == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]


def test_hdf5_keeps_the_chunks_of_an_image(tmp_path, monkeypatch, capsys):
    path = write_hdf5(tmp_path / "x.h5", chunks=(10, 4, 8, 2), images=IMAGES)
    cached: list[int | None] = []
    file = h5py.File
    monkeypatch.setattr(hdf5.h5py, "File", lambda *a, **o: (cached.append(o.get("rdcc_nbytes")), file(*a, **o))[1])
    monkeypatch.setattr(hdf5, "CACHE_BYTES", 1 << 21)
    assert np.array_equal(array(opened(path), 3), IMAGES[3])
    assert cached[-1] == 1 << 20 and capsys.readouterr().err == ""
    big = write_hdf5(tmp_path / "y.h5", chunks=(10, 512, 512, 1), images=np.zeros((10, 512, 600), "uint8")[..., None])
    opened(big).load(0)
    assert cached[-1] == 1 << 21
    assert "chunks of 5,242,880 bytes, of which 2,097,152 are kept: reading is slow" in capsys.readouterr().err


def test_hdf5_values_in_other_files_are_not_read(tmp_path):
    """A file of somebody else may name any file of the machine."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 192)
    layout = h5py.VirtualLayout((1, 8, 8, 3), "uint8")
    layout[0] = h5py.VirtualSource(write_hdf5(tmp_path / "y.h5", images=IMAGES[:1]), "images", (1, 8, 8, 3))[0]
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("external", (1, 8, 8, 3), "uint8", external=[(str(secret), 0, 192)])
        file.create_virtual_dataset("virtual", layout)
        file["link"] = h5py.ExternalLink(str(tmp_path / "y.h5"), "images")
    refused(tmp_path / "x.h5", "no array of three axes or more; it has no arrays")
    refused(tmp_path / "x.h5", "no array 'link'", image_key="link")


def test_hdf5_that_is_damaged(sources, tmp_path):
    with h5py.File(sources["hdf5"], "r") as file:
        images = file["images"]
        assert isinstance(images, h5py.Dataset)
        offset = images.id.get_chunk_info(1).byte_offset
    data = bytearray(sources["hdf5"].read_bytes())
    data[offset : offset + 40] = bytes(40)
    sources["hdf5"].write_bytes(data)
    source = opened(sources["hdf5"])
    assert np.array_equal(array(source, 2), IMAGES[2])
    with pytest.raises(OSError):
        source.load(3)
    (tmp_path / "y.h5").write_bytes(b"nothing")
    refused(tmp_path / "y.h5", "y.h5: Unable to .*open file")


CHW = np.moveaxis(noise(10, 16, 5), -1, 1)


@pytest.mark.parametrize("kind", ["hdf5", "npy", "npz", "folder"])
def test_layout_of_the_channels(tmp_path, kind):
    def write(images: np.ndarray) -> Path:
        if kind == "hdf5":
            return write_hdf5(tmp_path / "x.h5", images=images)
        if kind == "npz":
            np.savez(tmp_path / "x.npz", images=images)
            return tmp_path / "x.npz"
        (tmp_path / "folder").mkdir(exist_ok=True)
        np.save(tmp_path / ("folder/0.npy" if kind == "folder" else "x.npy"), images[0] if kind == "folder" else images)
        return tmp_path / ("folder" if kind == "folder" else "x.npy")

    path = write(CHW)
    with pytest.raises(ValueError, match=r"\[5, 16, 16\] looks like \[channels, height, width\]; --layout CHW"):
        opened(path).load(0)
    assert np.array_equal(array(opened(path, layout="CHW"), 0), np.moveaxis(CHW[0], 0, -1))
    path = write(noise(10, 16, 9))
    with pytest.raises(ValueError, match=r"\[16, 16, 9\] may be in either order; give --layout HWC"):
        opened(path).load(0)
    assert array(opened(path, layout="HWC"), 0).shape == (16, 16, 9)
    path = write(noise(10, 16, 7))
    assert array(opened(path), 0).shape == (16, 16, 7)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [
        *((name, name) for name in ("uint8", "uint16", "float16", "float32")),
        *((">u2", "uint16"), (">f4", "float32"), ("int8", "float32"), ("int16", "float32"), ("float64", "float32")),
        *(("bool", "uint8"), ("int32", None), ("uint64", None)),
    ],
)
@pytest.mark.parametrize("kind", ["hdf5", "npy", "npz", "folder"])
def test_types_of_arrays(tmp_path, kind, dtype, kept, capsys):
    images = noise(3, 8, 4).astype(dtype)
    source = opened(write_arrays(tmp_path, kind, images))
    image = array(source, 0)
    assert image.dtype == images.dtype.newbyteorder("=") and image.flags.c_contiguous
    assert np.array_equal(image, images[0])
    if kept is None:
        with pytest.raises(UsageError, match=f"arrays of {dtype} are stored as one of uint8, .*--range LOW,HIGH"):
            resolve_options(source, Options())
        return
    assert resolve_options(source, Options()).dtype == kept
    assert (f"arrays of {dtype} become {kept}" in capsys.readouterr().err) == (kept != image.dtype.name)


def test_another_layout_is_another_source(tmp_path, capsys):
    """A `make` that was interrupted is not resumed with it, and one that is complete is not taken for the same."""
    np.save(tmp_path / "x.npy", noise(8, 16, 16))
    np.savez(tmp_path / "x.npz", noise(8, 16, 16))
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "0.npy", noise(1, 16, 16)[0])
    for name in ("x.npy", "x.npz", "folder"):
        prints = {layout: opened(tmp_path / name, layout=layout).fingerprint for layout in ("HWC", "CHW")}
        assert prints["HWC"] != prints["CHW"]
    for layout, code in (("HWC", 0), ("HWC", 0), ("CHW", 2)):
        assert shards.main(["make", f"{tmp_path}/folder", f"{tmp_path}/set", "--layout", layout]) == code
    assert "the images have changed since" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["hdf5", "npy", "npz", "folder"])
def test_arrays_of_other_kinds_are_no_images(tmp_path, kind):
    test = {"hdf5": "no array of three axes", "npz": "no array of three axes"}.get(
        kind, "images and labels are numbers"
    )
    images = np.zeros((3, 16, 8, 4), np.complex64)
    with pytest.raises(ValueError, match=test):
        opened(write_arrays(tmp_path, kind, images)).load(0)


def test_arrays_in_fortran_order(tmp_path):
    np.save(tmp_path / "x.npy", np.asfortranarray(IMAGES))
    np.savez_compressed(tmp_path / "x.npz", images=np.asfortranarray(IMAGES))
    for name in ("x.npy", "x.npz"):
        assert np.array_equal(array(opened(tmp_path / name), 3), IMAGES[3])


def test_npz_with_several_arrays(tmp_path, monkeypatch):
    objects = np.array([{}, None], dtype=object)
    np.savez(tmp_path / "x.npz", x_train=IMAGES, x_test=IMAGES[:4], y_train=LABELS, y_test=LABELS[:4], objects=objects)
    refused(tmp_path / "x.npz", r"several arrays may be the images; it has x_train \[10, 8, 8, 3\], x_test")
    source = opened(tmp_path / "x.npz", image_key="x_test")
    assert source.labels is not None and source.labels.tolist() == LABELS[:4]
    np.savez_compressed(tmp_path / "y.npz", x=IMAGES)
    monkeypatch.setattr(arrays, "MAX_COMPRESSED", 1000)
    refused(tmp_path / "y.npz", "y.npz: x is compressed, and has 2,048 bytes; save it with numpy.savez")
    (tmp_path / "z.npz").write_bytes(b"nothing")
    refused(tmp_path / "z.npz", "z.npz: File is not a zip file")


def test_npy_labels_and_shapes(tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    np.save(tmp_path / "y.npy", np.stack([np.arange(10) / 4, np.arange(10)], axis=1))
    source = opened(tmp_path / "x.npy", labels=str(tmp_path / "y.npy"), label_columns="energy,angle")
    assert source.number_names == ["energy", "angle"] and source.numbers is not None
    assert source.numbers[3].tolist() == [0.75, 3.0]
    np.save(tmp_path / "short.npy", np.arange(9))
    refused(tmp_path / "x.npy", r"short.npy is \[9\]; labels are \[10\]", labels=str(tmp_path / "short.npy"))
    refused(tmp_path / "y.npy", r"y.npy is an array \[10, 2\]; images are \[N, H, W\]")
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    refused(tmp_path / "objects.npy", "images and labels are numbers or text")
    os.truncate(tmp_path / "x.npy", 1000)
    refused(tmp_path / "x.npy", "x.npy: mmap length is greater than file size")


def test_a_folder_and_a_zip_of_npy(tmp_path):
    images = noise(4, 8, 6)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i, image in enumerate(images):
            (tmp_path / "x" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "x" / "ab"[i % 2] / f"{i}.npy", image)
            archive.write(tmp_path / "x" / "ab"[i % 2] / f"{i}.npy", f"{'ab'[i % 2]}/{i}.npy")
    for name in ("x", "x.zip"):
        source = opened(tmp_path / name)
        assert source.classes == ["a", "b"] and source.names == ["a/0.npy", "a/2.npy", "b/1.npy", "b/3.npy"]
        assert np.array_equal(array(source, 1), images[2])
    np.save(tmp_path / "x" / "a" / "all.npy", images)
    with pytest.raises(ValueError, match="an array of 4 axes .* SRC is the file itself"):
        opened(tmp_path / "x").load(2)


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("parquet", "pyarrow", "parquet"), ("lmdb", "lmdb", "lmdb"), ("hdf5", "h5py", "hdf5")],
)
def test_a_missing_package_is_named_with_its_extra(sources, monkeypatch, kind, package, extra):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.startswith("distgan.dataset_tool.sources.")]:
        if name.endswith((f".{kind}", ".parquet_columns")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(f"distgan.dataset_tool.sources.{kind}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    refused(sources[kind], rf"needs {package}, which is not installed; pip install 'distgan\[{extra}\]'")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(("hdf5", dtype) for dtype in ("uint8", "uint16", "float16", "float32")),
        *(("npy", "float16"), ("npz", "float32"), ("folder", "uint16"), ("lmdb", "float16"), ("parquet", "float32")),
        *(("tiff", dtype) for dtype in ("uint8", "uint16", "float16", "float32")),
    ],
)
def test_bands_of_every_type_come_back_bit_by_bit(tmp_path, kind, dtype):
    """Rectangles of five channels, through `make` and the reader; with numbers as conditions where a table has them."""
    images = (noise(6, 20, 5)[:, :12] * (1 if dtype == "uint8" else 3.25)).astype(dtype)
    energy = [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    encoded = [encode(image, "npy") for image in images]
    source = tmp_path / {"hdf5": "x.h5", "npy": "x.npy", "npz": "x.npz", "parquet": "x.parquet"}.get(kind, "x")
    if kind == "hdf5":
        write_hdf5(source, chunks=(2, 12, 20, 5), images=images, energy=energy)
    elif kind == "npy":
        np.save(source, images)
    elif kind == "npz":
        np.savez(source, images=images, energy=energy)
    elif kind == "parquet":
        write_parquet(source, encoded, energy=energy)
    elif kind == "lmdb":
        write_lmdb(source, {f"{i}".encode(): data for i, data in enumerate(encoded)})
    else:
        source.mkdir()
        for i, image in enumerate(images):
            if kind == "tiff":
                tifffile.imwrite(source / f"{i}.tif", image, photometric="minisblack", planarconfig="contig")
            else:
                np.save(source / f"{i}.npy", image)
    conditions = ["--label_columns", "energy:number"] if kind in ("hdf5", "npz", "parquet") else []
    assert shards.main(["make", str(source), str(tmp_path / "made"), "--jobs", "1", *conditions]) == 0
    dataset = shards.open_dataset(str(tmp_path / "made"), None)
    names = opened(source, label_columns=conditions[1] if conditions else None).names
    order = [names.index(line) for line in dataset.sources() or []]
    batch = Reader(dataset).read(np.arange(6))
    assert batch.images.dtype == dtype and np.array_equal(batch.images, images[order])
    if conditions:
        standardized = (np.array(energy)[order] - np.mean(energy)) / np.std(energy)
        assert np.allclose(batch.labels[:, 0], standardized)
