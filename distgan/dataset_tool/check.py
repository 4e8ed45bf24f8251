"""Verifying and describing datasets, and indexing shards that another program wrote."""

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distgan import CorruptDataError, UsageError, __version__
from distgan.data.order import Lanes
from distgan.data.shardset import COLUMNS, FORMAT, ShardSet, channel_stats, class_rows, commit
from distgan.data.stream import Reader
from distgan.dataset_tool.scan import Scan
from distgan.files import sha256_file

Progress = Callable[[Any], Any]
"""Wraps an iterable to show progress."""


def verify(shards: ShardSet, progress: Progress = iter) -> Iterator[str]:
    """Every error of a dataset, one line each: sizes, hashes, tar headers, and every image is decoded."""
    index = shards.storage.path("index.npz")
    if sha256_file(index) != shards.manifest["index"]["sha256"]:
        yield f"{index}: the sha256 does not match the manifest"
    reader, start = Reader(shards), 0
    for shard, row in enumerate(progress(shards.manifest["shards"])):
        ids = np.arange(start, start + row["samples"])
        start += row["samples"]
        try:
            yield from verify_shard(shards, reader, shard, ids)
        except CorruptDataError as error:
            yield str(error)
        except OSError as error:
            yield f"{row['name']}: {error.strerror}"


def verify_shard(shards: ShardSet, reader: Reader, shard: int, ids: np.ndarray) -> Iterator[str]:
    row, path = shards.manifest["shards"][shard], shards.shard_path(shard)
    if not path.exists():
        yield f"{path}: missing"
        return
    if path.stat().st_size != row["bytes"]:
        yield f"{path}: {path.stat().st_size} bytes, {row['bytes']} in the manifest"
    elif sha256_file(path) != row["sha256"]:
        yield f"{path}: the sha256 does not match the manifest"
    else:
        for id in ids:
            reader.read(np.array([id]))
        return
    # The file is corrupt: locate the first corrupt image, then compare the headers with the index.
    for id in ids:
        try:
            reader.read(np.array([id]))
        except CorruptDataError as error:
            yield str(error)
            break
    columns = Scan(path).arrays()
    if any(not np.array_equal(columns[name], shards.columns[name][ids]) for name in COLUMNS):
        yield f"{path}: its samples do not match the index"


def index(folder: Path, progress: Progress = iter) -> dict[str, Any]:
    """Write manifest.json and index.npz for the tars in `folder` (labels from .cls or .json); returns the manifest.

    In a dataset that `shards make` wrote, only index.npz is written. Raises UsageError for a folder without tars, and
    CorruptDataError if their images are not square or differ in size, channels or encoding.
    """
    rows, columns, (size, channels, encoding) = scan_folder(folder, progress)
    labels = columns["label"]
    if labels.min() < 0 <= labels.max():
        raise CorruptDataError(f"{folder}: some samples have a label and some have none")
    manifest = {
        "format": FORMAT,
        "samples": len(labels),
        "size": size,
        "channels": channels,
        "encoding": encoding,
        "classes": class_rows([str(i) for i in range(labels.max() + 1)], labels) if labels.min() >= 0 else [],
        "shards": rows,
        "made_by": f"distgan {__version__}, index",
    }
    path = folder / "manifest.json"
    if path.exists():
        existing = json.loads(path.read_text())
        if "options" in existing:  # written by `shards make`; it has class names and more that the tars do not
            if existing["shards"] != rows:
                raise UsageError(f"{folder}: its shards are not those of `shards make`; re-create the dataset")
            manifest = existing
    commit(folder, manifest, columns)
    return manifest


def scan_folder(
    folder: Path, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray], tuple[int, int, str]]:
    """The manifest's `shards`, the index columns, and the (size, channels, encoding) of the tars in `folder`."""
    paths = sorted(folder.rglob("*.tar")) if folder.is_dir() else []
    if not paths:
        raise UsageError(f"{folder}: there is no .tar in it")
    rows, parts, kind = [], [], None
    for path in progress(paths):
        scan = Scan(path)
        if scan.kind is None:
            raise CorruptDataError(f"{path}: holds no image")
        if kind not in (None, scan.kind):
            raise CorruptDataError(
                f"{path}: its images are {scan.kind}, those of {paths[0]} {kind}; "
                "all images of a dataset have the same size, channels and encoding"
            )
        kind = scan.kind
        parts.append(scan.arrays())
        name = path.relative_to(folder).as_posix()
        samples, size = len(parts[-1]["label"]), path.stat().st_size
        rows.append({"name": name, "samples": samples, "bytes": size, "sha256": sha256_file(path)})
    assert kind is not None
    return rows, {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}, kind


def statistics(shards: ShardSet, progress: Progress = iter, preview: int = 64) -> tuple[dict[str, Any], np.ndarray]:
    """Mean and std per channel (0 to 255), the number of duplicate images, and the first `preview` images.

    The images are uint8 [at most `preview`, size, size, channels].
    """
    reader, start = Reader(shards), 0
    sums, squares = np.zeros(shards.channels), np.zeros(shards.channels)
    digests: set[bytes] = set()
    first: list[np.ndarray] = []
    for row in progress(shards.manifest["shards"]):
        stop = start + row["samples"]
        for at in range(start, stop, 256):
            images = reader.read(np.arange(at, min(at + 256, stop))).images
            flat = images.reshape(-1, shards.channels).astype(np.float64)
            sums, squares = sums + flat.sum(0), squares + (flat**2).sum(0)
            first += list(images[: max(0, preview - len(first))])
            digests |= {hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images}
        start = stop
    stats = channel_stats(sums, squares, start * shards.size**2)
    return stats | {"duplicate_images": start - len(digests)}, np.stack(first)


def minibatch_keys(shards: ShardSet, order: Lanes, batch: int, start: int, count: int) -> Iterator[list[str]]:
    """The sample keys of the local lanes in `count` minibatches from global position `start` on."""
    starts = np.concatenate([[0], np.cumsum(shards.counts)])
    keys = functools.cache(shards.keys)
    for position in range(start, start + count * batch, batch):
        ids = order.ids(position, batch)
        rows = zip(np.searchsorted(starts, ids, side="right") - 1, shards.columns["offset"][ids], strict=True)
        yield [keys(int(shard))(int(offset)) for shard, offset in rows]
