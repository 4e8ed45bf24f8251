"""Writing datasets: shards in parallel, in parts on many machines if wanted, and the same bytes for the same input.

A shard is written to a temporary file, fsynced, scanned and renamed. After a kill the same command writes the missing
shards. The manifest is written last, from what join.py keeps of every shard.
"""

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from distgan.data.schema import Manifest
from distgan.data.shardset import SOURCES
from distgan.dataset_tool.convert import Options, resolve_options
from distgan.dataset_tool.parts import (
    FINGERPRINT,
    Plan,
    check_images,
    clean_up,
    finish,
    lock,
    read_info,
    read_manifest,
    start_or_resume,
)
from distgan.dataset_tool.sources.source import Source
from distgan.dataset_tool.workers import write_shards
from distgan.errors import UsageError


def network_sizes() -> list[int]:
    """The image sizes that the networks of distgan take: b * 2^n up to 256, with b = 4, 5, 6 or 7 and n >= 1."""
    return sorted(b * 2**n for b in (4, 5, 6, 7) for n in range(1, 7) if b * 2**n <= 256)


def size_warning(size: int) -> str | None:
    """A line that names the nearest sizes that a network takes; None if one takes `size`."""
    sizes = network_sizes()
    if size in sizes:
        return None
    nearest = [*[s for s in sizes if s < size][-1:], *[s for s in sizes if s > size][:1]]
    return f"warning: no network takes {size}x{size} images; {' or '.join(f'--size {s}' for s in nearest)} would"


def make(
    source: Source,
    dest: Path,
    options: Options,
    jobs: int,
    sources: bool = True,
    part: tuple[int, int] | None = None,
) -> Manifest | None:
    """Write `source` as a dataset into the folder `dest` with `jobs` processes; returns the manifest.

    The images are ordered by the hash of (seed, name) before they are split into shards: a folder sorted by class gives
    mixed shards. With `sources`, the paths of the images of a folder or zip are written to sources.txt. With `part`
    (i, n), only every n-th shard from the i-th on is written; returns None, unless the dataset is complete. If images
    cannot be used, raises UsageError with a list of all of them.
    """
    options = resolve_options(source, options)
    hashes = [
        hashlib.sha256(f"{options.seed}|{name}".encode(errors="surrogateescape")).digest() for name in source.names
    ]
    order = sorted(range(len(source)), key=hashes.__getitem__)
    listing = [source.names, source.labels.tolist() if source.labels is not None else None, source.classes]
    shards = split_into_shards(source, order, options)
    plan = Plan(
        options=asdict(options),
        source={"name": source.name, "images": len(source), "sha256": sha256_json(listing)},
        fingerprint=sha256_json(source.fingerprint),
        sources=sources and source.has_paths,
        classes=None if source.labels is None else source.classes,
        shards=len(shards),
    )
    with lock(dest, shared=part is not None):
        if (dest / "manifest.json").exists():
            return check_existing(dest, plan)
        start_or_resume(dest, plan)
        first, step = part or (1, 1)
        mine = range(first - 1, len(shards), step)
        write_shards(source, dest, options, plan, {shard: shards[shard] for shard in mine}, jobs)
        if part is None:
            return finish(dest, plan)
        if not options.skip_bad:
            check_images(plan, [read_info(dest, plan, shard)[0] for shard in mine])
        return None


def sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def check_existing(dest: Path, plan: Plan) -> Manifest:
    """The manifest of the dataset in `dest`. Raises UsageError unless it is complete, and of this plan."""
    manifest = read_manifest(dest)
    if (manifest.options, manifest.source) != (plan.options, plan.source):
        raise UsageError(f"{dest} holds another dataset; use another folder, or delete this one first")
    path = dest / FINGERPRINT
    if path.exists() and path.read_text().strip() != plan.fingerprint:
        raise UsageError(f"{dest}: the images have changed since; use another folder, or delete this one first")
    files = {row.name: row.bytes for row in manifest.shards}
    if manifest.sources is not None:
        files[SOURCES] = manifest.sources.bytes
    for name, size in files.items():
        if not (dest / name).exists() or (dest / name).stat().st_size != size:
            raise UsageError(f"{dest}: {name} is missing or truncated; delete the folder, then re-create it")
    clean_up(dest, manifest, plan.shards)
    return manifest


def split_into_shards(source: Source, order: list[int], options: Options) -> list[list[int]]:
    """The image indices of each shard: about `shard_mb`, and equal in number within one sample."""
    pixels = math.prod(options.shape)
    headers = 1024 + (1024 if source.labels is not None else 0)
    sample = {"npy": 1.0, "png": 0.6, "jpg": 0.25}[options.format] * pixels + headers
    shards = max(1, min(len(order), round(len(order) * sample / (options.shard_mb * 1e6))))
    return [part.tolist() for part in np.array_split(np.array(order), shards)]
