"""Writing datasets: shards in parallel, in parts on many machines if wanted, and the same bytes for the same input.

A shard is written to a temporary file, fsynced, scanned and renamed. After a kill the same command writes the missing
shards. The manifest is written last, from what parts.py keeps of every shard.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distgan.data.schema import Manifest
from distgan.dataset_tool.convert import Options, resolve_options
from distgan.dataset_tool.latent_writer import LatentWriter
from distgan.dataset_tool.parts import DatasetWriter, read_manifest, read_plan, remove_making, shard_name
from distgan.dataset_tool.plan import plan_dataset
from distgan.dataset_tool.sources.source import Source
from distgan.errors import UsageError
from distgan.locks import lock_file
from distgan.sizes import DCGAN_HALVINGS, Size, is_taken, nearest_sizes

LOCK_SECONDS = 3.0
"""How long to wait for a lock."""


def size_warning(height: int, width: int) -> str | None:
    """A line that names the nearest sizes that the convolutional networks take; None if one takes this size."""
    size = Size(height, width)
    if is_taken(size, DCGAN_HALVINGS):
        return None
    options = " or ".join(f"--size {near}" for near in nearest_sizes(size, DCGAN_HALVINGS))
    return f"warning: no convolutional network takes {size} images; dcgan and r3gan take {options}"


def make(
    source: Source,
    dest: Path,
    options: Options,
    jobs: int,
    record_paths: bool = True,
    part: tuple[int, int] | None = None,
) -> Manifest | None:
    """Write `source` as a dataset into the folder `dest` with `jobs` processes; returns the manifest.

    With `part` (i, n), only every n-th shard from the i-th on is written; returns None, unless the dataset is complete.
    If images cannot be used, raises UsageError with a list of all of them.
    """
    from distgan.dataset_tool.workers import write_shards  # imports multiprocessing: `--help` does not wait for it

    check_conditions(source)
    options = resolve_options(source, options)
    plan, shards = plan_dataset(source, options, record_paths)
    writer = DatasetWriter(dest, plan)
    with lock(dest, shared=part is not None):
        if writer.is_finished():
            return writer.check_finished()
        writer.start_or_resume()
        first, step = part or (1, 1)
        own_shards = range(first - 1, len(shards), step)
        write_shards(source, writer, options, {shard: shards[shard] for shard in own_shards}, jobs)
        if part is None:
            return writer.finish()
        if not options.skip_bad:
            writer.check_images([writer.read_info(shard)[0] for shard in own_shards])
        return None


def check_conditions(source: Source) -> None:
    """Raises UsageError for numbers that float32, as they are stored, rounds by more than 1/1,000 of their std."""
    if source.numbers is None:
        return
    rounded = np.abs(source.numbers.astype(np.float32) - source.numbers).max(0)
    coarse = np.flatnonzero(rounded > 1e-3 * source.numbers.std(0))
    for column in coarse.tolist():
        if np.ptp(source.numbers[:, column]) > 0:
            name = source.number_names[column]
            raise UsageError(
                f"--label_columns: the numbers of {name} have more digits than the 7 that are stored; subtract what "
                f"they have in common, about {source.numbers[:, column].min():.10g}"
            )


def join(dest: Path) -> Manifest:
    """Complete the dataset that the parts of a `make` or `encode` wrote; returns the manifest. Raises UsageError."""
    with lock(dest):
        plan = read_plan(dest)
        if plan is None:
            return read_joined(dest)
        writer = DatasetWriter(dest, plan) if plan.encoded is None else LatentWriter(dest, plan, plan.encoded)
        if writer.is_finished():
            manifest = read_manifest(dest)
            writer.clean_up(manifest)
            return manifest
        missing = [shard_name(shard) for shard in range(plan.shards) if not writer.is_written(shard)]
        if missing:
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise UsageError(
                f"{dest}: {len(missing)} of {plan.shards} shards are missing ({shown}); "
                "run the parts that have not finished again"
            )
        return writer.finish()


def read_joined(dest: Path) -> Manifest:
    """The manifest of a dataset that needs no joining. Raises UsageError if there is none."""
    if not (dest / "manifest.json").exists():
        raise UsageError(f"{dest}: there is nothing to join; `distgan shards make --part I/N` first")
    manifest = read_manifest(dest)
    remove_making(dest)
    return manifest


@contextlib.contextmanager
def lock(dest: Path, *, shared: bool = False) -> Iterator[None]:
    """Create and lock the folder `dest`; removes it if it stays empty. Parts share the lock.

    Waits LOCK_SECONDS, long enough for the workers of a killed `make` to exit; then raises UsageError. On a file system
    without locks, two writers may duplicate work but cannot corrupt data. An OSError without a file names `dest`.
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
                error = f"{dest}: another `shards make` or `shards encode` is writing to it; wait for it to finish"
                raise UsageError(error) from None
        time.sleep(0.05)
