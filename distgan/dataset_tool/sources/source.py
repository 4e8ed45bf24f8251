"""A source of images for a dataset, and its labels."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from distgan.dataset_tool.label_files import IMAGE_SUFFIXES, labels_of_table, parse_class_names, read_table
from distgan.dataset_tool.labels import Labels
from distgan.dataset_tool.notes import escape_name, note
from distgan.dataset_tool.sources.folders import class_folders
from distgan.errors import UsageError
from distgan.images import PIL_FORMATS

FORMATS = tuple(dict.fromkeys(PIL_FORMATS.values()))
MOST_SUFFIXES = 12
"""That a line lists."""
LABEL_FILES = ("dataset.json", "classes.json")


@dataclass
class Source:
    """Images by index, and their labels."""

    name: str
    """Recorded in the manifest."""
    names: list[str]
    """One for each image, unique."""
    load: Callable[[int], Image.Image | np.ndarray]
    """A PIL image, or an array [H, W] or [H, W, C] of numbers, neither cropped nor resized.

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


def is_image(name: str) -> bool:
    return Path(name).suffix.lower() in IMAGE_SUFFIXES


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, such as thumbnails and what macOS adds to folders and zips."""
    return name.startswith(".") or name == "__MACOSX"


def count_suffixes(names: Iterable[str]) -> str:
    """How many names have which suffix, the most frequent first: ".heic 3, .txt 1, no suffix 2"; "" for no names."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "no suffix" for name in names)
    shown = sorted(counts, key=lambda suffix: (-counts[suffix], suffix))
    more = [f"and {len(shown) - MOST_SUFFIXES} more suffixes"] if len(shown) > MOST_SUFFIXES else []
    return ", ".join([f"{escape_name(suffix)} {counts[suffix]:,}" for suffix in shown[:MOST_SUFFIXES]] + more)


def check_images(source: Source, skipped: Sequence[str]) -> None:
    """Say which files are no images, by their names `skipped`. Raises UsageError if the source has no image."""
    others = count_suffixes(name for name in skipped if PurePosixPath(name).name not in LABEL_FILES)
    if not source.names:
        has = f"; there are {others}" if others else ""
        suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
        raise UsageError(f"there is no image in the source{has}; images end in {suffixes}")
    if others:
        note(f"left out, since they are no images: {others}")


def add_labels(
    source: Source,
    labels: str,
    read: Callable[[str], bytes],
    columns: str | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Source:
    """Add labels: `auto` (dataset.json inside, else class folders, else none), `folders`, `none`, or the file `labels`.

    A classes.json beside the dataset.json names its classes. `read` returns a file of the source by name, or raises
    OSError or KeyError. `columns` is the value of `--label_columns`, and `aliases` are other names of images that a
    file of labels may list. Raises UsageError.
    """
    if labels in ("none", "folders"):
        if columns is not None:
            raise UsageError(f"--label_columns: --labels {labels} reads no columns; leave out one of the two")
        return source if labels == "none" else add_class_folders(source, forced=True)
    if labels != "auto":
        path = Path(labels)
        if not path.is_file():
            raise UsageError(f"--labels: there is no file {labels}; give a file, auto, folders or none")
        return add_table(source, path.suffix.lower(), path.read_bytes(), columns, labels, aliases or {})
    try:
        data = read("dataset.json")
    except (OSError, KeyError):
        if columns is not None:
            raise UsageError("--label_columns: there is no dataset.json in the source; give --labels FILE") from None
        return add_class_folders(source, forced=False)
    try:
        classes = parse_class_names(read("classes.json"), "classes.json")
    except (OSError, KeyError):
        classes = []
    return add_table(source, ".json", data, columns, "dataset.json", aliases or {}, classes)


def add_table(
    source: Source,
    suffix: str,
    data: bytes,
    columns: str | None,
    where: str,
    aliases: Mapping[str, str],
    classes: Sequence[str] = (),
) -> Source:
    """Add the labels in a file of labels, by the names of the images; `classes` name them. Raises UsageError."""
    table = read_table(suffix, data, where, {*source.names, *aliases})
    if table.names:
        table = table._replace(names=[aliases.get(name, name) for name in table.names])
        take_labels(source, labels_of_table(table, source.names, columns, where, classes))
    return source


def add_class_folders(source: Source, forced: bool) -> Source:
    """Take the folders of the images for classes, where they have some. Raises UsageError where that may be wrong."""
    folders = class_folders(source.names, forced)
    if folders is not None:
        names = sorted(set(folders))
        index = {name: i for i, name in enumerate(names)}
        source.classes = [escape_name(name) for name in names]
        source.labels = np.array([index[folder] for folder in folders])
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
        name,
        names,
        images.__getitem__,
        labels.astype(np.int64),
        list(classes),
        size=images.shape[1],
        channels=images.shape[3],
    )
