"""Writing datasets: shards in parallel, in parts on many machines if wanted, and the same bytes for the same input.

A shard is written to a temporary file, fsynced, scanned and renamed. After a kill the same command writes the missing
shards. The manifest is written last, from what join.py keeps of every shard.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from distgan import RunError, UsageError
from distgan.data.schema import Manifest
from distgan.data.shardset import SOURCES
from distgan.dataset_tool.join import (
    FINGERPRINT,
    Plan,
    ShardInfo,
    check_images,
    clean_up,
    finish,
    is_written,
    lock,
    own_name,
    read_info,
    read_manifest,
    shard_name,
    start_or_resume,
    write_info,
)
from distgan.dataset_tool.scan import Scan
from distgan.dataset_tool.sources import Source, escape_name
from distgan.files import sha256_file

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


def write_shards(
    source: Source, dest: Path, options: Options, plan: Plan, shards: dict[int, list[int]], jobs: int
) -> None:
    """Write those of `shards`, image indices by shard, that are missing. Raises RunError if a worker is killed.

    On any error, and on Ctrl-C, the workers end at once: what they have not written is left to the next `make`.
    """
    import webdataset  # noqa: F401 - imports torch, which takes a second: here once, before the workers are forked

    pending = [shard for shard in shards if not is_written(dest, shard)]
    total = sum(map(len, shards.values()))
    bar = tqdm(total=total, initial=total - sum(len(shards[shard]) for shard in pending), unit=" images", disable=None)
    # The workers inherit the source by fork, so that it need not be picklable.
    context = multiprocessing.get_context("fork")
    stopped, stop = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        jobs, context, initializer=start_worker, initargs=(stopped, stop, source, dest, options, plan.digest())
    )
    try:
        with bar, stopped, stop, on_interrupt(stop.close), pool:
            try:
                futures = {pool.submit(write_shard, shard, shards[shard]): len(shards[shard]) for shard in pending}
                for future in as_completed(futures):
                    future.result()
                    bar.update(futures[future])
            except BaseException:
                stop.close()  # else leaving the pool waits for all shards
                raise
    except BrokenProcessPool:
        reason = "a worker process was killed, perhaps out of memory (--jobs 1 needs the least)"
        raise RunError(f"{dest}: {reason}; re-run the same command to resume") from None


@contextlib.contextmanager
def on_interrupt(work: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C calls `work`, and KeyboardInterrupt is raised at the end: anywhere else, it could leave a lock of the pool
    taken, for which its shutdown would wait forever."""
    if threading.current_thread() is not threading.main_thread():  # Python gives signals to the main thread
        yield
        return
    interrupted = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        interrupted.set()
        work()

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except Exception:
        if not interrupted.is_set():
            raise
    finally:
        signal.signal(signal.SIGINT, before)
    if interrupted.is_set():
        raise KeyboardInterrupt


WORKER: tuple[Source, Path, Options, str]  # set once per worker by start_worker


def start_worker(
    stopped: Connection, stop: Connection, source: Source, dest: Path, options: Options, plan: str
) -> None:
    global WORKER
    WORKER = source, dest, options, plan
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent says when to stop
    stop.close()  # the parent has the only other end, which is closed if it is killed
    threading.Thread(target=exit_when, args=(stopped,), daemon=True).start()


def exit_when(stopped: Connection) -> None:
    """Exit when the parent stops, also if it was killed: a worker would otherwise wait for work forever."""
    stopped.poll(None)
    os._exit(1)


def write_shard(shard: int, indices: list[int]) -> None:
    """Write the images `indices` as one shard, then its rows of the index."""
    from webdataset.writer import TarWriter

    source, dest, options, plan = WORKER
    info = ShardInfo(plan, shard_name(shard), sums=[0] * options.channels, squares=[0] * options.channels)
    kept: list[int] = []
    temporary = own_name(dest / info.name)
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
                kept.append(index)
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
    columns["label"] = np.full(info.samples, -1) if source.labels is None else source.labels[kept]
    if source.has_paths:
        info.paths = [escape_name(source.names[index]) for index in kept]
    os.replace(temporary, dest / info.name)
    write_info(dest, info, columns)


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
        # Asked first: loading a TIFF rotates it.
        if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
            conversions.append("EXIF-rotated")
        upright = ImageOps.exif_transpose(image)  # a copy, of the first frame
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
        values, transparent = np.asarray(image).astype(np.int64), image.info.get("transparency")
        image = Image.fromarray((np.clip(values, 0, 65535) // 257).astype(np.uint8))
        if transparent is not None:  # one grey value of 16 bits
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
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
