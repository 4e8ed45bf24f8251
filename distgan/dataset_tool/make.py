"""Writing datasets: shards in parallel, each written atomically, and the same bytes for the same input.

A shard is written to a temporary file, fsynced, scanned and renamed; its rows of the index are kept in DEST/.making
until all shards are written. After a kill the same command writes the missing shards. The manifest is written last.
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
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from distgan import RunError, UsageError, __version__
from distgan.data.schema import FORMAT, File, Manifest, Shard
from distgan.data.shardset import (
    COLUMNS,
    SOURCES,
    channel_stats,
    class_rows,
    decode_manifest,
    write_index,
    write_manifest,
)
from distgan.dataset_tool.scan import Scan
from distgan.dataset_tool.sources import Source, escape_name
from distgan.files import atomic_write, sha256_file

MAKING = ".making"
FINGERPRINT = ".source"  # not in the manifest: modification times are not part of a dataset
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
class ShardInfo:
    """What was written into a shard."""

    name: str
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    sums: list[int] = field(default_factory=list)
    """Of the pixels, per channel."""
    squares: list[int] = field(default_factory=list)
    """Sums of the squared pixels, per channel."""
    images: list[int] = field(default_factory=list)
    """The index in the source of each sample."""
    bad: list[str] = field(default_factory=list)
    """Images that cannot be used, with the reason."""
    converted: dict[str, int] = field(default_factory=dict)
    """Images by conversion."""


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


def make(source: Source, dest: Path, options: Options, jobs: int, sources: bool = True) -> Manifest:
    """Write `source` as a dataset into the folder `dest` with `jobs` processes; returns the manifest.

    The images are ordered by the hash of (seed, name) before they are split into shards: a folder sorted by class gives
    mixed shards. With `sources`, the paths of the images of a folder or zip are written to sources.txt. If images
    cannot be used, raises UsageError with a list of all of them.
    """
    options = resolve_options(source, options)
    hashes = [
        hashlib.sha256(f"{options.seed}|{name}".encode(errors="surrogateescape")).digest() for name in source.names
    ]
    order = sorted(range(len(source)), key=hashes.__getitem__)
    listing = [source.names, source.labels.tolist() if source.labels is not None else None, source.classes]
    origin = {"name": source.name, "images": len(source), "sha256": sha256_json(listing)}
    fingerprint = sha256_json(source.fingerprint)
    with exclusive_lock(dest):
        if (dest / "manifest.json").exists():
            return check_existing(dest, options, origin, fingerprint)
        parts = split_into_shards(source, order, options)
        sources = sources and source.has_paths
        plan = {"options": asdict(options), "source": origin, "fingerprint": fingerprint, "sources": sources}
        start_or_resume(dest, plan)
        write_shards(source, dest, options, parts, jobs)
        return finish(source, dest, options, plan, len(parts))


def sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@contextlib.contextmanager
def exclusive_lock(dest: Path) -> Iterator[None]:
    """Create and lock the folder `dest`; removes it if it stays empty. Raises UsageError if it is locked."""
    try:
        dest.mkdir(parents=True, exist_ok=True)
        fd = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise UsageError(f"{dest} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{dest}: another `shards make` is writing to it; wait for it to finish") from None
        yield
    finally:
        os.close(fd)
        with contextlib.suppress(OSError):
            dest.rmdir()


def check_existing(dest: Path, options: Options, origin: dict[str, Any], fingerprint: str) -> Manifest:
    """The manifest of the dataset in `dest`. Raises UsageError unless it is complete, with these options and source."""
    try:
        manifest = decode_manifest((dest / "manifest.json").read_bytes())
    except ValueError as error:
        raise UsageError(f"{dest}: {error}; delete the folder first") from None
    if (manifest.options, manifest.source) != (asdict(options), origin):
        raise UsageError(f"{dest} holds another dataset; use another folder, or delete this one first")
    path = dest / FINGERPRINT
    if path.exists() and path.read_text().strip() != fingerprint:
        raise UsageError(f"{dest}: the images have changed since; use another folder, or delete this one first")
    files = {row.name: row.bytes for row in manifest.shards}
    if manifest.sources is not None:
        files[SOURCES] = manifest.sources.bytes
    for name, size in files.items():
        if not (dest / name).exists() or (dest / name).stat().st_size != size:
            raise UsageError(f"{dest}: {name} is missing or truncated; delete the folder, then re-create it")
    shutil.rmtree(dest / MAKING, ignore_errors=True)
    return manifest


def resolve_options(source: Source, options: Options) -> Options:
    """Fill in what the source decides: channels and size. Options that are resolved stay as they are."""
    size = options.size or source.size
    if size is None:
        try:
            image = load_image(source, 0)
        except Exception as error:
            name = escape_name(source.names[0])
            raise UsageError(f"{name}: {reason(error)}; give --size N to get a list of all bad images") from None
        with image:
            if image.width != image.height:
                raise UsageError(f"{source.names[0]} is {image.width}x{image.height}; give --size N to crop and resize")
            size = image.width
    resize = options.resize if options.size else "none"
    channels = options.channels or source.channels
    return dataclasses.replace(options, size=size, resize=resize, channels=channels)


def load_image(source: Source, index: int) -> Image.Image:
    image = source.load(index)
    return image if isinstance(image, Image.Image) else Image.fromarray(image.squeeze())


def split_into_shards(source: Source, order: list[int], options: Options) -> list[list[int]]:
    """The image indices of each shard: about `shard_mb`, and equal in number within one sample."""
    assert options.size is not None
    pixels = options.size**2 * options.channels
    headers = 1024 + (1024 if source.labels is not None else 0)
    sample = {"npy": 1.0, "png": 0.6, "jpg": 0.25}[options.format] * pixels + headers
    shards = max(1, min(len(order), round(len(order) * sample / (options.shard_mb * 1e6))))
    return [part.tolist() for part in np.array_split(np.array(order), shards)]


def start_or_resume(dest: Path, plan: dict[str, Any]) -> None:
    """Create DEST/.making, or check that it is of the same plan. Raises UsageError."""
    making, text = dest / MAKING, json.dumps(plan, sort_keys=True)
    plan_file = making / "plan.json"
    if plan_file.exists():
        if plan_file.read_text() != text:
            raise UsageError(f"{dest} holds an unfinished dataset of another source or other options; delete it first")
        return
    foreign = [path.name for path in dest.iterdir() if path != making]
    if foreign:
        raise UsageError(f"{dest} is not empty (it contains {foreign[0]}); use a new folder")
    making.mkdir(exist_ok=True)
    atomic_write(plan_file, text.encode())


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def is_written(dest: Path, shard: int) -> bool:
    return (dest / MAKING / f"{shard_name(shard)}.npz").exists() and (dest / shard_name(shard)).exists()


def remove_written(dest: Path, shards: int) -> None:
    """Remove what `make` wrote into `dest`, and nothing else."""
    for shard in range(shards):
        (dest / shard_name(shard)).unlink(missing_ok=True)
        (dest / f".{shard_name(shard)}.tmp").unlink(missing_ok=True)
    shutil.rmtree(dest / MAKING, ignore_errors=True)


def write_shards(source: Source, dest: Path, options: Options, parts: list[list[int]], jobs: int) -> None:
    """Write the missing shards. Raises RunError if a worker is killed."""
    import webdataset  # noqa: F401 - imports torch, which takes a second: here once, before the workers are forked

    pending = [shard for shard in range(len(parts)) if not is_written(dest, shard)]
    written = len(source) - sum(len(parts[shard]) for shard in pending)
    bar = tqdm(total=len(source), initial=written, unit=" images", disable=None)
    # The workers inherit the source by fork, so that it need not be picklable.
    pool = ProcessPoolExecutor(
        jobs,
        multiprocessing.get_context("fork"),
        initializer=start_worker,
        initargs=(os.getpid(), source, dest, options),
    )
    try:
        with bar, pool:
            futures = {pool.submit(write_shard, shard, parts[shard]): len(parts[shard]) for shard in pending}
            for future in as_completed(futures):
                future.result()
                bar.update(futures[future])
    except BrokenProcessPool:
        reason = "a worker process was killed, perhaps out of memory (--jobs 1 needs the least)"
        raise RunError(f"{dest}: {reason}; re-run the same command to resume") from None


WORKER: tuple[Source, Path, Options]  # set once per worker by start_worker


def start_worker(parent: int, source: Source, dest: Path, options: Options) -> None:
    global WORKER
    WORKER = source, dest, options
    threading.Thread(target=exit_with_parent, args=(parent,), daemon=True).start()


def exit_with_parent(parent: int) -> None:
    """A worker whose parent was killed would otherwise wait for work forever."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def write_shard(shard: int, indices: list[int]) -> None:
    """Write the images `indices` as one shard, then its rows of the index."""
    from webdataset.writer import TarWriter

    source, dest, options = WORKER
    info = ShardInfo(shard_name(shard), sums=[0] * options.channels, squares=[0] * options.channels)
    temporary = dest / f".{info.name}.tmp"
    with open(temporary, "wb") as file:
        with TarWriter(file, encoder=False, mtime=0, user="root", group="root") as tar:
            for index in indices:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error", Image.DecompressionBombWarning)
                        pixels, conversions = prepare(source.load(index), options)
                except Exception as error:  # decoders and archives document no exceptions
                    info.bad.append(f"{escape_name(source.names[index])}: {reason(error)}")
                    continue
                info.images.append(index)
                for name in conversions:
                    info.converted[name] = info.converted.get(name, 0) + 1
                sample: dict[str, Any] = {"__key__": f"{index:09d}", options.format: encode(pixels, options)}
                if source.labels is not None:
                    sample["cls"] = str(source.labels[index]).encode()
                tar.write(sample)
                flat = pixels.reshape(-1, options.channels).astype(np.int64)
                info.sums = (flat.sum(0) + info.sums).tolist()
                info.squares = ((flat**2).sum(0) + info.squares).tolist()
                info.samples += 1
        file.flush()
        os.fsync(file.fileno())
    info.bytes, info.sha256 = temporary.stat().st_size, sha256_file(temporary)
    columns = Scan(temporary).arrays()
    columns["label"] = np.full(info.samples, -1) if source.labels is None else source.labels[info.images]
    os.replace(temporary, dest / info.name)
    rows = io.BytesIO()
    np.savez(rows, meta=np.array(json.dumps(asdict(info))), **columns)  # type: ignore[arg-type]
    atomic_write(dest / MAKING / f"{info.name}.npz", rows.getvalue())


def reason(error: Exception) -> str:
    """Why an image cannot be used, in one line: the same for the same image, so without Pillow's path or address."""
    if isinstance(error, UnidentifiedImageError):
        return "cannot identify image file"
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(message.split()) or repr(error)


def prepare(image: Image.Image | np.ndarray, options: Options) -> tuple[np.ndarray, list[str]]:
    """Any image as uint8 [size, size, channels]: EXIF-rotated, converted to 8-bit grey or RGB, center-cropped, resized.

    Also returns its conversions, by their names in the manifest's `converted`. An animation gives its first frame.
    Resizing uses Pillow's antialiased filters. Raises ValueError for floating-point pixels, and for a wrong shape or
    size if `crop` or `resize` is "none".
    """
    assert options.size is not None
    if isinstance(image, np.ndarray):
        if image.shape == (options.size, options.size, options.channels):
            return image, []
        image = Image.fromarray(image.squeeze())
    conversions: list[str] = []
    with image:
        upright = ImageOps.exif_transpose(image)  # a copy, of the first frame
        if upright.size != image.size or upright.getexif() != image.getexif():
            conversions.append("EXIF-rotated")
        if is_animated(image):
            conversions.append("animated, first frame")
    converted = convert_mode(upright, "L" if options.channels == 1 else "RGB", options.background, conversions.append)
    fitted = crop_and_resize(converted, options.size, options, conversions.append)
    return np.array(fitted).reshape(options.size, options.size, options.channels), conversions


def is_animated(image: Image.Image) -> bool:
    """Whether the image has several frames; not a JPEG with other images appended (MPO), which is one picture."""
    try:
        return image.format != "MPO" and getattr(image, "is_animated", False)
    except Exception:  # a truncated second frame: the first is all there is
        return False


def crop_and_resize(image: Image.Image, size: int, options: Options, count: Callable[[str], None]) -> Image.Image:
    if image.width != image.height:
        if options.crop == "none":
            raise ValueError(f"{image.width}x{image.height} is not square; --crop center crops it")
        count("cropped")
    if image.size == (size, size):
        return image
    if options.resize == "none":
        raise ValueError(f"{image.width}x{image.height}, the first image {size}x{size}; --size N resizes all")
    side = min(image.size)
    if side != size:
        count("resized")
    if side < size:
        count("enlarged")
    return ImageOps.fit(image, (size, size), RESIZES[options.resize])


def convert_mode(image: Image.Image, mode: str, background: str, count: Callable[[str], None]) -> Image.Image:
    """The image in `mode`: 16-bit is divided by 257, transparency is composited onto the background colour, and CMYK,
    palette and grey are converted by Pillow."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I"):
        count("16-bit")
        image = Image.fromarray((np.clip(np.asarray(image).astype(np.int64), 0, 65535) // 257).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        count("transparent")
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    if image.mode not in (mode, "RGBA"):
        count(f"from {image.mode}")
    return image.convert(mode)


def encode(pixels: np.ndarray, options: Options) -> bytes:
    out = io.BytesIO()
    if options.format == "npy":
        np.save(out, pixels)
    elif options.format == "png":
        Image.fromarray(pixels.squeeze()).save(out, "PNG", compress_level=6)
    else:
        Image.fromarray(pixels.squeeze()).save(out, "JPEG", quality=options.quality, subsampling=0)
    return out.getvalue()


def finish(source: Source, dest: Path, options: Options, plan: dict[str, Any], shards: int) -> Manifest:
    """Write the index, sources.txt and the manifest from the rows in DEST/.making, and remove it.

    Returns the manifest. Raises UsageError, and removes what was written, if images cannot be used.
    """
    infos, columns = read_rows(dest, shards)
    bad = [line for info in infos for line in info.bad]
    written = [info for info in infos if info.samples]
    if not written or (bad and not options.skip_bad):
        remove_written(dest, shards)
        fix = "fix them, or leave them out with --skip_bad" if written else "fix them"
        raise UsageError(f"{len(bad)} of {len(source)} images cannot be used; {fix}:\n  " + "\n  ".join(bad))
    samples = sum(info.samples for info in written)
    sums, squares = (np.array([getattr(info, name) for info in written]).sum(0) for name in ("sums", "squares"))
    names = [source.names[index] for info in written for index in info.images]
    stats = channel_stats(sums, squares, samples * (options.size or 0) ** 2)
    manifest = Manifest(
        format=FORMAT,
        samples=samples,
        size=options.size or 0,
        channels=options.channels,  # type: ignore[arg-type]
        encoding=options.format,  # type: ignore[arg-type]
        classes=class_rows(source.classes, columns["label"]) if source.labels is not None else [],
        mean=stats["mean"],
        std=stats["std"],
        shards=[Shard(info.name, info.samples, info.bytes, info.sha256) for info in written],
        options=asdict(options),
        source=plan["source"],
        converted=dict(sorted(sum((Counter(info.converted) for info in written), Counter()).items())),
        left_out=bad,
        made_by=f"distgan {__version__}",
        sources=write_sources(dest, names) if plan["sources"] else None,
        index=write_index(dest, columns),
    )
    atomic_write(dest / FINGERPRINT, (plan["fingerprint"] + "\n").encode())
    write_manifest(dest, manifest)
    for info in infos:
        if not info.samples:
            (dest / info.name).unlink(missing_ok=True)
    shutil.rmtree(dest / MAKING)
    return manifest


def read_rows(dest: Path, shards: int) -> tuple[list[ShardInfo], dict[str, np.ndarray]]:
    """What was written into each shard, and the columns of the index, from DEST/.making."""
    infos, parts = [], []
    for shard in range(shards):
        with np.load(dest / MAKING / f"{shard_name(shard)}.npz") as stored:
            infos.append(ShardInfo(**json.loads(str(stored["meta"]))))
            parts.append({name: stored[name] for name in COLUMNS})
    return infos, {name: np.concatenate([part[name] for part in parts]) for name in COLUMNS}


def write_sources(dest: Path, names: list[str]) -> File:
    """Write DEST/sources.txt; returns its row of the manifest."""
    data = "".join(f"{escape_name(name)}\n" for name in names).encode()
    atomic_write(dest / SOURCES, data)
    return File(len(data), hashlib.sha256(data).hexdigest())
