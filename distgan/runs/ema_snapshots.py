"""RUN/ema: snapshots of the averages of G by power functions, each a .safetensors file of a generator."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from distgan.files import fsync_dir
from distgan.runs.checkpoint import Tensors, save_weights

NAME = re.compile(r"(\d+)-(\d[\d.e-]*)\.safetensors")


class Snapshot(NamedTuple):
    """A file of a width at a time."""

    images: int
    """Seen at that time."""
    width: float
    path: Path


class EMASnapshots:
    """The folder RUN/ema: IMAGES-WIDTH.safetensors for each width at each snapshot."""

    def __init__(self, run_dir: Path) -> None:
        self.folder = run_dir / "ema"

    def all(self) -> list[Snapshot]:
        """Oldest first."""
        if not self.folder.is_dir():
            return []
        found = [(NAME.fullmatch(path.name), path) for path in self.folder.iterdir()]
        return sorted(Snapshot(int(match[1]), float(match[2]), path) for match, path in found if match)

    def write(self, images: int, averages: Mapping[float, Tensors], metadata: Mapping[str, Any]) -> None:
        """A file for each width, atomically. Raises OSError and SafetensorError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for width, tensors in averages.items():
            write_weights(self.folder / f"{images}-{width}.safetensors", tensors, {**metadata, "ema_width": width})

    def remove_after(self, images: int) -> None:
        """Remove what a resumed run will write again, and partial files of a killed one. Raises OSError."""
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        for snapshot in self.all():
            if snapshot.images > images:
                snapshot.path.unlink()


def write_weights(path: Path, tensors: Tensors, metadata: Mapping[str, Any]) -> None:
    """Write a .safetensors file as a checkpoint has them, atomically. Raises OSError and SafetensorError."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_weights(temporary, tensors, metadata)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)
