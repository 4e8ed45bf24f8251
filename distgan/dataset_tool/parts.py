"""Completing a dataset: the plan that all parts of a `make` follow, what each shard holds, and the manifest of all.

Every file is written whole under a name of its writer and then renamed, and what a shard holds depends on the plan
alone: parts may be killed, run twice, or run twice at once. What is known of a shard is kept in DEST/.making.
"""

import contextlib
import hashlib
import io
import os
import shutil
import socket
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from distgan import __version__
from distgan.data.schema import FORMAT, File, Manifest, Shard, decode
from distgan.data.shardset import (
    COLUMNS,
    SOURCES,
    channel_stats,
    class_rows,
    decode_manifest,
    write_index,
    write_manifest,
)
from distgan.errors import UsageError
from distgan.files import atomic_write
from distgan.locks import lock_file

MAKING = ".making"
PLAN = "plan.json"
LOCK_SECONDS = 3.0
"""How long a lock is waited for."""
FINGERPRINT = ".source"  # not in the manifest: modification times are not part of a dataset


class Plan(msgspec.Struct, frozen=True):
    """What decides the bytes of a dataset: plan.json in DEST/.making."""

    options: dict[str, Any]
    source: dict[str, Any]
    """The manifest's `source`."""
    fingerprint: str
    sources: bool
    """Whether sources.txt is written."""
    classes: list[str] | None
    """None: without labels."""
    shards: int

    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()


class ShardInfo(msgspec.Struct):
    """What was written into a shard."""

    plan: str
    """The digest of the plan."""
    name: str
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    sums: list[int] = []
    """Of the pixels, per channel."""
    squares: list[int] = []
    """Sums of the squared pixels, per channel."""
    paths: list[str] = []
    """The lines of sources.txt."""
    bad: list[str] = []
    """Images that cannot be used, with the reason."""
    converted: dict[str, int] = {}
    """Images by conversion."""


@contextlib.contextmanager
def lock(dest: Path, *, shared: bool = False) -> Iterator[None]:
    """Create and lock the folder `dest`; removes it if it stays empty. Parts share the lock.

    Raises UsageError if it is locked for longer than the workers of a killed `make` hold it, until they notice. Without
    it, on a file system that has no locks, writers waste work but no data. An OSError without a file names `dest`.
    """
    try:
        dest.mkdir(parents=True, exist_ok=True)
        fd = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{dest} cannot be written: {error.strerror}") from None
    try:
        wait_for_lock(fd, dest, shared)
        yield
    except OSError as error:
        if error.errno and not error.filename:  # as of a write to a full disk
            error.filename = str(dest)
        raise
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            dest.rmdir()


def wait_for_lock(fd: int, dest: Path, shared: bool) -> None:
    """Lock the open folder `dest`. Raises UsageError if that takes longer than LOCK_SECONDS."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            lock_file(fd, shared=shared, wait=False)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                error = f"{dest}: another `shards make` is writing to it; wait for it to finish"
                raise UsageError(error) from None
        time.sleep(0.05)


def own_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process has."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def write_whole(path: Path, data: bytes) -> None:
    """`atomic_write` for several writers of the same bytes at once."""
    atomic_write(own_name(path), data)
    os.replace(own_name(path), path)


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def start_or_resume(dest: Path, plan: Plan) -> None:
    """Create DEST/.making, or check that it is of the same plan. Raises UsageError."""
    path = dest / MAKING / PLAN
    if not path.exists():
        foreign = [path.name for path in dest.iterdir() if path.name != MAKING]
        if foreign and not path.exists():  # else another part has just begun
            raise UsageError(f"{dest} is not empty (it contains {foreign[0]}); use a new folder")
        path.parent.mkdir(exist_ok=True)
        write_whole(path, msgspec.json.encode(plan))
    if path.read_bytes() != msgspec.json.encode(plan):
        raise UsageError(f"{dest} holds an unfinished dataset of another source or other options; delete it first")


def write_info(dest: Path, info: ShardInfo, columns: dict[str, np.ndarray]) -> None:
    """Keep what is known of a written shard, and its rows of the index."""
    rows = io.BytesIO()
    np.savez(rows, meta=np.array(msgspec.json.encode(info).decode()), **columns)  # type: ignore[arg-type]
    write_whole(dest / MAKING / f"{info.name}.npz", rows.getvalue())


def is_written(dest: Path, shard: int) -> bool:
    return (dest / MAKING / f"{shard_name(shard)}.npz").exists() and (dest / shard_name(shard)).exists()


def read_info(dest: Path, plan: Plan, shard: int) -> tuple[ShardInfo, dict[str, np.ndarray]]:
    """Raises UsageError unless the shard was written by this plan, and is complete."""
    name, path = shard_name(shard), dest / MAKING / f"{shard_name(shard)}.npz"
    try:
        with np.load(path) as stored:
            info, columns = decode(str(stored["meta"]), ShardInfo), {key: stored[key] for key in COLUMNS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path}: {error}; delete it, and run its part again") from None
    if info.plan != plan.digest():
        raise UsageError(f"{dest}: {name} is of another source or other options; delete {dest}, then make all parts")
    if (dest / name).stat().st_size != info.bytes:
        raise UsageError(f"{dest}: {name} is truncated; delete it, and run its part again")
    return info, columns


def join(dest: Path) -> Manifest:
    """Complete the dataset that the parts of a `make` wrote; returns the manifest. Raises UsageError."""
    with lock(dest):
        try:
            plan = decode((dest / MAKING / PLAN).read_bytes(), Plan)
        except FileNotFoundError:
            if not (dest / "manifest.json").exists():
                raise UsageError(f"{dest}: there is nothing to join; `distgan shards make --part I/N` first") from None
            manifest = read_manifest(dest)
            remove_making(dest)
            return manifest
        except ValueError as error:
            raise UsageError(f"{dest}: {PLAN} is corrupt ({error}); delete the folder, then make all parts") from None
        if (dest / "manifest.json").exists():
            manifest = read_manifest(dest)
            clean_up(dest, manifest, plan.shards)
            return manifest
        missing = [shard_name(shard) for shard in range(plan.shards) if not is_written(dest, shard)]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise UsageError(
                f"{dest}: {len(missing)} of {plan.shards} shards are missing ({shown}); "
                "run the parts that have not finished again"
            )
        return finish(dest, plan)


def read_manifest(dest: Path) -> Manifest:
    """Raises UsageError."""
    try:
        return decode_manifest((dest / "manifest.json").read_bytes())
    except ValueError as error:
        raise UsageError(f"{dest}: {error}; delete the folder first") from None


def finish(dest: Path, plan: Plan) -> Manifest:
    """Write the index, sources.txt and the manifest from what is in DEST/.making, and remove it.

    Returns the manifest. Raises UsageError, and removes what was written, if images cannot be used.
    """
    read = [read_info(dest, plan, shard) for shard in range(plan.shards)]
    columns = {name: np.concatenate([part[name] for _, part in read]) for name in COLUMNS}
    infos = [info for info, _ in read]
    written = [info for info in infos if info.samples]
    try:
        bad = check_images(plan, infos)
    except UsageError:
        remove_written(dest, plan.shards)
        raise
    samples, size = sum(info.samples for info in written), plan.options["size"]
    sums, squares = (np.array([getattr(info, name) for info in written]).sum(0) for name in ("sums", "squares"))
    stats = channel_stats(sums, squares, samples * size**2)
    manifest = Manifest(
        format=FORMAT,
        samples=samples,
        size=size,
        channels=plan.options["channels"],
        encoding=plan.options["format"],
        classes=[] if plan.classes is None else class_rows(plan.classes, columns["label"]),
        mean=stats["mean"],
        std=stats["std"],
        shards=[Shard(info.name, info.samples, info.bytes, info.sha256) for info in written],
        options=plan.options,
        source=plan.source,
        converted=dict(sorted(sum((Counter(info.converted) for info in written), Counter()).items())),
        left_out=bad,
        made_by=f"distgan {__version__}",
        sources=write_sources(dest, [path for info in written for path in info.paths]) if plan.sources else None,
        index=write_index(dest, columns),
    )
    atomic_write(dest / FINGERPRINT, (plan.fingerprint + "\n").encode())
    write_manifest(dest, manifest)
    clean_up(dest, manifest, plan.shards)
    return manifest


def check_images(plan: Plan, infos: list[ShardInfo]) -> list[str]:
    """The images that were left out. Raises UsageError, with a list of them, if none may be, or none is left."""
    bad, images = [line for info in infos for line in info.bad], plan.source["images"]
    left = any(info.samples for info in infos) or not bad
    if bad and not (left and plan.options["skip_bad"]):
        fix = "fix them, or leave them out with --skip_bad" if left else "fix them"
        raise UsageError(f"{len(bad)} of {images} images cannot be used; {fix}:\n  " + "\n  ".join(bad))
    return bad


def clean_up(dest: Path, manifest: Manifest, shards: int) -> None:
    """Remove what a complete dataset does not need: shards without images, and DEST/.making. Goes on after a kill."""
    for name in {shard_name(shard) for shard in range(shards)} - {row.name for row in manifest.shards}:
        (dest / name).unlink(missing_ok=True)
    remove_making(dest)


def remove_making(dest: Path) -> None:
    for path in dest.glob(".shard-*.tmp"):  # of killed writers
        path.unlink(missing_ok=True)
    shutil.rmtree(dest / MAKING, ignore_errors=True)


def remove_written(dest: Path, shards: int) -> None:
    """Remove what `make` wrote into `dest`, and nothing else."""
    for shard in range(shards):
        (dest / shard_name(shard)).unlink(missing_ok=True)
    remove_making(dest)


def write_sources(dest: Path, lines: list[str]) -> File:
    """Write DEST/sources.txt; returns its row of the manifest."""
    data = "".join(f"{line}\n" for line in lines).encode()
    atomic_write(dest / SOURCES, data)
    return File(len(data), hashlib.sha256(data).hexdigest())
