"""Statistics of real images on disk: one .safetensors file for a dataset, an extractor and a number of images."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch

from distgan.errors import format_os_error
from distgan.evaluation.card import ImageSum
from distgan.evaluation.classifier import hash_tensors
from distgan.evaluation.scores import Values
from distgan.evaluation.statistics import Statistics
from distgan.files import atomic_write
from distgan.locks import lock_file

METADATA = "distgan_statistics"
FORMAT = 1
TENSORS = ("total", "outer", "rows")
"""Fields of Statistics that are in the file."""


class Measured(NamedTuple):
    """What is known of real images."""

    statistics: Statistics
    real_vs_real: Values
    image_sum: ImageSum | None = None
    """With an extractor that sums images."""


class StatisticsCache:
    """The file of the statistics that `key` describes, with their real-vs-real values.

    A cache that cannot be used costs time only: it is said through `say`.
    """

    def __init__(self, folder: Path, key: dict[str, Any], say: Callable[[str], None]) -> None:
        self.key = {"format": FORMAT, **key}
        name = hashlib.sha256(json.dumps(self.key).encode()).hexdigest()
        self.path = folder / f"{name}.safetensors"
        self.say = say

    def read(self) -> Measured | None:
        """None if there is nothing, or, after saying so, if it cannot be used."""
        if not self.path.is_file():
            return None
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {})[METADATA])
                tensors = {name: file.get_tensor(name) for name in TENSORS}
            if metadata["key"] != self.key:
                raise ValueError("they are of another dataset or extractor")
            if metadata["sha256"] != hash_tensors(tensors):
                raise ValueError("the sha256 of the tensors does not match")
            image_sum = ImageSum(**metadata["image_sum"]) if "image_sum" in metadata else None
            return Measured(Statistics(self.key["images"], **tensors), metadata["floor"], image_sum)
        except (OSError, safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
            self.say(f"cached statistics {self.path} are not used: {error}; they are computed again")
            return None

    def write(self, measured: Measured) -> None:
        """Write it atomically.

        Runs that start together write the same file, one after another: the lock is on the folder.
        """
        tensors = {name: getattr(measured.statistics, name).contiguous() for name in TENSORS}
        metadata = {"key": self.key, "floor": measured.real_vs_real, "sha256": hash_tensors(tensors)}
        if measured.image_sum is not None:
            metadata["image_sum"] = measured.image_sum._asdict()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path.parent / ".lock", "a") as lock:
                lock_file(lock.fileno(), required=True)
                atomic_write(self.path, safetensors.torch.save(tensors, {METADATA: json.dumps(metadata)}))
        except OSError as error:
            self.say(f"the statistics of the real images are not cached: {format_os_error(error)}")
