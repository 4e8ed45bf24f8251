"""Encoding a dataset of images by an autoencoder: one shard of latents for each shard, on all processes.

A shard is encoded in chunks of `batch` images from its start: its bytes depend neither on the number of processes nor
on what was written before. As in `make`, it is renamed when it is whole, and the manifest is written last.
"""

import contextlib
import time
from typing import NamedTuple

from tqdm import tqdm

from distgan.data.schema import Manifest
from distgan.data.shardset import ShardSet
from distgan.dataset_tool.encode_check import Error, measure_error
from distgan.dataset_tool.encoder import Encoder
from distgan.dataset_tool.latent_writer import LatentWriter
from distgan.dataset_tool.make import lock
from distgan.dataset_tool.notes import warn
from distgan.dataset_tool.parts import shard_name
from distgan.distributed.processes import Distributed
from distgan.errors import RunError, format_os_error
from distgan.frozen.vae import Autoencoder, keep_vae

PATIENCE = 20
"""How many times as long as its longest shard the main process waits for the next one of another process."""
LEAST_PATIENCE = 600.0
"""And at least so many seconds."""


class Result(NamedTuple):
    """What `encode` did."""

    manifest: Manifest | None
    """None if other parts are missing."""
    error: Error | None
    """None if nothing was left to write."""
    encoded: int
    """Images, by all processes of this call."""
    seconds: float
    """That took."""


def encode(
    processes: Distributed,
    shards: ShardSet,
    vae: Autoencoder,
    writer: LatentWriter,
    part: tuple[int, int] | None = None,
) -> Result | None:
    """Write the latents of the dataset `shards` by all processes; what it did on the main process, else None.

    Only what is missing is written, and with `part` (i, n) only every n-th shard from the i-th on. The processes do not
    wait for each other: the main one completes the dataset when all shards are there. Raises UsageError if the folder
    holds another dataset, and RunError.
    """
    first, step = part or (1, 1)
    own = list(range(first - 1, writer.plan.shards, step))
    with contextlib.ExitStack() as stack:
        begun = processes.run_on_main(lambda: begin(writer, own, part, stack))
        if isinstance(begun, Manifest):
            if not processes.is_main_process:
                return None
            keep(vae)
            return Result(begun, None, 0, 0.0)
        start = time.monotonic()
        encoder = Encoder(shards, vae, writer, processes.device)
        dealt = begun[processes.rank :: processes.world_size]
        longest = write_shards(encoder, dealt, show=processes.is_main_process)
        if not processes.is_main_process:
            return None
        wait_for(writer, begun, max(LEAST_PATIENCE, PATIENCE * longest))
        seconds = time.monotonic() - start
        error = measure_error(encoder, own) if own else None
        keep(vae)
        manifest = writer.finish() if part is None else None
        return Result(manifest, error, sum(int(shards.counts[shard]) for shard in begun), seconds)


def keep(vae: Autoencoder) -> None:
    """Keep it for training on its latents; says so where that fails."""
    try:
        keep_vae(vae)
    except OSError as error:
        warn(f"the VAE is not kept, so that data.vae must name it: {format_os_error(error)}")


def begin(
    writer: LatentWriter, own: list[int], part: tuple[int, int] | None, stack: contextlib.ExitStack
) -> list[int] | Manifest:
    """Lock the folder, and return which of the shards are missing; or the manifest of a finished dataset."""
    stack.enter_context(lock(writer.dest, shared=part is not None))
    if writer.is_finished():
        return writer.check_finished()
    writer.start_or_resume()
    return [shard for shard in own if not writer.is_written(shard)]


def write_shards(encoder: Encoder, dealt: list[int], show: bool) -> float:
    """Write those of one process; returns how long the longest took, in seconds."""
    counts = encoder.shards.counts
    total = sum(int(counts[shard]) for shard in dealt)
    longest = 0.0
    with tqdm(total=total, unit=" images", disable=None if show else True) as bar:
        for shard in dealt:
            start = time.monotonic()
            encoder.write_shard(shard)
            longest = max(longest, time.monotonic() - start)
            bar.update(int(counts[shard]))
    return longest


def wait_for(writer: LatentWriter, shards: list[int], patience: float) -> None:
    """Wait until all `shards` are written. Raises RunError if none is for `patience` seconds."""
    missing = shards
    since = time.monotonic()
    while missing := [shard for shard in missing if not writer.is_written(shard)]:
        if len(missing) < len(shards):
            shards = missing
            since = time.monotonic()
        if time.monotonic() - since > patience:
            names = ", ".join(shard_name(shard) for shard in missing[:3])
            raise RunError(f"{writer.dest}: no process has written {names}; run the same command again to resume")
        time.sleep(0.1)
