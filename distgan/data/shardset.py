"""A set of shards as it lies on disk: manifest.json (what and how many), index.npz (where each image is), the tars."""

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
from typing import Any, Protocol

import numpy as np

from distgan import CorruptDataError, UsageError
from distgan.data.tar import members, split_key
from distgan.files import atomic_write, sha256_file

FORMAT = "distgan-shards-1"
COLUMNS = {"offset": np.int64, "size": np.uint32, "label": np.int32, "check": np.uint64}  # 24 bytes an image
CLASSES = 1_000_000  # at most
PIL_FORMATS = (
    "PNG",
    "JPEG",
)  # what Pillow may take an image for: left free, it starts Ghostscript on what looks like EPS
EXTENSIONS = {"npy": "npy", "png": "png", "jpg": "jpg", "jpeg": "jpg"}


class Storage(Protocol):
    """Where the files of a set are: a folder, or a server with a folder of copies."""

    def path(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        """A local path of the set's file `name`, checked against size and hash where it had to be fetched."""
        ...

    def names(self) -> set[str] | None:
        """Of the shards that are there; None where they cannot be listed."""
        ...


class LocalStorage:
    """A set on a local disk."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        return self.root / name

    def names(self) -> set[str] | None:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*.tar")}


@dataclass(frozen=True)
class ShardSet:
    """An opened set. Sample ids count along the shards in the manifest's order."""

    place: Storage
    manifest: dict[str, Any]
    digest: str
    """sha256 of manifest.json: the name of this very set."""
    columns: dict[str, np.ndarray]
    """Memory-mapped: the offset and size of each sample's image (of an .npy: its pixels), the label, and the
    xxh3 of those bytes."""
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
        """[{"name": ..., "samples": ...}, ...], or [] for a set without labels."""
        return self.manifest["classes"]

    def check_index(self) -> None:
        """Raises UsageError where index.npz is not the manifest's; reads all of it."""
        row = self.manifest["index"]
        path = self.place.path("index.npz", row["bytes"], row["sha256"])
        if sha256_file(path) != row["sha256"]:
            raise UsageError(f"data.shards: {path} is not the manifest's; `distgan shards index` makes it anew")

    def missing(self) -> list[str]:
        """Shards that are not where the set is; a server's are known when they are fetched."""
        there = self.place.names()
        return [row["name"] for row in self.manifest["shards"] if there is not None and row["name"] not in there]

    def shard_path(self, shard: int) -> Path:
        row = self.manifest["shards"][shard]
        return self.place.path(row["name"], row["bytes"], row["sha256"])

    def keys(self, shard: int) -> Callable[[int], str]:
        """Names the sample that has a given byte of a shard; walks the shard's headers once."""
        walked = list(members(self.shard_path(shard)))
        if not walked:
            raise CorruptDataError(f"{self.shard_path(shard)}: holds no member")
        offsets = [member.offset for member in walked]

        def key(offset: int) -> str:
            return split_key(walked[max(bisect.bisect_right(offsets, offset) - 1, 0)].name)[0]

        return key


def open_shardset(place: Storage, name: str) -> ShardSet:
    """Raises UsageError where there is no set or its parts do not belong together."""
    manifest_path = place.path("manifest.json")
    try:
        data = manifest_path.read_bytes()
    except OSError:
        folder = manifest_path.parent
        if not folder.is_dir():
            raise UsageError(f"data.shards: there is nothing at {name}; `distgan shards make` writes a set") from None
        mend = "`distgan shards index` makes one" if any(folder.glob("*.tar")) else "`distgan shards make` writes a set"
        raise UsageError(f"data.shards: {name} has no manifest.json; {mend}") from None
    try:
        manifest = json.loads(data)
        if manifest["format"] != FORMAT:
            raise UsageError(f"{name}: manifest.json is of format {manifest['format']!r}; this version reads {FORMAT}")
        check_manifest(manifest)
        row = manifest["index"]
        columns = map_columns(place.path("index.npz", row["bytes"], row["sha256"]))
        counts = np.array([shard["samples"] for shard in manifest["shards"]], dtype=np.int64)
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{name}: manifest.json is damaged ({error!r}); copy it there again, or make the set anew"
        ) from None
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{name}: index.npz is missing or damaged ({error}); `distgan shards index` makes it anew"
        ) from None
    if counts.sum() != len(columns["offset"]):
        raise UsageError(f"{name}: index.npz is not the manifest's; `distgan shards index` makes it anew")
    return ShardSet(place, manifest, hashlib.sha256(data).hexdigest(), columns, counts)


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raises KeyError or TypeError where the manifest lacks what reading needs, or names what it must not."""
    for key, kind in {"samples": int, "size": int, "channels": int, "encoding": str, "classes": list}.items():
        if not isinstance(manifest[key], kind):
            raise TypeError(f"{key} is {manifest[key]!r}")
    if manifest["encoding"] not in EXTENSIONS.values() or manifest["channels"] not in (1, 3):
        raise TypeError(f"images of {manifest['channels']} channels as {manifest['encoding']!r}")
    for row in [manifest["index"] | {"name": "index.npz", "samples": 0}, *manifest["shards"]]:
        path = PurePosixPath(row["name"])
        if path.is_absolute() or ".." in path.parts or not re.fullmatch("[0-9a-f]{64}", row["sha256"]):
            raise TypeError(f"a file {row['name']!r} with the sha256 {row['sha256']!r}")
        if not isinstance(row["bytes"], int) or not isinstance(row["samples"], int):
            raise TypeError(f"a file of {row['bytes']!r} bytes and {row['samples']!r} samples")


def map_columns(path: Path) -> dict[str, np.ndarray]:
    """Memory-map the arrays of an uncompressed .npz (numpy maps only single .npy files)."""
    columns = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for name, dtype in COLUMNS.items():
            member = archive.getinfo(f"{name}.npy")
            file.seek(member.header_offset + 26)
            name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
            file.seek(name_length + extra_length, os.SEEK_CUR)
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, found = read(file)
            if found != dtype or len(shape) != 1 or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"column {name} is not a stored {np.dtype(dtype)} array")
            count = shape[0]
            columns[name] = np.memmap(file, dtype, "r", file.tell(), (count,)) if count else np.empty(0, dtype)
    return columns


def commit(folder: Path, manifest: dict[str, Any], columns: dict[str, np.ndarray]) -> None:
    """Write index.npz, then manifest.json, each whole or not at all. The manifest makes the set a set."""
    buffer = io.BytesIO()
    arrays = {name: np.asarray(columns[name], dtype) for name, dtype in COLUMNS.items()}
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(folder / "index.npz", buffer.getvalue())
    manifest["index"] = {"bytes": buffer.tell(), "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    atomic_write(folder / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


def class_rows(names: Sequence[str], labels: np.ndarray) -> list[dict[str, Any]]:
    """The manifest's `classes`."""
    counts = np.bincount(labels, minlength=len(names)) if len(names) else []
    return [{"name": name, "samples": int(count)} for name, count in zip(names, counts, strict=True)]
