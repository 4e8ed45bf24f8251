"""Writing a set of shards: in parallel, each shard whole or not at all, the same bytes for the same input.

A shard is written to a temporary name, fsynced, scanned and renamed; its rows wait in DEST/.making until all are
there. Killed at any instant, the same command goes on with the shards that are missing. The manifest comes last.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image, ImageOps
from tqdm import tqdm

from distgan import RunError, UsageError, __version__
from distgan.data.shardset import COLUMNS, FORMAT, class_rows, commit
from distgan.dataset_tool.scan import Scan
from distgan.dataset_tool.sources import Source
from distgan.files import atomic_write, sha256_file

STAMPS = ".source"  # beside the manifest, since the time of a file is no part of what a set is
RESIZES = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}


@dataclass(frozen=True)
class Options:
    """How images become samples; recorded in the manifest."""

    size: int | None
    channels: int
    crop: str
    resize: str
    background: str
    format: str
    quality: int
    seed: int
    shard_mb: float
    skip_bad: bool


@dataclass
class Written:
    """What one shard turned out to be."""

    name: str
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    sums: list[int] = field(default_factory=list)
    squares: list[int] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    converted: dict[str, int] = field(default_factory=dict)


def make(source: Source, dest: Path, options: Options, jobs: int) -> dict[str, Any]:
    """Write `source` as a set into the folder `dest`; returns the manifest. Raises UsageError.

    The images are ordered by the hash of (seed, name) before they are cut into shards: a class-sorted folder gives
    mixed shards. An image that cannot be used fails the command, after all were tried, with a list.
    """
    options = settle(source, options)
    hashes = [
        hashlib.sha256(f"{options.seed}|{name}".encode(errors="surrogateescape")).digest() for name in source.names
    ]
    order = sorted(range(len(source)), key=hashes.__getitem__)
    listing = [source.names, source.labels.tolist() if source.labels is not None else None, source.classes]
    origin = {
        "name": source.name,
        "images": len(source),
        "sha256": hashlib.sha256(json.dumps(listing).encode()).hexdigest(),
    }
    stamps = hashlib.sha256(json.dumps(source.stamps).encode()).hexdigest()
    with alone_in(dest):
        if (dest / "manifest.json").exists():
            return finished(dest, options, origin, stamps)
        parts = cut(source, order, options)
        making = dest / ".making"
        continue_or_start(making, dest, {"options": asdict(options), "source": origin, "stamps": stamps})
        return write(source, dest, making, options, origin, parts, jobs)


@contextlib.contextmanager
def alone_in(dest: Path) -> Iterator[None]:
    """Hold the folder `dest` against a second `make`; one that was made for nothing is removed. Raises UsageError."""
    try:
        dest.mkdir(parents=True, exist_ok=True)
        handle = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{dest} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{dest}: another `shards make` is writing it; wait for it") from None
        yield
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            dest.rmdir()


def finished(dest: Path, options: Options, origin: dict[str, Any], stamps: str) -> dict[str, Any]:
    """The manifest of the set in `dest`, if it is the one asked for and all of it is there. Raises UsageError."""
    try:
        manifest = json.loads((dest / "manifest.json").read_bytes())
        same = (manifest.get("options"), manifest.get("source")) == (asdict(options), origin)
    except (ValueError, AttributeError):
        raise UsageError(f"{dest}: manifest.json is damaged; delete the folder first") from None
    if not same:
        raise UsageError(f"{dest} holds another set; give another folder, or delete this one first")
    stamped = dest / STAMPS
    if stamped.exists() and stamped.read_text().strip() != stamps:
        raise UsageError(f"{dest} was made before the images changed; give another folder, or delete this one first")
    for row in manifest["shards"]:
        path = dest / row["name"]
        if not path.exists() or path.stat().st_size != row["bytes"]:
            raise UsageError(f"{dest}: {row['name']} is gone or cut off; delete the folder, and make the set anew")
    shutil.rmtree(dest / ".making", ignore_errors=True)
    return manifest


def write(
    source: Source,
    dest: Path,
    making: Path,
    options: Options,
    origin: dict[str, Any],
    parts: list[list[int]],
    jobs: int,
) -> dict[str, Any]:
    """The shards that are missing, then the manifest."""
    pending = [i for i in range(len(parts)) if not is_written(dest, making, i)]
    bar = tqdm(
        total=len(source), initial=len(source) - sum(len(parts[i]) for i in pending), unit=" images", disable=None
    )
    # The workers inherit the source by fork, so that nothing of it is pickled.
    pool = ProcessPoolExecutor(
        jobs,
        multiprocessing.get_context("fork"),
        initializer=start_worker,
        initargs=(os.getpid(), source, dest, options),
    )
    try:
        with bar, pool:
            waiting = {pool.submit(write_shard, i, parts[i]): len(parts[i]) for i in pending}
            for done in as_completed(waiting):
                done.result()
                bar.update(waiting[done])
    except BrokenProcessPool:
        what = "a process that writes shards was killed, perhaps for its memory (--jobs 1 takes least)"
        raise RunError(f"{dest}: {what}; the same command goes on") from None
    return finish(source, dest, making, options, origin, len(parts))


def settle(source: Source, options: Options) -> Options:
    """Fill in what the source decides: channels and size."""
    size = options.size or source.size
    if size is None:
        try:
            image = opened(source, 0)
        except Exception as error:
            raise UsageError(f"{source.names[0]}: {error}; give --size N to have all bad images listed") from None
        with image:
            if image.width != image.height:
                raise UsageError(f"{source.names[0]} is {image.width}x{image.height}; give --size N to crop and resize")
            size = image.width
    resize = options.resize if options.size else "none"
    channels = options.channels or source.channels
    return dataclasses.replace(options, size=size, resize=resize, channels=channels)


def opened(source: Source, number: int) -> Image.Image:
    image = source.load(number)
    return image if isinstance(image, Image.Image) else Image.fromarray(image.squeeze())


def cut(source: Source, order: list[int], options: Options) -> list[list[int]]:
    """Shards of about `shard_mb`, equal within one sample."""
    assert options.size is not None
    pixels = options.size**2 * options.channels
    member = (
        {"npy": 1.0, "png": 0.6, "jpg": 0.25}[options.format] * pixels
        + 1024
        + (1024 if source.labels is not None else 0)
    )
    shards = max(1, min(len(order), round(len(order) * member / (options.shard_mb * 1e6))))
    return [part.tolist() for part in np.array_split(np.array(order), shards)]


def is_written(dest: Path, making: Path, number: int) -> bool:
    return (making / f"{shard_name(number)}.npz").exists() and (dest / shard_name(number)).exists()


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def continue_or_start(making: Path, dest: Path, plan: dict[str, Any]) -> None:
    text = json.dumps(plan, sort_keys=True)
    plan_file = making / "plan.json"
    if plan_file.exists():
        if plan_file.read_text() != text:
            raise UsageError(f"{dest} holds an unfinished set of another source or other options; delete it first")
        return
    foreign = [p.name for p in dest.iterdir() if p != making] if dest.is_dir() else []
    if foreign:
        raise UsageError(f"{dest} is not empty (it has {foreign[0]}); a set needs a folder of its own")
    making.mkdir(parents=True, exist_ok=True)
    atomic_write(plan_file, text.encode())


WORK: tuple[Source, Path, Options]  # of a worker, set once by start_worker


def remove(dest: Path, shards: int) -> None:
    """What `make` wrote into `dest`, and nothing else."""
    for number in range(shards):
        (dest / shard_name(number)).unlink(missing_ok=True)
        (dest / f".{shard_name(number)}.tmp").unlink(missing_ok=True)
    shutil.rmtree(dest / ".making", ignore_errors=True)


def start_worker(parent: int, source: Source, dest: Path, options: Options) -> None:
    global WORK
    WORK = source, dest, options
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: int) -> None:
    """A worker of a killed parent would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def write_shard(number: int, members: list[int]) -> None:
    source, dest, options = WORK
    written = Written(shard_name(number), sums=[0] * options.channels, squares=[0] * options.channels)
    temporary = dest / f".{written.name}.tmp"
    with open(temporary, "wb") as file:
        with wds.writer.TarWriter(file, encoder=False, mtime=0, user="root", group="root") as tar:
            for image_number in members:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error", Image.DecompressionBombWarning)
                        pixels = prepare(source.load(image_number), options, written.converted)
                except Exception as error:  # decoders and archives raise whatever they like
                    written.bad.append(f"{source.names[image_number]}: {error}")
                    continue
                sample: dict[str, Any] = {"__key__": f"{image_number:09d}", options.format: encode(pixels, options)}
                if source.labels is not None:
                    sample["cls"] = str(source.labels[image_number]).encode()
                tar.write(sample)
                flat = pixels.reshape(-1, options.channels).astype(np.int64)
                written.sums = (flat.sum(0) + written.sums).tolist()
                written.squares = ((flat**2).sum(0) + written.squares).tolist()
                written.samples += 1
        file.flush()
        os.fsync(file.fileno())
    written.bytes, written.sha256 = temporary.stat().st_size, sha256_file(temporary)
    columns = Scan(temporary).arrays()
    os.replace(temporary, dest / written.name)
    rows = io.BytesIO()
    np.savez(rows, meta=np.array(json.dumps(asdict(written))), **columns)  # type: ignore[arg-type]
    atomic_write(dest / ".making" / f"{written.name}.npz", rows.getvalue())


def prepare(image: Image.Image | np.ndarray, options: Options, converted: dict[str, int]) -> np.ndarray:
    """uint8 [size, size, channels] of any image. Raises ValueError where `crop none` meets a rectangle.

    Policies: turned as EXIF says; 16-bit divided by 257; transparency laid on the background colour; CMYK, palette
    and grey converted by Pillow; resized with Pillow's antialiased filters, after a centre crop to a square.
    """
    assert options.size is not None
    if isinstance(image, np.ndarray):
        if image.shape == (options.size, options.size, options.channels):
            return image
        image = Image.fromarray(image.squeeze())

    def note(what: str) -> None:
        converted[what] = converted.get(what, 0) + 1

    upright = ImageOps.exif_transpose(image)
    if upright.size != image.size or upright.getexif() != image.getexif():
        note("turned as EXIF says")
    image = upright
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        note("16-bit")
        image = Image.fromarray((np.clip(np.asarray(image).astype(np.int64), 0, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        note("transparent")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, options.background), image)
    mode = "L" if options.channels == 1 else "RGB"
    if image.mode not in (mode, "RGBA"):
        note(f"from {image.mode}")
    image = image.convert(mode)
    if options.crop == "none" and image.width != image.height:
        raise ValueError(f"{image.width}x{image.height} is not square; --crop center cuts it")
    if image.size != (options.size, options.size):
        if options.resize == "none":
            raise ValueError(
                f"{image.width}x{image.height}, the first image {options.size}x{options.size}; --size N resizes all"
            )
        image = ImageOps.fit(image, (options.size, options.size), RESIZES[options.resize])
    return np.array(image).reshape(options.size, options.size, options.channels)


def encode(pixels: np.ndarray, options: Options) -> bytes:
    out = io.BytesIO()
    if options.format == "npy":
        np.save(out, pixels)
    elif options.format == "png":
        Image.fromarray(pixels.squeeze()).save(out, "PNG", compress_level=6)
    else:
        Image.fromarray(pixels.squeeze()).save(out, "JPEG", quality=options.quality, subsampling=0)
    return out.getvalue()


def finish(
    source: Source, dest: Path, making: Path, options: Options, origin: dict[str, Any], shards: int
) -> dict[str, Any]:
    """Join the shards' rows into manifest.json and index.npz, and clear up."""
    rows = []
    for number in range(shards):
        with np.load(making / f"{shard_name(number)}.npz") as stored:
            rows.append((Written(**json.loads(str(stored["meta"]))), {name: stored[name] for name in COLUMNS}))
    bad = [line for written, _ in rows for line in written.bad]
    if bad and not options.skip_bad:
        remove(dest, shards)
        raise UsageError(
            f"{len(bad)} of {len(source)} images cannot be used; mend them, or leave them out with --skip_bad true:\n  "
            + "\n  ".join(bad)
        )
    columns = {name: np.concatenate([part[name] for _, part in rows]) for name in COLUMNS}
    written = [row for row, _ in rows if row.samples]
    count = sum(row.samples for row in written)
    if not count:
        remove(dest, shards)
        raise UsageError("no image was left to write")
    values = count * (options.size or 0) ** 2
    mean = np.array([row.sums for row in written]).sum(0) / values
    square = np.array([row.squares for row in written]).sum(0) / values
    manifest = {
        "format": FORMAT,
        "samples": count,
        "size": options.size,
        "channels": options.channels,
        "encoding": options.format,
        "classes": class_rows(source.classes, columns["label"]) if source.labels is not None else [],
        "mean": [round(float(value), 4) for value in mean],
        "std": [round(float(value), 4) for value in np.sqrt(np.maximum(square - mean**2, 0))],
        "shards": [{key: getattr(row, key) for key in ("name", "samples", "bytes", "sha256")} for row in written],
        "options": asdict(options),
        "source": origin,
        "converted": dict(sorted(sum((Counter(row.converted) for row in written), Counter()).items())),
        "left_out": bad,
        "made_by": f"distgan {__version__}",
    }
    atomic_write(dest / STAMPS, (json.loads((making / "plan.json").read_text())["stamps"] + "\n").encode())
    commit(dest, manifest, columns)
    for row, _ in rows:
        if not row.samples:
            (dest / row.name).unlink(missing_ok=True)
    shutil.rmtree(making)
    return manifest
