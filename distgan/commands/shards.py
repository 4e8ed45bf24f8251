"""`distgan shards make|join|encode|index|verify|stats|order`: write, check and inspect datasets of shards."""

import os
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import numpy as np

import distgan.dataset_tool.check
import distgan.dataset_tool.index
import distgan.dataset_tool.make
from distgan.commands.encode import encode, parse_part
from distgan.commands.run import run_distributed
from distgan.config.keys import default_lanes
from distgan.config.parser import Parser
from distgan.data.manifest import encoding_of, spec_of
from distgan.data.order import Lanes, rank_rows
from distgan.data.remote.cache import open_storage
from distgan.data.schema import Manifest
from distgan.data.shardset import ShardSet, open_shardset
from distgan.dataset_tool.convert import Options, resolve_options
from distgan.dataset_tool.fit import parse_size
from distgan.dataset_tool.sources import open_source
from distgan.dataset_tool.value_range import parse_range
from distgan.errors import CorruptDataError, UsageError
from distgan.images import grid, save_picture


def make(
    src: str,
    dest: str,
    labels: str = "auto",
    label_columns: str | None = None,
    label_key: str = "label",
    image_key: str | None = None,
    layout: Literal["HWC", "CHW"] | None = None,
    split: Literal["train", "validation", "test"] = "train",
    source: str | None = None,
    samples: int = 128_000,
    record_paths: bool = True,
    jobs: int | None = None,
    part: str | None = None,
    **conversion: Any,
) -> None:
    """Write the images of SRC as a dataset of shards into the folder DEST.

    Args:
        src: A folder, a class-folder tree, a .zip, a folder of .tar or .tar.gz of another program or one of them, a
            .parquet or a folder of them, hf://OWNER/NAME[@REVISION], an LMDB folder, an .h5, .npy or .npz, or digits,
            fashion-mnist, mnist, stacked-mnist, cifar10.
        dest: The folder to write; re-run the same command to resume an unfinished one.
        labels: auto (dataset.json inside, else .cls and .json in tars, else class folders; of a table, its column with
            class names, or "label"), folders, none, or a CSV, JSONL or dataset.json file, of an .npy also an .npy.
        label_columns: The columns of the table or of the file of labels, or the keys of .json in tars, to take as
            labels, such as energy,angle:number,species:class,blond:flag; those of a CSV without a header have numbers,
            from 1. Default: the only column.
        label_key: The key of .json in tars that holds the class, a number or a name.
        image_key: Of samples in tars with several images, how the names of those to take end, such as input.jpg; of a
            table, the column or array of the images. Default: the only one.
        layout: The order of the axes of images that are arrays: HWC, or CHW for channels first. Default: as the shapes
            tell.
        split: Of the built-in datasets, and of Parquet files that have it in their names.
        source: Folder with the files of fashion-mnist, mnist, stacked-mnist or cifar10; default: download.
        samples: Images of stacked-mnist.
        record_paths: Write sources.txt, the path in the folder or zip of every sample.
        jobs: Number of processes; default: one per CPU core.
        part: I/N: write only the I-th of N parts of the shards, from 1; the other parts on other machines, in any
            order; `shards join` completes the dataset.
        conversion: The fields of Options, each an option of the command: jsonargparse inspects where they go.
    """
    options = Options(**conversion)
    which = parse_part(part)
    check_numbers(options, jobs, samples)
    opened = open_source(
        src,
        split=split,
        files=source,
        labels=labels,
        samples=samples,
        seed=options.seed,
        label_columns=label_columns,
        label_key=label_key,
        image_key=image_key,
        layout=layout,
    )
    options = resolve_options(opened, options)
    if warning := distgan.dataset_tool.make.size_warning(*options.shape[:2]):
        print(warning, file=sys.stderr)
    jobs = jobs or len(os.sched_getaffinity(0))
    manifest = distgan.dataset_tool.make.make(opened, Path(dest), options, jobs, record_paths, which)
    if manifest is None:
        print(f"{dest}: part {part} is written; when all are, `distgan shards join {dest}`")
    else:
        print_made(dest, manifest)


def check_numbers(options: Options, jobs: int | None, samples: int) -> None:
    """Raises UsageError for an option out of range."""
    if options.size is not None:
        parse_size(options.size)
    parse_range(options.range)
    if not 1 <= options.quality <= 95:
        raise UsageError(f"--quality: {options.quality} is not between 1 and 95")
    for name, value in (("shard_mb", options.shard_mb), ("jobs", jobs), ("samples", samples)):
        if value is not None and not value > 0:
            raise UsageError(f"--{name}: {value:g} is not above 0")


def print_made(dest: str, manifest: Manifest) -> None:
    print(f"{dest}: {summary(manifest)}")
    for line in details(manifest):
        print(line)


def join(dest: str) -> None:
    """Complete a dataset whose parts `make` or `encode` wrote by --part I/N: check them, write index and manifest.

    Args:
        dest: The folder of all parts.
    """
    print_made(dest, distgan.dataset_tool.make.join(Path(dest)))


def index(dest: str, label_key: str = "label", label_columns: str | None = None, range: str | None = None) -> None:
    """Write the manifest and the index of tars that another program wrote.

    Args:
        dest: A folder of .tar files, with .npy, .png or .jpg images and .cls or .json labels, or a dataset.json of
            labels; a classes.json names the classes.
        label_key: The key of a .json that holds the class, a number or a name.
        label_columns: The keys of .json, or numbers in the lists of a dataset.json, to take as labels, such as
            energy,angle:number,species:class,blond:flag; "cls" is the .cls.
        range: LOW,HIGH: the values that networks see as -1 and 1, of .npy images; default: 0,255 for uint8, else the
            least and the greatest value.
    """
    parse_range(range)
    manifest = distgan.dataset_tool.index.index(Path(dest), progress, label_key, range, label_columns)
    print(f"{dest}: {summary(manifest)}")


def verify(dest: str, cache_dir: str | None = None) -> None:
    """Check the sizes, hashes, headers and images of a dataset; exit 1 with a list of errors, if any.

    Args:
        dest: A folder, or an http(s)://, s3://, gs:// or az:// address.
        cache_dir: Folder for the shards of a remote dataset.
    """
    shards = open_dataset(dest, cache_dir)
    errors = list(distgan.dataset_tool.check.verify(shards, progress))
    if errors:
        raise CorruptDataError(f"{dest}: {len(errors)} errors\n  " + "\n  ".join(errors))
    print(f"{dest}: {summary(shards.manifest)}; verified")


def stats(
    dest: str,
    out: str | None = None,
    show: str | None = None,
    duplicates: int = 20,
    cache_dir: str | None = None,
    vae: str | None = None,
) -> None:
    """Print samples per class, mean and std per channel, and the duplicate images.

    Args:
        dest: A folder, or an http(s)://, s3://, gs:// or az:// address.
        out: PNG file for a grid of the first 64 images.
        show: Channels of the grid, from 1: 3,2,1 as red, green and blue, or 1 as grey. Default: the first.
        duplicates: Groups of equal images to list, by source file, or by key if sources are not recorded.
        cache_dir: Folder for the shards of a remote dataset.
        vae: Of a dataset of latents, what decodes them for the grid, as data.vae.
    """
    if duplicates < 0:
        raise UsageError(f"--duplicates: {duplicates} is too small; at least 0")
    shards = open_dataset(dest, cache_dir)
    statistics = distgan.dataset_tool.check.statistics(shards, progress)
    print(summary(shards.manifest))
    for name, value in statistics.values.items():
        print(f"{name}: {value}")
    print_duplicates(shards, statistics.duplicates, duplicates)
    for label in shards.classes:
        print(f"class {label.name}: {label.samples}")
    print(f"samples per shard: {shards.counts.min()} to {shards.counts.max()}")
    if out:
        save_grid(shards, statistics.images, Path(out), show, vae)


def save_grid(shards: ShardSet, stored: np.ndarray, out: Path, show: str | None, vae: str | None) -> None:
    """Draw stored samples; latents are decoded from their means. Raises UsageError."""
    import torch  # --help does not wait for it

    from distgan.frozen.vae import open_decoder
    from distgan.gan.latents import sample_posterior
    from distgan.pixels import normalize, parse_show, to_picture

    spec = shards.spec
    to_networks = normalize if spec.latents is None else sample_posterior
    images = open_decoder(spec, vae, "cpu", "--vae")(to_networks(torch.from_numpy(stored), spec))
    save_picture(grid(to_picture(images.numpy(), parse_show(show, spec.pixels.channels))), out)
    print(f"wrote {out}")


def print_duplicates(shards: ShardSet, groups: list[list[int]], count: int) -> None:
    if groups[:count]:
        name = distgan.dataset_tool.check.sample_names(shards)
        for ids in groups[:count]:
            print("duplicates: " + ", ".join(name(id) for id in ids))
    if len(groups) > count:
        print(f"duplicates: {count} of {len(groups)} groups listed; --duplicates {len(groups)} lists all")


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
    """Print the sample keys that a process reads, one line per minibatch.

    Args:
        dest: A folder, or an http(s)://, s3://, gs:// or az:// address.
        seed: Seed of the run.
        batch: Global minibatch in images.
        world: Number of processes.
        rank: Rank of the process, from 0.
        start: Images seen before the first minibatch to print.
        count: Minibatches to print.
        lanes: As data.lanes; default: the largest divisor of `batch` up to 64 and to the number of images.
        cache_dir: Folder for the shards of a remote dataset.
    """
    numbers = (("batch", batch, 1), ("lanes", lanes, 1), ("world", world, 1), ("start", start, 0), ("count", count, 0))
    for name, value, least in numbers:
        if value is not None and value < least:
            raise UsageError(f"--{name}: {value} is too small; at least {least}")
    shards = open_dataset(dest, cache_dir)
    lanes = lanes or default_lanes(batch, int(shards.counts.sum()))
    if batch % lanes or start % lanes:
        raise UsageError(f"--batch {batch} and --start {start} must be multiples of the {lanes} lanes")
    if not 0 <= rank < world:
        raise UsageError(f"--rank: {rank} is not in [0, {world}) for {world} processes")
    rank_rows(batch, lanes, rank, world)  # raises UsageError if `world` does not divide the lanes
    local = Lanes(shards.counts, seed, lanes, rank * lanes // world, (rank + 1) * lanes // world)
    for keys in distgan.dataset_tool.check.minibatch_keys(shards, local, batch, start, count):
        print(*keys)


def open_dataset(dest: str, cache_dir: str | None) -> ShardSet:
    shards = open_shardset(open_storage(dest, cache_dir), dest)
    shards.check_bounds()
    return shards


def summary(manifest: Manifest) -> str:
    classes = [f"{len(manifest.classes)} classes"] if manifest.classes else []
    numbers = [f"{row.name} ({row.kind}, {row.low:g} to {row.high:g})" for row in manifest.conditions]
    labels = ", ".join([*classes, *numbers]) or "no labels"
    megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
    shards = f"{len(manifest.shards)} shard{'s' if len(manifest.shards) > 1 else ''}"
    kind = f"{spec_of(manifest).unconditional()} {encoding_of(manifest)}"
    return f"{manifest.samples:,} images {kind}, {labels}, {shards}, {megabytes:.1f} MB"


def details(manifest: Manifest) -> Iterator[str]:
    """What `make` did to the images, one line for each kind of change."""
    left_out = manifest.left_out or []
    converted = dict(manifest.converted or {})
    if left_out:
        more = [f"and {len(left_out) - 3:,} more in manifest.json"] if len(left_out) > 3 else []
        yield f"left out: {len(left_out):,} ({'; '.join([*left_out[:3], *more])})"
    cropped, resized, enlarged = (converted.pop(name, 0) for name in ("cropped", "resized", "enlarged"))
    if converted:
        yield "converted: " + "; ".join(f"{name} ({count:,})" for name, count in converted.items())
    if resized:
        yield f"resized: {resized:,}" + (f", of which enlarged: {enlarged:,}" if enlarged else "")
    if cropped:
        yield f"cropped: {cropped:,}"


def progress(items: Any) -> Any:
    """Wraps an iterable in a progress bar."""
    from tqdm import tqdm  # --help does not wait for it

    return tqdm(items, unit=" shards", disable=None)


PROG = "distgan shards"
COMMANDS = {
    **{"make": make, "join": join, "encode": encode, "index": index},
    **{"verify": verify, "stats": stats, "order": order},
}
FLAGS = ("--skip_bad", "--record_paths", "--keep_images", "--flips")
"""Options that mean true when none of BOOLS follows."""
BOOLS = ("true", "false", "yes", "no", "on", "off")


def expand_flags(args: list[str]) -> list[str]:
    """jsonargparse asks for the value of a bool: `--skip_bad` -> `--skip_bad=true`; and takes -3,8 for an option."""
    expanded = []
    for word, value in zip_longest(args, args[1:], fillvalue=""):
        if word in FLAGS and value.lower() not in BOOLS:
            word = f"{word}=true"
        if expanded[-1:] == ["--range"]:
            word = f"{expanded.pop()}={word}"
        expanded.append(word)
    return expanded


def command(argv: list[str]) -> None:
    """Run a subcommand; without one, print the help."""
    jsonargparse.auto_cli(COMMANDS, args=expand_flags(argv or ["--help"]), prog=PROG, parser_class=Parser)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for a corrupt dataset."""
    return run_distributed(command, argv)
