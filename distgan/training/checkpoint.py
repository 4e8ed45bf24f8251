"""Checkpoints and the run folder: whole or not there, hashed, without pickle, the same for any number of processes."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distgan import RunError, UsageError

METADATA = "distgan"
Tensors = dict[str, Tensor]


def snapshot(network: nn.Module) -> Tensors:
    """A network's weights and buffers, copied to host memory."""
    return {name: to_host(tensor) for name, tensor in network.state_dict().items()}


def optimizer_snapshot(prefix: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """An optimizer's state as tensors named PREFIX.PARAMETER.STATE, copied to host memory."""
    return {
        f"{prefix}.{name}.{key}": to_host(value)
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def optimizer_restore(tensors: Tensors, prefix: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Undo `optimizer_snapshot`. Parameters that were never stepped have no state.

    Averages get their parameter's memory order back: a fused optimizer walks both in step.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for i, (name, parameter) in enumerate(network.named_parameters()):
        start = f"{prefix}.{name}."
        for key, value in tensors.items():
            if key.startswith(start):
                ordered = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                state.setdefault(i, {})[key[len(start) :]] = ordered.detach()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def to_host(tensor: Tensor) -> Tensor:
    # safetensors refuses channels-last strides
    return tensor.detach().to("cpu", copy=True).contiguous()


class Checkpoints:
    """The folder RUN/checkpoints: one folder a checkpoint, named by images seen.

    A checkpoint is written to a temporary folder, fsynced, and renamed: a folder with a number is whole. It holds
    state.json with the sha256 of every other file; one that does not match is passed over when resuming.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        *,
        written: Callable[[int], None] = lambda images: None,
        say: Callable[[str], None] = lambda text: print(f"distgan: {text}", file=sys.stderr, flush=True),
    ) -> None:
        self.folder, self.keep, self.written, self.say = folder, keep, written, say
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="distgan-save")
        self.writing: Future[None] | None = None

    def all(self) -> list[int]:
        """Images seen of each checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit())

    def save(self, files: dict[str, Tensors], state: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Write `files` (in host memory, not changed by the caller again) and `state` behind the loop.

        Waits for the write before it. Where that one failed, this one is waited for too: raises RunError where a disk
        took neither.
        """
        before, self.writing = self.writing, None
        failed = before is not None and before.exception() is not None
        self.writing = self.writer.submit(self._write, files, state, metadata)
        if failed:
            self.wait()

    def wait(self) -> None:
        """Until what was saved is on disk. Raises RunError where it could not be."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            try:
                writing.result()
            except (OSError, safetensors.SafetensorError) as error:
                raise RunError(self._told(error)) from None

    def _told(self, error: Exception) -> str:
        stands = self.all()
        last = f"the checkpoint at {stands[-1]:,} images stands" if stands else "there is none yet"
        return f"a checkpoint could not be written to {self.folder}: {error}; {last}"

    def _write(self, files: dict[str, Tensors], state: dict[str, Any], metadata: dict[str, Any]) -> None:
        final = self.folder / str(state["images"])
        temporary = self.folder / f".{final.name}.tmp"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            hashes = {}
            for name, tensors in files.items():
                path = temporary / f"{name}.safetensors"
                save_file(tensors, path, metadata={METADATA: json.dumps(metadata, sort_keys=True)})
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                    hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
            with open(temporary / "state.json", "w") as file:
                json.dump(state | {"files": hashes}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            sync_folder(temporary)
            shutil.rmtree(final, ignore_errors=True)  # a damaged one that was passed over
            os.rename(temporary, final)
            sync_folder(self.folder)
            self.written(state["images"])
        except (OSError, safetensors.SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            self.say(self._told(error))
            raise
        if self.keep:  # later ones are damaged, and were passed over
            for images in [images for images in self.all() if images <= state["images"]][: -self.keep]:
                shutil.rmtree(self.folder / str(images), ignore_errors=True)

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole; says which are damaged.

        None where there is none at all. Raises RunError where there are some and none is whole.
        """
        stands = self.all()
        for images in reversed(stands):
            path = self.folder / str(images)
            fault = fault_of(path)
            if fault is None:
                return path
            self.say(f"checkpoint {path} is damaged: {fault}; taking the one before it")
        if stands:
            raise RunError(f"no checkpoint in {self.folder} is whole; --fresh moves the run aside and starts over")
        return None

    def close(self) -> None:
        """Let a write under way end."""
        self.writer.shutdown()

    def clear_up(self) -> None:
        """Remove what a killed run left half written."""
        for path in self.folder.glob(".*.tmp"):
            shutil.rmtree(path)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fault_of(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        state = json.loads((path / "state.json").read_text())
        for name, expected in state["files"].items():
            with open(path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected:
                    return f"the sha256 of {name} is not that of state.json"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"state.json is unreadable ({error})"
    return None


def load(path: Path) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The files of a checkpoint, by name, and its state."""
    state = json.loads((path / "state.json").read_text())
    return {Path(name).stem: load_file(path / name) for name in state["files"]}, state


def load_weights(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors of one .safetensors file of ours, and the metadata it carries. Raises UsageError."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA])
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 - no mapping
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a whole .safetensors file: {error}") from None
    except (KeyError, json.JSONDecodeError):
        raise UsageError(f"{path} holds no distgan networks (its metadata has no {METADATA!r})") from None


class RunFolder:
    """Takes RUN for this process, until it ends: a lock that a killed run does not leave behind. Raises UsageError."""

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
            self.lock = open(root / ".lock", "a")  # noqa: SIM115 - held open
        except OSError as error:
            raise UsageError(f"run_dir: {root} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.close()
            raise UsageError(
                f"run_dir: another run is writing to {root}; wait for it, or give another run_dir"
            ) from None
        except OSError as error:
            self.lock.close()
            what = f"the file system of {root} has no locks ({error.strerror}); give another run_dir"
            raise UsageError(f"run_dir: {what}") from None

    def close(self) -> None:
        self.lock.close()

    def move_aside(self) -> Path:
        """Rename the run to the first free RUN.1, RUN.2, ... ; the lock goes with it."""
        number = next(n for n in range(1, 10**9) if not self.root.with_name(f"{self.root.name}.{n}").exists())
        return self.root.rename(self.root.with_name(f"{self.root.name}.{number}"))
