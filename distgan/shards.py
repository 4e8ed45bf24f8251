"""`distgan shards make|index|verify|stats|order`: write sets of WebDataset shards, check them, look into them."""

import functools
import os
import sys
from pathlib import Path
from typing import Any, Literal

if not __package__:  # run by path: import the package from the checkout, not this folder's modules by bare name
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jsonargparse
import numpy as np
from tqdm import tqdm

import distgan.dataset_tool.check
import distgan.dataset_tool.make
from distgan import CorruptDataError, UsageError, cli
from distgan.data.order import Lanes, rows
from distgan.data.remote import open_storage
from distgan.data.shardset import ShardSet, open_shardset
from distgan.dataset_tool.sources import open_source
from distgan.images import grid, save_png


def make(
    src: str,
    dest: str,
    size: int | None = None,
    channels: Literal["auto", "1", "3"] = "auto",
    crop: Literal["center", "none"] = "center",
    resize: Literal["lanczos", "bicubic", "box"] = "lanczos",
    format: Literal["npy", "png", "jpg"] = "npy",
    quality: int = 95,
    background: Literal["white", "black"] = "white",
    labels: str = "auto",
    split: Literal["train", "test"] = "train",
    source: str | None = None,
    samples: int = 128_000,
    seed: int = 0,
    shard_mb: float = 64,
    skip_bad: bool = False,
    jobs: int | None = None,
) -> None:
    """Write the images of SRC as a set of shards into the folder DEST.

    Args:
        src: A folder, a class-folder tree, a .zip, or digits, fashion-mnist, mnist, stacked-mnist, cifar10.
        dest: The folder to write; the same command goes on with an unfinished one.
        size: Side of the square images in pixels; default: as they are, and all alike.
        channels: 1 (grey) or 3 (RGB); auto: the data set's own, and 3 for folders and zips.
        crop: What to do with an image that is not square: cut out its centre, or refuse it.
        resize: Filter, always antialiased; recorded in the manifest, since it changes FID.
        format: npy (raw pixels, fastest to read), png, or jpg (lossy: G learns its artefacts).
        quality: Of jpg, 1 to 95, without chroma subsampling.
        background: Colour behind transparent pixels.
        labels: auto (dataset.json inside, else class folders), none, or a CSV, JSONL or dataset.json file.
        split: Of the named data sets.
        source: LocalStorage with the files of fashion-mnist, mnist, stacked-mnist or cifar10; default: download.
        samples: Images of stacked-mnist.
        seed: Of the order in the shards, and of stacked-mnist's triples.
        shard_mb: Size of a shard in MB.
        skip_bad: Leave out images that cannot be used, in place of failing with a list of them.
        jobs: Distributed; default: one a core.
    """
    if size is not None and not 4 <= size <= 4096:
        raise UsageError(f"--size: {size} is not between 4 and 4096")
    if not 1 <= quality <= 95:
        raise UsageError(f"--quality: {quality} is not between 1 and 95")
    if not shard_mb > 0 or (jobs is not None and jobs < 1) or samples < 1:
        raise UsageError("--shard_mb, --jobs and --samples must be above 0")
    opened = open_source(src, split=split, files=source, labels=labels, samples=samples, seed=seed)
    options = distgan.dataset_tool.make.Options(
        size=size,
        channels=0 if channels == "auto" else int(channels),
        crop=crop,
        resize=resize,
        background=background,
        format=format,
        quality=quality,
        seed=seed,
        shard_mb=shard_mb,
        skip_bad=skip_bad,
    )
    manifest = distgan.dataset_tool.make.make(opened, Path(dest), options, jobs or cores())
    print(f"{dest}: {describe(manifest)}")


def index(dest: str) -> None:
    """Write the manifest and the index of tars that another program wrote.

    Args:
        dest: A folder of .tar files, with .npy, .png or .jpg images and .cls or .json labels.
    """
    manifest = distgan.dataset_tool.check.index(Path(dest), progress)
    print(f"{dest}: {describe(manifest)}")


def verify(dest: str, cache_dir: str | None = None) -> None:
    """Check sizes, hashes, headers and every image of a set; exit 1 with a list where one is bad.

    Args:
        dest: A folder, or an http(s):// or s3:// address.
        cache_dir: LocalStorage for the shards of a remote set.
    """
    shards = opened(dest, cache_dir)
    faults = list(distgan.dataset_tool.check.verify(shards, progress))
    if faults:
        raise CorruptDataError(f"{dest}: {len(faults)} faults\n  " + "\n  ".join(faults))
    print(f"{dest}: {describe(shards.manifest)}; verified")


def stats(dest: str, out: str | None = None, cache_dir: str | None = None) -> None:
    """Print a set's counts by class, mean and std by channel, and duplicate images.

    Args:
        dest: A folder, or an http(s):// or s3:// address.
        out: PNG file for a grid of the first 64 images.
        cache_dir: LocalStorage for the shards of a remote set.
    """
    shards = opened(dest, cache_dir)
    facts, preview = distgan.dataset_tool.check.statistics(shards, progress)
    print(describe(shards.manifest))
    for name, value in facts.items():
        print(f"{name}: {value}")
    for row in shards.classes:
        print(f"class {row['name']}: {row['samples']}")
    sizes = shards.counts
    print(f"samples in a shard: {sizes.min()} to {sizes.max()}")
    if out:
        save_png(grid(preview), Path(out))
        print(f"wrote {out}")


def order(
    dest: str,
    seed: int = 0,
    batch: int = 64,
    world: int = 1,
    rank: int = 0,
    start: int = 0,
    count: int = 1,
    lanes: int | None = None,
    cache_dir: str | None = None,
) -> None:
    """Print the sample keys that a process reads, a line a minibatch.

    Args:
        dest: A folder, or an http(s):// or s3:// address.
        seed: The run's seed.
        batch: Global minibatch.
        world: Number of processes.
        rank: Which of them.
        start: Images seen before the first minibatch printed.
        count: Minibatches to print.
        lanes: As data.lanes.
        cache_dir: LocalStorage for the shards of a remote set.
    """
    for name, value, least in (("batch", batch, 1), ("lanes", lanes, 1), ("start", start, 0), ("count", count, 0)):
        if value is not None and value < least:
            raise UsageError(f"--{name}: {value} is too small; at least {least}")
    shards = opened(dest, cache_dir)
    lanes = lanes or max(n for n in range(1, min(64, batch) + 1) if batch % n == 0)
    if batch % lanes or start % lanes:
        raise UsageError(f"--batch {batch} and --start {start} must be multiples of the {lanes} lanes")
    if not 0 <= rank < world:
        raise UsageError(f"--rank: {rank} is not one of {world} processes")
    rows(batch, lanes, rank, world)
    plan = Lanes(shards.counts, seed, lanes, rank * lanes // world, (rank + 1) * lanes // world)
    starts = np.concatenate([[0], np.cumsum(shards.counts)])
    keys = functools.cache(shards.keys)
    for number in range(count):
        ids = plan.ids(start + number * batch, batch)
        at = np.searchsorted(starts, ids, side="right") - 1
        offsets = shards.columns["offset"][ids].tolist()
        print(*(keys(shard)(offset) for shard, offset in zip(at.tolist(), offsets, strict=True)))


def opened(dest: str, cache_dir: str | None) -> ShardSet:
    return open_shardset(open_storage(dest, cache_dir), dest)


def describe(manifest: dict[str, Any]) -> str:
    labels = f"{len(manifest['classes'])} classes" if manifest["classes"] else "no labels"
    size = sum(row["bytes"] for row in manifest["shards"]) / 1e6
    kind = f"{manifest['size']}x{manifest['size']}x{manifest['channels']} {manifest['encoding']}"
    return f"{manifest['samples']:,} images {kind}, {labels}, {len(manifest['shards'])} shards, {size:.1f} MB"


def progress(items: Any) -> Any:
    return tqdm(items, unit=" shards", disable=None)


def cores() -> int:
    return len(os.sched_getaffinity(0))


PROG = "distgan shards"
COMMANDS = {"make": make, "index": index, "verify": verify, "stats": stats, "order": order}


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for a damaged set."""
    return cli.run(lambda words: jsonargparse.auto_cli(COMMANDS, args=words, prog=PROG, parser_class=cli.Parser), argv)


if __name__ == "__main__":
    sys.exit(main())
