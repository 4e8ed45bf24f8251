"""Images by their address: a dataset, or what `distgan shards make` reads, converted once into the cache."""

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from distgan.errors import RunError, UsageError, format_os_error

if TYPE_CHECKING:
    from distgan.dataset_tool.sources.source import Source
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.originals import RealImageSet

T = TypeVar("T")
RULE = 1
"""Version of what decides a converted dataset: another one is converted again, beside the old one."""
BEAT_SECONDS = 60.0
"""Between two signs of life of a conversion, for the processes that wait for it: less than a collective's time-out."""
SPLIT = "train"
"""Of sources that have several."""
STACKED = 128_000
"""Images of stacked-mnist."""


class Conversion(NamedTuple):
    """The dataset that a source was converted to, and what was done; "" if it was there."""

    folder: str
    line: str


def open_images(
    address: str, processes: "Distributed", cache: Path, option: str, keys: Mapping[str, Any] | None = None
) -> "RealImageSet":
    """The images at `address`, opened on all processes; called by all.

    A dataset is opened as it is; of a dataset of latents, the images that were encoded. Of another source, which is all
    that `distgan shards make` reads, the main process makes a dataset in CACHE/datasets as that command does, unless it
    is there, and prints what it did. `option` is the one that gives the address, for errors; `keys` are those of `data`
    in a run's configuration. Raises UsageError.
    """
    from distgan.data.dataset import open_dataset
    from distgan.evaluation.originals import real_images_of

    if is_dataset(address):
        return processes.run_on_all(lambda: real_images_of(open_dataset(address, keys), address, keys))
    found = run_long_on_main(processes, lambda: convert(address, cache / "datasets", option))
    if processes.is_main_process and found.line:
        print(found.line, flush=True)
    opened = processes.run_on_all(lambda: open_converted(found.folder, address, option))
    processes.check_same_on_all_ranks(f"the dataset made of {address}", opened.dataset.digest)
    return opened


def open_converted(folder: str, address: str, option: str) -> "RealImageSet":
    """The dataset that the main process has made. Raises UsageError where this process does not see it."""
    from distgan.data.dataset import open_dataset
    from distgan.evaluation.originals import RealImageSet

    if not is_dataset(folder):
        fix = "give a --cache_dir that all machines see"
        raise UsageError(f"{option}: {address} was converted into {folder}, which is not there; {fix}")
    return RealImageSet(open_dataset(folder), address)


def is_dataset(address: str) -> bool:
    """Whether it is the address of a dataset, which may be unfinished: a server, or a folder with a manifest."""
    if "://" in address:
        return not address.startswith("hf://")
    return any((Path(address) / name).exists() for name in ("manifest.json", ".making"))


def convert(address: str, folder: Path, option: str) -> Conversion:
    """Make a dataset of a source in a folder of its own inside of `folder`, unless it is there. Raises UsageError.

    An interrupted conversion is gone on with; one of another process of this node is waited for. Errors name `option`.
    """
    from distgan.dataset_tool.convert import Options, resolve_options
    from distgan.dataset_tool.make import make
    from distgan.dataset_tool.plan import plan_dataset, sha256_json
    from distgan.locks import locked_file

    source = open_source(address, option)
    with advised(address, option):
        options = resolve_options(source, Options())
    where = os.path.realpath(address) if Path(address).exists() else address
    dest = folder / sha256_json([RULE, where, plan_dataset(source, options, True)[0].digest()])[:32]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked_file(folder / f".{dest.name}.lock"):
            if is_intact(dest):
                return Conversion(str(dest), "")
            with advised(address, option):
                manifest = make(source, dest, options, len(os.sched_getaffinity(0)))
    except OSError as error:
        raise RunError(f"{address} cannot be converted into {folder}: {format_os_error(error)}") from None
    assert manifest is not None, "it was made in one part"
    shape = f"{options.size}x{options.channels}"
    labels = f"{len(manifest.classes)} classes" if manifest.classes else "no classes"
    return Conversion(str(dest), f"{address}: {manifest.samples:,} images {shape}, {labels}, converted into {dest}")


def is_intact(dest: Path) -> bool:
    """Whether the dataset is there with all of its shards; removes what a cleaned cache has left of a finished one."""
    from distgan.data.dataset import open_dataset

    if (dest / ".making").exists() or not dest.exists():
        return False
    try:
        open_dataset(str(dest))
        return True
    except UsageError:
        shutil.rmtree(dest)
        return False


def open_source(address: str, option: str) -> "Source":
    """The source, with the labels that `shards make` finds; where these are ambiguous, without, which is said.

    Raises UsageError.
    """
    from distgan.dataset_tool import sources

    if "://" not in address and address not in sources.BUILTIN and not Path(address).exists():
        raise UsageError(f"{option}: there is nothing at {address}")
    words: dict[str, Any] = {"split": SPLIT, "files": None, "samples": STACKED, "seed": 0}
    try:
        return sources.open_source(address, labels="auto", **words)
    except UsageError as error:
        try:
            source = sources.open_source(address, labels="none", **words)
        except UsageError:
            where = "" if address in str(error) else f"{address}: "
            raise UsageError(f"{option}: {where}{error}") from None
        print(f"note: {address} is read without labels: {error}", file=sys.stderr)
        return source


@contextlib.contextmanager
def advised(address: str, option: str) -> Iterator[None]:
    """Adds to the error of a conversion, of whose list of images one is enough, what converts such images."""
    try:
        yield
    except UsageError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        what = f"{lines[0].partition(';')[0]} ({lines[1]})" if len(lines) > 1 else lines[0]
        fix = f"`distgan shards make {address} DEST --size N` makes a dataset of images of several sizes"
        raise UsageError(f"{option}: {address}: {what}; {fix}, --skip_bad leaves out damaged ones: give DEST") from None


def run_long_on_main(processes: "Distributed", work: Callable[[], T]) -> T:
    """`run_on_main` for work that may take longer than a collective waits: the others see signs of life meanwhile."""
    if processes.world_size == 1:
        return processes.run_on_main(work)
    if not processes.is_main_process:
        while not processes.all_reduce_max(0):
            pass
        return processes.run_on_main(work)
    done = threading.Event()

    def beat() -> None:
        with contextlib.suppress(RuntimeError):  # a lost process is named by the next collective
            while not done.wait(BEAT_SECONDS):
                processes.all_reduce_max(0)

    def work_while_beating() -> T:
        beating = threading.Thread(target=beat, daemon=True)
        beating.start()
        try:
            return work()
        finally:
            done.set()
            beating.join()
            processes.all_reduce_max(1)

    return processes.run_on_main(work_while_beating)
