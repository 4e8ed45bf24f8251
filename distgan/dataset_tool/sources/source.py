"""A source of images for a dataset, and its labels."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from distgan.data.schema import Label
from distgan.dataset_tool.labels import number_labels, parse_labels
from distgan.errors import UsageError
from distgan.images import PIL_FORMATS

FORMATS = tuple(dict.fromkeys(PIL_FORMATS.values()))


@dataclass
class Source:
    """Images by index. `load` returns a picture, or an array [H, W] or [H, W, C] of integers or floats."""

    name: str
    names: list[str]
    load: Callable[[int], Image.Image | np.ndarray]
    labels: np.ndarray | None = None
    """int64 [images]: the class."""
    classes: list[str] = field(default_factory=list)
    numbers: np.ndarray | None = None
    """float64 [images, K]: conditions beside the class, or instead of one."""
    number_names: list[str] = field(default_factory=list)
    """Of the K conditions."""
    size: int | None = None
    channels: int = 3
    has_paths: bool = False
    """Whether `names` are the paths of files, relative to the folder or zip."""
    fingerprint: list[Any] = field(default_factory=list)
    """Per file, what changes with its content: an interrupted `make` is resumed only if it is the same."""

    def __len__(self) -> int:
        return len(self.names)


def escape_name(name: str) -> str:
    """A file name as one line of UTF-8: backslashes, line breaks and bytes that are not UTF-8 are escaped."""
    name = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return name.encode(errors="backslashreplace").decode()


def is_image(name: str) -> bool:
    return Path(name).suffix.lower() in PIL_FORMATS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, such as thumbnails and what macOS adds to folders and zips."""
    return name.startswith(".") or name == "__MACOSX"


def add_labels(source: Source, labels: str, read: Callable[[str], bytes]) -> Source:
    """Add labels: `auto` (dataset.json inside, else class folders, else none), `none`, or from the file `labels`.

    `read` returns a file of the source by name, or raises OSError or KeyError. Raises UsageError.
    """
    if not source.names:
        raise UsageError(f"there is no image in the source; images end in {', '.join(sorted(PIL_FORMATS))}")
    if labels == "none":
        return source
    if labels != "auto":
        path = Path(labels)
        if not path.is_file():
            raise UsageError(f"--labels: there is no file {labels}; give a file, auto or none")
        return assign_labels(source, parse_labels(path.suffix.lower(), path.read_bytes(), labels), labels)
    try:
        return assign_labels(source, parse_labels(".json", read("dataset.json"), "dataset.json"), "dataset.json")
    except (OSError, KeyError):
        pass
    tops = [PurePosixPath(name).parts[0] if "/" in name else None for name in source.names]
    folders = sorted({top for top in tops if top is not None})
    if None in tops or len(folders) < 2:
        if len(folders) > 1:
            stray = source.names[tops.index(None)]
            print(f"warning: no labels: {stray} is not in a class folder", file=sys.stderr)
        return source
    index = {name: i for i, name in enumerate(folders)}
    source.classes = [escape_name(folder) for folder in folders]
    source.labels = np.array([index[str(top)] for top in tops])
    return source


def assign_labels(source: Source, rows: dict[str, Label], where: str) -> Source:
    if not rows:
        return source
    missing = [name for name in source.names if name not in rows]
    if missing:
        raise UsageError(f"{where}: {len(missing)} images have no label, the first is {missing[0]}")
    try:
        source.labels, source.classes = number_labels([rows[name] for name in source.names])
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return source


def from_arrays(name: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Source:
    """uint8 [N, S, S] or [N, S, S, 3], stored unchanged; `labels` [N] index `classes`."""
    images = images[..., None] if images.ndim == 3 else images
    names = [f"{i:06d}" for i in range(len(images))]
    return Source(
        name,
        names,
        images.__getitem__,
        labels.astype(np.int64),
        list(classes),
        size=images.shape[1],
        channels=images.shape[3],
    )
