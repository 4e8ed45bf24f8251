"""Images in an HDF5 file: one dataset [N, H, W] or [N, H, W, C], and labels in datasets [N]."""

import contextlib
import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from distgan.dataset_tool.notes import note
from distgan.dataset_tool.sources.apart import call_apart
from distgan.dataset_tool.sources.columns import add_columns, choose_images
from distgan.dataset_tool.sources.pixels import Layout, has_channels_first, to_image
from distgan.dataset_tool.sources.source import Source
from distgan.errors import UsageError

CACHE_BYTES = 256 << 20
"""The most that a process keeps of chunks that it has read."""
CACHE_SLOTS = 10_007
"""Of HDF5's hash table of chunks, a prime."""


@dataclass(frozen=True)
class Contents:
    """What an HDF5 file holds."""

    images: str
    shape: tuple[int, ...]
    """Of the images: [N, H, W] or [N, H, W, C], or with the channels first."""
    dtype: np.dtype
    chunks: tuple[int, ...] | None
    columns: Mapping[str, list[Any]]
    """[N] values each."""


def open_hdf5(
    path: Path, *, labels: str, label_columns: str | None, image_key: str | None, layout: Layout | None
) -> Source:
    """Open an HDF5 file; the images of a chunk are a group. Raises UsageError.

    The HDF5 library can crash on damaged files: what there is is listed in a process of its own.
    """
    contents = call_apart(lambda: list_contents(path, image_key, layout), str(path))
    count = contents.shape[0]
    cache = cache_bytes(contents)
    if cache > CACHE_BYTES:
        note(f"{path}: an image is in chunks of {cache:,} bytes, of which {CACHE_BYTES:,} are kept: reading is slow")
    files = functools.cache(
        lambda pid: h5py.File(
            path, "r", rdcc_nbytes=min(cache, CACHE_BYTES), rdcc_nslots=CACHE_SLOTS, locking="best-effort"
        )
    )
    stat = path.stat()
    per_chunk = contents.chunks[0] if contents.chunks else 1
    source = Source(
        "hdf5",
        [f"{path.name}:{i}" for i in range(count)],
        lambda i: to_image(dataset_of(files(os.getpid()), contents.images)[i], layout),
        has_paths=True,
        fingerprint=[contents.images, stat.st_size, stat.st_mtime_ns],
        groups=(np.arange(count) // per_chunk).tolist() if per_chunk > 1 else None,
    )
    read = contents.columns.__getitem__
    where = str(path)
    return add_columns(
        source, contents.columns, read, labels=labels, label_columns=label_columns, where=where, names={}
    )


def dataset_of(file: h5py.File, name: str) -> h5py.Dataset:
    dataset = file[name]
    assert isinstance(dataset, h5py.Dataset)
    return dataset


def list_contents(path: Path, image_key: str | None, layout: Layout | None) -> Contents:
    """What is in the file; the first image is read too. Raises UsageError."""
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            datasets = find_datasets(file)
            shapes = {name: tuple(dataset.shape) for name, dataset in datasets.items()}
            name = choose_images(shapes, image_key, str(path))
            images = datasets[name]
            count = shapes[name][0]
            has_channels_first(shapes[name][1:], layout)
            with contextlib.suppress(Exception):  # a bad image, which is listed when it is converted
                to_image(images[0], layout)
            columns = {
                other: read_column(dataset)
                for other, dataset in datasets.items()
                if shapes[other][:1] == (count,) and len(shapes[other]) == 1 and other != name
            }
            return Contents(name, shapes[name], images.dtype, images.chunks, columns)
    except UsageError:
        raise
    except Exception as error:  # h5py documents no exceptions
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from None


def find_datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """The datasets of numbers or text whose values are in the file itself: others may name any file of the machine."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        if not isinstance(item, h5py.Dataset) or item.shape is None:
            return
        is_text = h5py.check_string_dtype(item.dtype) is not None
        if (is_text or item.dtype.kind in "biuf") and not item.external and not item.is_virtual:
            found[name] = item

    file.visititems(visit)
    return found


def read_column(dataset: h5py.Dataset) -> list[Any]:
    """The values of a dataset [N]."""
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return list(dataset.asstr()[...])
    return dataset[...].tolist()


def cache_bytes(contents: Contents) -> int:
    """Of the chunks that an image is in, at least 1 MB: if they are not kept, each is read anew for its next image."""
    if contents.chunks is None:
        return 1 << 20
    sides = zip(contents.shape[1:], contents.chunks[1:], strict=True)
    chunks = math.prod(-(-side // chunk) for side, chunk in sides)
    return max(1 << 20, chunks * math.prod(contents.chunks) * contents.dtype.itemsize)
