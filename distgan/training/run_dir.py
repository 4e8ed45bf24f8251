"""The run folder: its lock, which run may resume in it, and the files that describe the run."""

import contextlib
import fcntl
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from distgan import UsageError, __version__
from distgan.config import Config, flatten, read_config, to_dict
from distgan.files import atomic_write
from distgan.training.build import Run
from distgan.training.checkpoint import Checkpoints

LIBRARIES = ("torch", "torchvision", "accelerate", "webdataset", "safetensors", "jsonargparse", "numpy", "pillow")


class RunDir:
    """Locks a run folder for this process; the lock of a killed process is released. Raises UsageError."""

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
            raise UsageError(f"run_dir: another run is writing to {root}; give another run_dir, or wait") from None
        except OSError as error:
            self.lock.close()
            raise UsageError(
                f"run_dir: the file system of {root} has no locks ({error.strerror}); give another run_dir"
            ) from None

    def close(self) -> None:
        self.lock.close()

    def move_aside(self) -> Path:
        """Rename the folder, with the lock, to the first unused of RUN.1, RUN.2, ..."""
        number = next(n for n in range(1, 10**9) if not self.root.with_name(f"{self.root.name}.{n}").exists())
        return self.root.rename(self.root.with_name(f"{self.root.name}.{number}"))


def open_run_dir(run: Run, fresh: bool, stack: contextlib.ExitStack) -> Path | None:
    """Lock the run folder and find the checkpoint to resume from; called on the main process. Raises UsageError.

    A folder that holds a run with another configuration is refused before anything in it is touched.
    """
    config, root = run.config, Path(run.config.run_dir)
    if not fresh:
        check_config_unchanged(run, root)
    run_dir = stack.enter_context(contextlib.closing(RunDir(root)))
    if fresh and any(path.name != ".lock" for path in root.iterdir()):
        print(f"moved the previous run to {run_dir.move_aside()}", flush=True)
        stack.enter_context(contextlib.closing(RunDir(root)))
    with contextlib.closing(Checkpoints(root / "checkpoints", config.checkpoint.keep)) as checkpoints:
        checkpoints.remove_partial()
        return checkpoints.newest()


def write_run_info(run: Run) -> None:
    """Write config.yaml and environment.json; called on the main process, once the run is known to resume."""
    root = Path(run.config.run_dir)
    atomic_write(root / "config.yaml", yaml.safe_dump(to_dict(run.config), sort_keys=False).encode())
    facts = environment(run.dist.device, run.dist.world_size)
    atomic_write(root / "environment.json", (json.dumps(facts, indent=1) + "\n").encode())


def check_config_unchanged(run: Run, root: Path) -> None:
    """Raises UsageError if the run in the folder was started with another configuration, or on other images."""
    saved = None if run.config.resume.override else saved_config(root)
    if saved is None:
        return
    default = flatten(Config().fingerprint())  # for keys that are newer than the saved run
    then, now = default | flatten(saved[0]), flatten(run.config.fingerprint())
    keys = [key for key in sorted(set(flatten(saved[0])) | set(now)) if then.get(key) != now.get(key)]
    changed = [f"{key} {then.get(key)} -> {now.get(key)}" for key in keys]
    if saved[1] not in (None, run.dataset.digest):
        changed.append(f"the images of data.shards (now {run.config.data.shards})")
    if changed:
        raise UsageError(
            f"run_dir: {root} holds a run with another configuration: {'; '.join(changed)}. Give another run_dir, or "
            "--fresh to move that run aside, or --resume.override true to resume it with the new one"
        )


def saved_config(root: Path) -> tuple[dict[str, Any], str | None] | None:
    """The fingerprint of the configuration and the manifest's digest of the newest checkpoint.

    If there is no checkpoint, the configuration that the run was started with; None in an unused folder.
    """
    checkpoints = Checkpoints(root / "checkpoints")
    for images in reversed(checkpoints.all()):
        try:
            state = json.loads((checkpoints.folder / str(images) / "state.json").read_text())
            return state["config"], state["manifest"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # `Checkpoints.newest` reports corrupt ones
    if not (root / "config.yaml").exists():
        return None
    config, _ = read_config(["--config", str(root / "config.yaml")], prog="distgan train", description="")
    return config.fingerprint(), None


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """Hardware, versions and command of this run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "distgan": __version__,
        "commit": git_commit(),
        "command": shlex.join(sys.orig_argv),
        "processes": world_size,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def git_commit() -> str | None:
    """The commit of the checkout that this code is in, marked -dirty if files were modified; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
