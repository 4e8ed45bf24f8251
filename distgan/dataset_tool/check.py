"""Checking a set, describing it, and indexing shards that another program wrote."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distgan import CorruptDataError, UsageError, __version__
from distgan.data.shardset import COLUMNS, FORMAT, ShardSet, class_rows, commit
from distgan.data.stream import Reader
from distgan.dataset_tool.scan import Scan
from distgan.files import sha256_file

Track = Callable[[Any], Any]
"""Wraps an iterable to show progress."""


def verify(shards: ShardSet, track: Track = iter) -> Iterator[str]:
    """Every fault of a set, a line each: sizes, hashes, a strict walk of the headers, every image decoded."""
    place, manifest = shards.place, shards.manifest
    index = place.path("index.npz")
    if sha256_file(index) != manifest["index"]["sha256"]:
        yield f"{index}: the sha256 is not the manifest's"
    reader, start = Reader(shards), 0
    for number, row in enumerate(track(manifest["shards"])):
        ids = np.arange(start, start + row["samples"])
        start += row["samples"]
        try:
            yield from verify_shard(shards, reader, number, ids)
        except CorruptDataError as damaged:
            yield str(damaged)
        except OSError as error:
            yield f"{row['name']}: {error.strerror}"


def verify_shard(shards: ShardSet, reader: Reader, number: int, ids: np.ndarray) -> Iterator[str]:
    row, path = shards.manifest["shards"][number], shards.shard_path(number)
    if not path.exists():
        yield f"{path}: missing"
        return
    if path.stat().st_size != row["bytes"]:
        yield f"{path}: {path.stat().st_size} bytes, {row['bytes']} in the manifest"
    elif sha256_file(path) != row["sha256"]:
        yield f"{path}: the sha256 is not the manifest's"
    else:
        for id in ids:
            reader.read(np.array([id]))
        return
    # The file is damaged: say where, as far as the headers and the images tell.
    for id in ids:
        try:
            reader.read(np.array([id]))
        except CorruptDataError as damaged:
            yield str(damaged)
            break
    columns = Scan(path).arrays()
    if any(not np.array_equal(columns[name], shards.columns[name][ids]) for name in COLUMNS):
        yield f"{path}: its samples are not those of the index"


def index(folder: Path, track: Track = iter) -> dict[str, Any]:
    """Write manifest.json and index.npz for the tars in `folder` (labels from `.cls` or `.json`); the manifest.

    Of a set that `shards make` wrote, the index alone.

    Raises UsageError for a folder without tars, CorruptDataError for one that is not a set of equal square images.
    """
    paths = sorted(folder.rglob("*.tar")) if folder.is_dir() else []
    if not paths:
        raise UsageError(f"{folder}: there is no .tar in it")
    columns: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
    rows, kind, first = [], None, paths[0]
    for path in track(paths):
        scan = Scan(path)
        if scan.kind is None:
            raise CorruptDataError(f"{path}: holds no image")
        if kind is not None and scan.kind != kind:
            raise CorruptDataError(
                f"{path} holds {scan.kind}, {first} {kind} (size, channels, encoding); a set is of one kind"
            )
        kind = scan.kind
        arrays = scan.arrays()
        for name in COLUMNS:
            columns[name].append(arrays[name])
        name = path.relative_to(folder).as_posix()
        rows.append(
            {"name": name, "samples": len(arrays["label"]), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        )
    assert kind is not None
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    labels = joined["label"]
    if labels.min() < 0 <= labels.max():
        raise CorruptDataError(f"{folder}: some samples have a label and some have none")
    manifest = {
        "format": FORMAT,
        "samples": len(labels),
        "size": kind[0],
        "channels": kind[1],
        "encoding": kind[2],
        "classes": class_rows([str(i) for i in range(labels.max() + 1)], labels) if labels.min() >= 0 else [],
        "shards": rows,
        "made_by": f"distgan {__version__}, index",
    }
    made = folder / "manifest.json"
    if made.exists():
        before = json.loads(made.read_text())
        if "options" in before:  # from `shards make`, which knows more than the tars tell
            if before["shards"] != rows:
                raise UsageError(f"{folder} holds other shards than `shards make` wrote; make the set anew")
            manifest = before
    commit(folder, manifest, joined)
    return manifest


def statistics(shards: ShardSet, track: Track = iter, grid: int = 64) -> tuple[dict[str, Any], np.ndarray]:
    """Mean and std a channel (0 to 255), duplicate images, and the first `grid` images [n, size, size, channels]."""
    reader, start = Reader(shards), 0
    total, squares = np.zeros(shards.channels), np.zeros(shards.channels)
    seen: dict[bytes, int] = {}
    duplicates, preview = 0, []
    for row in track(shards.manifest["shards"]):
        for first in range(start, start + row["samples"], 256):
            images = reader.read(np.arange(first, min(first + 256, start + row["samples"]))).images
            flat = images.reshape(-1, shards.channels).astype(np.float64)
            total, squares = total + flat.sum(0), squares + (flat**2).sum(0)
            preview += list(images[: max(0, grid - len(preview))])
            for image in images:
                digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
                duplicates += digest in seen
                seen[digest] = 1
        start += row["samples"]
    values = start * shards.size**2
    mean = total / values
    std = np.sqrt(np.maximum(squares / values - mean**2, 0))
    facts = {"mean": mean.round(4).tolist(), "std": std.round(4).tolist(), "duplicate_images": duplicates}
    return facts, np.stack(preview)
