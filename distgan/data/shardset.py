"""A dataset on disk: manifest.json (shards, counts, hashes), index.npz (where each image is), and the tars."""

import bisect
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

import numpy as np

from distgan import CorruptDataError, UsageError
from distgan.data.tar import members, split_key
from distgan.files import atomic_write, sha256_file
from distgan.images import ENCODINGS

FORMAT = "distgan-shards-1"
COLUMNS = {"offset": np.int64, "size": np.uint32, "label": np.int32, "check": np.uint64}
"""Columns of index.npz, 24 bytes per image; `check` is the xxh3 of the image's bytes."""
MAX_CLASSES = 1_000_000
SOURCES = "sources.txt"
"""Line i is the path of the image of sample id i in the folder or zip that it was made from."""


class Storage(Protocol):
    """Where the files of a dataset are: a folder, or a server with a local cache."""

    def path(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        """A local path of the dataset's file `name`. A download is checked against size and hash."""
        ...

    def names(self) -> set[str] | None:
        """Names of the shards that exist; None if they cannot be listed."""
        ...


class LocalStorage:
    """A dataset in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        return self.root / name

    def names(self) -> set[str] | None:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*.tar")}


@dataclass(frozen=True)
class ShardSet:
    """An opened dataset. Sample ids count along the shards in the manifest's order."""

    storage: Storage
    manifest: dict[str, Any]
    digest: str
    """sha256 of manifest.json; identifies the dataset."""
    columns: dict[str, np.ndarray]
    """The columns of index.npz, [samples] each, memory-mapped. Offset and size are those of the image's bytes in its
    shard; for .npy, of its pixels."""
    counts: np.ndarray
    """Samples of each shard."""

    @property
    def size(self) -> int:
        return self.manifest["size"]

    @property
    def channels(self) -> int:
        return self.manifest["channels"]

    @property
    def encoding(self) -> str:
        return self.manifest["encoding"]

    @property
    def classes(self) -> list[dict[str, Any]]:
        """[{"name": ..., "samples": ...}, ...], or [] for a dataset without labels."""
        return self.manifest["classes"]

    def check_index(self) -> None:
        """Raises UsageError if the sha256 of index.npz is not the one in the manifest; reads all of it."""
        row = self.manifest["index"]
        path = self.storage.path("index.npz", row["bytes"], row["sha256"])
        if sha256_file(path) != row["sha256"]:
            raise UsageError(
                f"data.shards: {path} does not match the manifest; re-create it with `distgan shards index`"
            )

    def sources(self) -> list[str] | None:
        """The lines of sources.txt, [samples]; None if the dataset has no such file.

        Raises CorruptDataError if it is missing or is not the one in the manifest.
        """
        row = self.manifest.get("sources")
        if row is None:
            return None
        path = self.storage.path(SOURCES, row["bytes"], row["sha256"])
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorruptDataError(f"{path}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise CorruptDataError(f"{path}: the sha256 does not match the manifest")
        lines = data.decode().split("\n")[:-1]
        if len(lines) != self.manifest["samples"]:
            raise CorruptDataError(f"{path}: {len(lines)} lines, {self.manifest['samples']} samples in the manifest")
        return lines

    def missing(self) -> list[str]:
        """Names of the missing shards; [] for a server, whose shards cannot be listed."""
        existing = self.storage.names()
        return [row["name"] for row in self.manifest["shards"] if existing is not None and row["name"] not in existing]

    def shard_path(self, shard: int) -> Path:
        row = self.manifest["shards"][shard]
        return self.storage.path(row["name"], row["bytes"], row["sha256"])

    def keys(self, shard: int) -> Callable[[int], str]:
        """A function from a byte offset in a shard to the key of the sample there; reads the shard's headers once."""
        found = list(members(self.shard_path(shard)))
        if not found:
            raise CorruptDataError(f"{self.shard_path(shard)}: no members")
        offsets = [member.offset for member in found]

        def key(offset: int) -> str:
            return split_key(found[max(bisect.bisect_right(offsets, offset) - 1, 0)].name)[0]

        return key


def open_shardset(storage: Storage, name: str) -> ShardSet:
    """Open the dataset in `storage`; `name` is for messages.

    Raises UsageError if there is none, or manifest and index are corrupt or do not match.
    """
    manifest_path = storage.path("manifest.json")
    try:
        data = manifest_path.read_bytes()
    except OSError:
        folder = manifest_path.parent
        fix = "index" if any(folder.glob("*.tar")) else "make"
        what = f"{name} has no manifest.json" if folder.is_dir() else f"there is nothing at {name}"
        raise UsageError(f"data.shards: {what}; create it with `distgan shards {fix}`") from None
    try:
        manifest = json.loads(data)
        if manifest["format"] != FORMAT:
            raise UsageError(f"{name}: manifest.json has format {manifest['format']!r}; this version reads {FORMAT!r}")
        check_manifest(manifest)
        row = manifest["index"]
        columns = map_columns(storage.path("index.npz", row["bytes"], row["sha256"]))
        counts = np.array([shard["samples"] for shard in manifest["shards"]], dtype=np.int64)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{name}: manifest.json is corrupt ({error!r}); restore it, or re-create the dataset"
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{name}: index.npz is missing or corrupt ({error}); re-create it with `distgan shards index`"
        ) from None
    if counts.sum() != len(columns["offset"]):
        raise UsageError(f"{name}: index.npz does not match the manifest; `distgan shards index` re-creates it")
    return ShardSet(storage, manifest, hashlib.sha256(data).hexdigest(), columns, counts)


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raises KeyError or TypeError for missing keys, wrong types and unsafe file names."""
    for key, kind in {"samples": int, "size": int, "channels": int, "encoding": str, "classes": list}.items():
        if not isinstance(manifest[key], kind):
            raise TypeError(f"{key}: {manifest[key]!r}")
    if manifest["encoding"] not in ENCODINGS.values() or manifest["channels"] not in (1, 3):
        raise TypeError(f"encoding: {manifest['encoding']!r}, channels: {manifest['channels']}")
    files = [manifest["index"] | {"name": "index.npz", "samples": 0}, *manifest["shards"]]
    if "sources" in manifest:
        files.append(manifest["sources"] | {"name": SOURCES, "samples": 0})
    for row in files:
        path = PurePosixPath(row["name"])
        if path.is_absolute() or ".." in path.parts or not re.fullmatch("[0-9a-f]{64}", row["sha256"]):
            raise TypeError(f"file {row['name']!r} with sha256 {row['sha256']!r}")
        if not isinstance(row["bytes"], int) or not isinstance(row["samples"], int):
            raise TypeError(f"file {row['name']!r} with {row['bytes']!r} bytes, {row['samples']!r} samples")


def map_columns(path: Path) -> dict[str, np.ndarray]:
    """Memory-map the arrays of an uncompressed .npz (numpy maps only single .npy files).

    Raises OSError, ValueError or BadZipFile.
    """
    columns = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for name, dtype in COLUMNS.items():
            member = archive.getinfo(f"{name}.npy")
            file.seek(member.header_offset + 26)
            name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(name_length + extra_length, os.SEEK_CUR)
            shape, _, found = read_npy_header(file)
            if found != dtype or len(shape) != 1 or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"column {name} is not a stored {np.dtype(dtype)} array")
            count = shape[0]
            columns[name] = np.memmap(file, dtype, "r", file.tell(), (count,)) if count else np.empty(0, dtype)
    return columns


def read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran order, and dtype of a .npy; leaves `file` at the data. Raises ValueError."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def commit(folder: Path, manifest: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    """Write index.npz, then manifest.json, each atomically. The manifest completes the dataset."""
    buffer = io.BytesIO()
    arrays = {name: np.asarray(columns[name], dtype) for name, dtype in COLUMNS.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(folder / "index.npz", buffer.getvalue())
    manifest["index"] = {"bytes": buffer.tell(), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    atomic_write(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


def class_rows(names: Sequence[str], labels: np.ndarray) -> list[dict[str, Any]]:
    """The manifest's `classes`: [{"name": ..., "samples": ...}, ...]."""
    counts = np.bincount(labels, minlength=len(names)) if len(names) else []
    return [{"name": name, "samples": int(count)} for name, count in zip(names, counts, strict=True)]


def channel_stats(sums: np.ndarray, squares: np.ndarray, count: int) -> dict[str, list[float]]:
    """The manifest's `mean` and `std` per channel (0 to 255), from sums over `count` pixels."""
    mean = np.asarray(sums) / count
    std = np.sqrt(np.maximum(np.asarray(squares) / count - mean**2, 0))
    return {name: [round(float(value), 4) for value in values] for name, values in (("mean", mean), ("std", std))}
