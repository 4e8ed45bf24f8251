"""Images in one array: .npy, and .npz with labels beside it."""

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from distgan.data.index_file import INVALID_INDEX, seek_member
from distgan.dataset_tool.sources.columns import add_columns, choose_images
from distgan.dataset_tool.sources.pixels import (
    Layout,
    decode_array,
    has_channels_first,
    map_array,
    read_array_header,
    to_image,
)
from distgan.dataset_tool.sources.source import Source
from distgan.errors import UsageError

T = TypeVar("T")
INVALID_ARRAY = (*INVALID_INDEX, zlib.error, EOFError, RuntimeError, MemoryError, TypeError)
"""What zipfile and numpy raise for what is no array, or a corrupt one."""
MAX_COMPRESSED = 1 << 30
"""Bytes of an array that is compressed, which has to be kept in memory."""


def open_npy(path: Path, *, labels: str, label_columns: str | None, layout: Layout | None) -> Source:
    """Open an .npy of images [N, H, W] or [N, H, W, C], memory-mapped. Raises UsageError.

    `labels` may be an .npy [N] too, or [N, K] of which `label_columns` names the columns.
    """
    images = checked(path, lambda: map_file(path))
    columns: dict[str, np.ndarray] = {}
    if labels.endswith(".npy"):
        columns = {"label": checked(Path(labels), lambda: map_file(Path(labels)))}
        labels_shape = columns["label"].shape
        if labels_shape[:1] != images.shape[:1] or len(labels_shape) > 2:
            needed = f"[{images.shape[0]}] or [{images.shape[0]}, K], as many as there are images"
            raise UsageError(f"--labels: {labels} is {list(labels_shape)}; labels are {needed}")
        labels = "auto"
    source = source_of_array("npy", path, images, layout)
    read = partial(values_of, columns)
    return add_columns(source, columns, read, labels=labels, label_columns=label_columns, where=str(path), names={})


def open_npz(
    path: Path, *, labels: str, label_columns: str | None, image_key: str | None, layout: Layout | None
) -> Source:
    """Open an .npz with an array of images [N, H, W] or [N, H, W, C]; arrays [N] beside it are labels.

    Arrays that are not compressed are memory-mapped. Raises UsageError.
    """
    arrays = checked(path, lambda: Arrays(path))
    name = choose_images(arrays.shapes, image_key, str(path))
    source = source_of_array("npz", path, checked(path, lambda: arrays.read(name)), layout)
    source.fingerprint += [name, arrays.members[name].CRC]
    columns = [other for other, shape in arrays.shapes.items() if shape == (len(source),) and other != name]
    read = partial(values_of, arrays)
    return add_columns(source, columns, read, labels=labels, label_columns=label_columns, where=str(path), names={})


class Arrays:
    """The arrays in an .npz by name. Raises INVALID_INDEX."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members: dict[str, zipfile.ZipInfo] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with contextlib.suppress(ValueError), archive.open(member) as file:  # a ValueError: no such array
                    shape, _, _ = read_array_header(file)
                    name = member.filename.removesuffix(".npy")
                    self.members[name] = member
                    self.shapes[name] = shape

    def __getitem__(self, name: str) -> np.ndarray:
        return checked(self.path, lambda: self.read(name))

    def read(self, name: str) -> np.ndarray:
        member = self.members[name]
        if member.compress_type == zipfile.ZIP_STORED:
            with open(self.path, "rb") as file:
                seek_member(file, member)
                return map_array(file)
        if member.file_size > MAX_COMPRESSED:
            fix = "save it with numpy.savez or as .npy, which are read in place"
            raise ValueError(f"{name} is compressed, and has {member.file_size:,} bytes; {fix}")
        with zipfile.ZipFile(self.path) as archive:
            return decode_array(archive.read(member))


def map_file(path: Path) -> np.ndarray:
    with open(path, "rb") as file:
        return map_array(file)


def checked(path: Path, read: Callable[[], T]) -> T:
    """What `read` returns. Raises UsageError for what is no array, or a corrupt one."""
    try:
        return read()
    except INVALID_ARRAY as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None


def values_of(arrays: Mapping[str, np.ndarray] | Arrays, name: str) -> list[Any]:
    """The values of an array of labels [N] or [N, K]; bytes are text."""
    values = arrays[name]
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    return values.tolist()


def source_of_array(name: str, path: Path, images: np.ndarray, layout: Layout | None) -> Source:
    """The images in an array [N, H, W] or [N, H, W, C] of a file. Raises UsageError."""
    if images.ndim not in (3, 4):
        raise UsageError(f"{path} is an array {list(images.shape)}; images are [N, H, W] or [N, H, W, C]")
    try:
        has_channels_first(images.shape[1:], layout)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    stat = path.stat()
    return Source(
        name,
        [f"{path.name}:{i}" for i in range(len(images))],
        lambda i: to_image(images[i], layout),
        has_paths=True,
        fingerprint=[stat.st_size, stat.st_mtime_ns],
    )
