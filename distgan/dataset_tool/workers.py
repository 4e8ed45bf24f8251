"""The worker processes that write shards."""

import contextlib
import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from distgan.data.index_file import NUMBERS
from distgan.dataset_tool.convert import Options, encode, prepare, reason
from distgan.dataset_tool.parts import DatasetWriter, own_name, shard_name
from distgan.dataset_tool.scan import Scan
from distgan.dataset_tool.shard_info import ShardInfo
from distgan.dataset_tool.sources.source import Source, escape_name
from distgan.dataset_tool.tar_writer import open_tar
from distgan.dataset_tool.value_range import KEPT_OF_ALL, KEPT_OF_SHARD
from distgan.errors import RunError


def write_shards(
    source: Source, writer: DatasetWriter, options: Options, shards: dict[int, list[int]], jobs: int
) -> None:
    """Write those of `shards`, image indices by shard, that are missing. Raises RunError if a worker is killed.

    On any error, and on Ctrl-C, the workers end at once: what they have not written is left to the next `make`.
    """
    import webdataset  # noqa: F401 - imports torch, which takes a second: here once, before the workers are forked

    pending = [shard for shard in shards if not writer.is_written(shard)]
    total = sum(map(len, shards.values()))
    bar = tqdm(total=total, initial=total - sum(len(shards[shard]) for shard in pending), unit=" images", disable=None)
    # The workers inherit the source by fork, so that it need not be picklable.
    context = multiprocessing.get_context("fork")
    stopped, stop = context.Pipe(duplex=False)
    job = Job(source, writer, options)
    pool = ProcessPoolExecutor(jobs, context, initializer=start_worker, initargs=(stopped, stop, job))
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
        cause = "a worker process was killed, perhaps out of memory (--jobs 1 needs the least)"
        raise RunError(f"{writer.dest}: {cause}; re-run the same command to resume") from None


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


class Job(NamedTuple):
    """What all workers have in common."""

    source: Source
    writer: DatasetWriter
    options: Options
    """Resolved."""


JOB: Job
"""Set once per worker, by `start_worker`."""


def start_worker(stopped: Connection, stop: Connection, job: Job) -> None:
    global JOB
    JOB = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent says when to stop
    stop.close()  # the parent has the only other end, which is closed if it is killed
    threading.Thread(target=exit_when, args=(stopped,), daemon=True).start()


def exit_when(stopped: Connection) -> None:
    """Exit when the parent stops, also if it was killed: a worker would otherwise wait for work forever."""
    stopped.poll(None)
    os._exit(1)


def write_shard(shard: int, indices: list[int]) -> None:
    """Write the images `indices` as one shard, then its rows of the index."""
    source, writer, options = JOB
    channels = options.shape[2]
    info = ShardInfo(writer.digest, shard_name(shard), sums=[0] * channels, squares=[0] * channels)
    temporary = own_name(writer.dest / info.name)
    with open_tar(temporary) as tar:
        kept = write_images(tar, indices, info)
    columns = Scan(temporary).arrays()
    columns["label"] = np.full(info.samples, -1) if source.labels is None else source.labels[kept]
    if source.numbers is not None:
        columns[NUMBERS] = source.numbers[kept].astype(np.float32)
    if source.has_paths:
        info.paths = [escape_name(source.names[index]) for index in kept]
    writer.keep_shard(shard, temporary, info, columns)


def write_images(tar: Any, indices: list[int], info: ShardInfo) -> list[int]:
    """Write the images as samples into a TarWriter, and count them in `info`; returns those that could be used."""
    source, _, options = JOB
    kept_values = max(1, min(KEPT_OF_SHARD // len(indices), KEPT_OF_ALL // len(source)))
    kept_values = kept_values if (options.range or "").strip().endswith("%") else 0
    kept: list[int] = []
    for index in indices:
        try:
            pixels, conversions = convert(source, index, options)
        except Exception as error:  # decoders and archives document no exceptions
            info.bad.append(f"{escape_name(source.names[index])}: {reason(error)}")
            continue
        kept.append(index)
        info.add(pixels, conversions, kept_values)
        sample: dict[str, Any] = {"__key__": f"{index:09d}", options.format: encode(pixels, options)}
        if source.labels is not None:
            sample["cls"] = str(source.labels[index]).encode()
        if source.numbers is not None:
            sample["json"] = numbers_json(source.number_names, source.numbers[index])
        tar.write(sample)
    return kept


def numbers_json(names: list[str], numbers: np.ndarray) -> bytes:
    """The .json member of a sample's conditions, with the values that the index holds."""
    return json.dumps(dict(zip(names, numbers.astype(np.float32).tolist(), strict=True))).encode()


def convert(source: Source, index: int, options: Options) -> tuple[np.ndarray, list[str]]:
    """An image of the source as `prepare` gives it; refuses one so large that it may be an attack."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return prepare(source.load(index), options)
