"""A source of images for a dataset, and its labels."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from distgan.dataset_tool.label_files import labels_of_table, read_table
from distgan.dataset_tool.labels import Labels
from distgan.errors import UsageError
from distgan.images import PIL_FORMATS

FORMATS = tuple(dict.fromkeys(PIL_FORMATS.values()))
IMAGE_SUFFIXES = (*PIL_FORMATS, ".npy")
"""Of the files that hold an image."""


@dataclass
class Source:
    """Images by index, and their labels."""

    name: str
    """Recorded in the manifest."""
    names: list[str]
    """One for each image, unique."""
    load: Callable[[int], Image.Image | np.ndarray]
    """A PIL image, or an array [H, W] or [H, W, C] of uint8, uint16, float16 or float32, neither cropped nor resized.

    It is called from many forked processes, in any order.
    """
    labels: np.ndarray | None = None
    """The class, int64 [images]."""
    classes: list[str] = field(default_factory=list)
    size: int | None = None
    channels: int = 3
    has_paths: bool = False
    """Whether `names` are the paths of files, relative to the folder or zip."""
    fingerprint: list[Any] = field(default_factory=list)
    """Per file, what changes with its content: an interrupted `make` is resumed only if it is the same."""
    numbers: np.ndarray | None = None
    """Conditions beside or instead of the class, float64 [images, K]."""
    number_names: list[str] = field(default_factory=list)
    """K names."""
    groups: Sequence[int] | None = None
    """Per image: those of one group are cheap to read together, as of one Parquet row group."""

    def __len__(self) -> int:
        return len(self.names)


def escape_name(name: str) -> str:
    """A file name as one line of UTF-8: backslashes, line breaks and bytes that are not UTF-8 are escaped."""
    name = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return name.encode(errors="backslashreplace").decode()


def is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, such as thumbnails and what macOS adds to folders and zips."""
    return name.startswith(".") or name == "__MACOSX"


def add_labels(source: Source, labels: str, read: Callable[[str], bytes], columns: str | None = None) -> Source:
    """Add labels: `auto` (dataset.json inside, else class folders, else none), `none`, or from the file `labels`.

    `read` returns a file of the source by name, or raises OSError or KeyError. `columns` is the value of
    `--label_columns`. Raises UsageError.
    """
    if not source.names:
        raise UsageError(f"there is no image in the source; images end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    if labels == "none":
        if columns is not None:
            raise UsageError("--label_columns: --labels none takes no labels; leave out one of the two")
        return source
    if labels != "auto":
        path = Path(labels)
        if not path.is_file():
            raise UsageError(f"--labels: there is no file {labels}; give a file, auto or none")
        return add_table(source, path.suffix.lower(), path.read_bytes(), columns, labels)
    try:
        data = read("dataset.json")
    except (OSError, KeyError):
        if columns is not None:
            raise UsageError("--label_columns: there is no dataset.json in the source; give --labels FILE") from None
        return add_class_folders(source)
    return add_table(source, ".json", data, columns, "dataset.json")


def add_class_folders(source: Source) -> Source:
    """Take the topmost folders for classes, if there are several and every image is in one."""
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


def add_table(source: Source, suffix: str, data: bytes, columns: str | None, where: str) -> Source:
    """Add the labels in a file of labels, by the names of the images. Raises UsageError."""
    table = read_table(suffix, data, where, set(source.names))
    if table.names:
        take_labels(source, labels_of_table(table, source.names, columns, where))
    return source


def take_labels(source: Source, labels: Labels) -> None:
    """Make `labels` those of the source."""
    source.labels = labels.labels
    source.classes = labels.classes
    source.numbers = labels.numbers
    source.number_names = labels.number_names


def from_arrays(name: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Source:
    """uint8 [N, S, S] or [N, S, S, 3], stored unchanged; `labels` [N] index `classes`."""
    images = images[..., None] if images.ndim == 3 else images
    names = [f"{i:06d}" for i in range(len(images))]
    return Source(
        name, names, images.__getitem__, labels.astype(np.int64), list(classes), images.shape[1], images.shape[3]
    )
