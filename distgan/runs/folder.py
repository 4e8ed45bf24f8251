"""The run folder: its lock, which run may resume in it, and the files that describe the run."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from distgan.config.keys import Config, flatten, to_dict
from distgan.environment import environment
from distgan.errors import UsageError
from distgan.files import atomic_write
from distgan.locks import lock_file
from distgan.runs.checkpoint import Checkpoints, read_state
from distgan.runs.weights import is_moved


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
            lock_file(self.lock.fileno(), wait=False, required=True)
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


Changes = dict[str, list[Any]]
"""Key -> [old value, new value]"""


def open_run_dir(
    config: Config, digest: str, networks: Mapping[str, str], fresh: bool, stack: contextlib.ExitStack
) -> tuple[Path | None, Changes]:
    """Lock the run folder; the checkpoint to resume from and the keys that `resume.override` changes.

    `digest` is the sha256 of the dataset's manifest, `networks` are those of the weights of frozen networks, by key.
    Called on the main process. A folder that holds a run with another configuration is refused before anything in it is
    touched. Raises UsageError.
    """
    root = Path(config.run_dir)
    if fresh and root.resolve() == Path.cwd():
        raise UsageError(f"run_dir: --fresh moves {root} aside, and it is the current folder; start in another one")
    changes = {} if fresh else config_changes(config, digest, networks)
    if changes and not config.resume.override:
        shown = "; ".join(f"{key} {old} -> {new}" for key, (old, new) in changes.items())
        raise UsageError(
            f"run_dir: {root} holds a run with another configuration: {shown}. Give another run_dir, or --fresh to "
            "move that run aside, or --resume.override true to resume it with the new one"
        )
    run_dir = stack.enter_context(contextlib.closing(RunDir(root)))
    if fresh and any(path.name != ".lock" for path in root.iterdir()):
        print(f"moved the previous run to {run_dir.move_aside()}", flush=True)
        stack.enter_context(contextlib.closing(RunDir(root)))
    with contextlib.closing(Checkpoints(root / "checkpoints", config.checkpoint.keep)) as checkpoints:
        checkpoints.remove_partial()
        return checkpoints.newest(), changes


def write_run_info(config: Config, device: torch.device, world_size: int) -> dict[str, Any]:
    """Write config.yaml and environment.json, and return the latter; called on the main process."""
    root = Path(config.run_dir)
    atomic_write(root / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False).encode())
    facts = environment(device, world_size)
    atomic_write(root / "environment.json", (json.dumps(facts, indent=1) + "\n").encode())
    return facts


def config_changes(config: Config, digest: str, networks: Mapping[str, str]) -> Changes:
    """What differs from the newest checkpoint: keys of the configuration, the dataset, weights of frozen networks.

    Of `init_from` the files count where it was changed, and nothing where it was not: what a run began with is in its
    checkpoints. A folder without a checkpoint has nothing to protect: {}.
    """
    checkpoints = Checkpoints(Path(config.run_dir) / "checkpoints")
    for images in reversed(checkpoints.all()):
        try:
            state = read_state(checkpoints.folder / str(images))
        except (OSError, ValueError):
            continue  # `Checkpoints.newest` reports corrupt ones
        saved = flatten(state.config)
        then = flatten(Config().fingerprint()) | saved  # defaults, for keys that are newer than the saved run
        now = flatten(config.fingerprint())
        keys = [key for key in sorted(saved.keys() | now.keys()) if then.get(key) != now.get(key)]
        changes = {key: [then.get(key), now.get(key)] for key in keys}
        before = state.init_from_path
        if config.init_from != before and not is_moved(config.init_from, state.init_from):
            changes["init_from"] = [before, config.init_from]
        if state.manifest != digest:
            changes["the images of data.shards"] = [state.manifest[:12], f"{digest[:12]} ({config.data.shards})"]
        for key in networks.keys() & state.networks.keys():
            if networks[key] != state.networks[key]:
                changes[f"the weights at {key}"] = [state.networks[key][:12], networks[key][:12]]
        return changes
    return {}
