"""Checkpoints on disk: atomic, hashed, without pickle, the same for any number of processes."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from distgan.data.schema import decode
from distgan.errors import RunError, UsageError, format_os_error
from distgan.files import atomic_write, fsync_dir, sha256_file, share
from distgan.runs.schema import CheckpointState, WeightsMetadata

METADATA, BEST = "distgan", "best.json"
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Best:
    """The checkpoint with the best value of a metric."""

    images: int
    metric: str
    value: float

    def __str__(self) -> str:
        return f"best by {self.metric}, {self.value:.5g}, at {self.images:,} images"


def read_best(root: Path) -> Best | None:
    """The best checkpoint of a run folder, as its best.json names it; None if it is not there."""
    try:
        best = decode((root / BEST).read_bytes(), Best)
    except (OSError, ValueError):
        return None
    return best if (root / "checkpoints" / str(best.images)).is_dir() else None


def print_error(text: str) -> None:
    print(f"distgan: {text}", file=sys.stderr, flush=True)


class Checkpoints:
    """The folder RUN/checkpoints: one folder per checkpoint, named by images seen.

    A checkpoint is written to a temporary folder, fsynced and renamed: a folder with a number is complete. It holds
    state.json with the sha256 of every other file; a checkpoint that does not match is corrupt, and skipped on resume.
    """

    def __init__(
        self,
        folder: Path,
        keep: int = 0,
        *,
        on_written: Callable[[int], None] = lambda images: None,
        print_error: Callable[[str], None] = print_error,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.on_written = on_written
        self.print_error = print_error
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="distgan-save")
        self.writing: Future[None] | None = None
        self.writing_other: Future[None] | None = None

    @property
    def best(self) -> Best | None:
        """The checkpoint that `mark_best` named last, if it is still there."""
        return read_best(self.folder.parent)

    def mark_best(self, best: Best | None) -> None:
        """Exempt this checkpoint from deletion. Not to be called while one is being written. Raises OSError."""
        if best is not None:
            atomic_write(self.folder.parent / BEST, (json.dumps(asdict(best)) + "\n").encode())
            self._remove_old(up_to=max(self.all()))
        else:
            (self.folder.parent / BEST).unlink(missing_ok=True)

    def all(self) -> list[int]:
        """Images seen of each checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def describe_latest(self) -> str:
        """Which checkpoint there is to resume from, for messages."""
        images = self.all()
        return f"latest checkpoint: {images[-1]:,} images" if images else "there is no checkpoint yet"

    def newest(self) -> Path | None:
        """The newest complete checkpoint; prints which ones are corrupt. None if there is none at all.

        Raises RunError if all are corrupt.
        """
        checkpoints = self.all()
        for images in reversed(checkpoints):
            path = self.folder / str(images)
            fault = find_corruption(path)
            if fault is None:
                return path
            self.print_error(f"checkpoint {path} is corrupt ({fault}): skipped")
        if checkpoints:
            raise RunError(f"every checkpoint in {self.folder} is corrupt; --fresh moves the run aside and starts over")
        return None

    def save(self, files: dict[str, Tensors], state: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Write `files` (in host memory, not modified by the caller again) and `state` asynchronously.

        Blocks until the previous write is done. If that one failed, blocks until this one is done too and raises
        RunError if it failed as well.
        """
        previous = self.writing
        self.writing = None
        failed = previous is not None and previous.exception() is not None
        self.writing = self.writer.submit(self._write, files, state, metadata)
        if failed or self._other_failed():
            self.wait()

    def write_before(self, work: Callable[[], None]) -> None:
        """Have `work` write other files of the run asynchronously, before the next checkpoint is written.

        Blocks until the previous `work` is done. What one raises, OSError or SafetensorError, is printed; then the next
        `save`, when it is done, or `wait` raises RunError, and until then nothing else of the kind is written.
        """
        if self.writing_other is None or self.writing_other.exception() is None:
            self.writing_other = self.writer.submit(self._write_other, work)

    def _write_other(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, safetensors.SafetensorError) as error:
            reason = format_os_error(error) if isinstance(error, OSError) else str(error)
            message = f"a snapshot could not be written: {reason}"
            self.print_error(message)
            raise RunError(message) from None

    def wait(self) -> None:
        """Block until what was saved is on disk. Raises RunError if it could not be written."""
        other = self.writing_other
        self.writing_other = None
        if self.writing is not None:
            writing = self.writing
            self.writing = None
            try:
                writing.result()
            except (OSError, safetensors.SafetensorError) as error:
                raise RunError(self._describe_failure(error)) from None
        if other is not None and (failure := other.exception()) is not None:
            raise RunError(f"{failure}; {self.describe_latest()}")

    def _other_failed(self) -> bool:
        other = self.writing_other
        return other is not None and other.done() and other.exception() is not None

    def close(self) -> None:
        """Let a write in progress finish."""
        self.writer.shutdown()

    def remove_partial(self) -> None:
        """Remove incomplete checkpoints of a killed run."""
        for path in self.folder.glob(".*.tmp"):
            shutil.rmtree(path)

    def _describe_failure(self, error: Exception) -> str:
        return f"a checkpoint could not be written to {self.folder}: {error}; {self.describe_latest()}"

    def _write(self, files: dict[str, Tensors], state: dict[str, Any], metadata: dict[str, Any]) -> None:
        final = self.folder / str(state["images"])
        temporary = self.folder / f".{final.name}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            hashes = {}
            for name, tensors in files.items():
                path = temporary / f"{name}.safetensors"
                save_weights(path, tensors, metadata)
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
            with open(temporary / "state.json", "w") as file:
                json.dump(state | {"files": hashes}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            fsync_dir(temporary)
            shutil.rmtree(final, ignore_errors=True)  # a corrupt one that was skipped
            os.rename(temporary, final)
            fsync_dir(self.folder)
        except (OSError, safetensors.SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self.print_error(self._describe_failure(error))
            raise
        self._remove_old(up_to=state["images"])  # newer ones are corrupt and were skipped
        self.on_written(state["images"])

    def _remove_old(self, up_to: int) -> None:
        if not self.keep:
            return
        best = self.best
        for images in [images for images in self.all() if images <= up_to][: -self.keep]:
            if best is None or images != best.images:
                shutil.rmtree(self.folder / str(images), ignore_errors=True)


def save_weights(path: Path, tensors: Tensors, metadata: Mapping[str, Any]) -> None:
    """Write a .safetensors file with what its weights are of. Raises OSError and SafetensorError."""
    save_file(tensors, path, metadata={METADATA: json.dumps(metadata, sort_keys=True)})
    share(path)


def read_state(path: Path) -> CheckpointState:
    """state.json of a checkpoint. Raises OSError, or ValueError."""
    return decode((path / "state.json").read_bytes(), CheckpointState)


def find_corruption(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    name = "state.json"
    try:
        state = read_state(path)
        if str(state.images) != path.name:
            return f"state.json is of {state.images} images"
        for name, expected in state.files.items():
            if sha256_file(path / name) != expected:
                return f"the sha256 of {name} does not match state.json"
    except FileNotFoundError:
        return f"{name} is missing"
    except (OSError, ValueError) as error:
        return f"{name} is unreadable ({error})"
    return None


def load(path: Path) -> tuple[dict[str, Tensors], CheckpointState]:
    """The tensors of a checkpoint by file, and its state. Raises RunError."""
    try:
        state = read_state(path)
        return {Path(name).stem: load_file(path / name) for name in state.files}, state
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise RunError(f"checkpoint {path} is corrupt ({error})") from None


def load_weights(path: Path) -> tuple[Tensors, WeightsMetadata]:
    """The tensors and the metadata of one .safetensors file of a checkpoint. Raises UsageError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = decode((file.metadata() or {})[METADATA], WeightsMetadata)
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}; give a run folder or a .safetensors file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a complete .safetensors file: {error}") from None
    except KeyError:
        raise UsageError(f"{path} is not a distgan checkpoint (its metadata has no {METADATA!r})") from None
    except ValueError as error:
        raise UsageError(f"{path}: its metadata does not describe a distgan network ({error})") from None
