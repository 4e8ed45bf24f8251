"""Tables and databases of images, by what SRC is: Parquet, LMDB, HDF5, .npy and .npz. Each is read by an extra."""

import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from distgan.dataset_tool.sources.extras import extra
from distgan.dataset_tool.sources.pixels import Layout
from distgan.dataset_tool.sources.source import Source, is_image
from distgan.dataset_tool.sources.tars import is_tar
from distgan.errors import UsageError
from distgan.hub import HUB

LMDB_FILE = "data.mdb"
SUFFIXES = {
    **{".parquet": "parquet", ".lmdb": "lmdb", ".h5": "hdf5", ".hdf5": "hdf5", ".hdf": "hdf5"},
    **{".npy": "npy", ".npz": "npz", ".tfrecord": "tfrecord", ".tfrecords": "tfrecord"},
}
"""Suffix of a file -> the kind of table."""
KINDS = ".parquet, hf://OWNER/NAME, LMDB, .h5, .npy, .npz"
"""What can be opened here, in words."""


class TableOptions(NamedTuple):
    """Options of `shards make`."""

    split: str
    labels: str
    label_columns: str | None
    image_key: str | None
    layout: Layout | None


def kind_of_table(source: str, files: list[Path]) -> str | None:
    """parquet, lmdb, hdf5, npy, npz or tfrecord; None for everything else, such as a folder with images or tars.

    `files` are those in the folder SRC, if it is one.
    """
    path = Path(source)
    if source.startswith(HUB):
        return "parquet"
    if path.is_file():
        return "lmdb" if path.name == LMDB_FILE else SUFFIXES.get(path.suffix.lower())
    if path / LMDB_FILE in files:
        return "lmdb"
    if any(is_image(file.name) or is_tar(file.name) for file in files):
        return None
    found = {SUFFIXES.get(file.suffix.lower()) for file in files}
    return next((kind for kind in ("parquet", "tfrecord") if kind in found), None)


def open_table(kind: str, source: str, options: TableOptions) -> Source:
    """Open SRC, a table of this kind. Raises UsageError."""
    if options.image_key is not None and kind in ("lmdb", "npy"):
        raise UsageError(f"--image_key: {source} has nothing that it could choose from; leave it out")
    return OPENERS[kind](source, options)


def open_parquet(source: str, options: TableOptions) -> Source:
    with extra("parquet", source):
        from distgan.dataset_tool.sources import parquet
    return parquet.open_parquet(source, **options._asdict())


def open_lmdb(source: str, options: TableOptions) -> Source:
    with extra("lmdb", source):
        from distgan.dataset_tool.sources import lmdb
    path = Path(source)
    path = path.parent if path.name == LMDB_FILE else path
    _, labels, label_columns, _, layout = options
    return lmdb.open_lmdb(path, labels=labels, label_columns=label_columns, layout=layout)


def open_hdf5(source: str, options: TableOptions) -> Source:
    with extra("hdf5", source):
        from distgan.dataset_tool.sources import hdf5
    _, labels, label_columns, image_key, layout = options
    return hdf5.open_hdf5(Path(source), labels=labels, label_columns=label_columns, image_key=image_key, layout=layout)


def open_npy(source: str, options: TableOptions) -> Source:
    from distgan.dataset_tool.sources import arrays

    _, labels, label_columns, _, layout = options
    return arrays.open_npy(Path(source), labels=labels, label_columns=label_columns, layout=layout)


def open_npz(source: str, options: TableOptions) -> Source:
    from distgan.dataset_tool.sources import arrays

    _, labels, label_columns, image_key, layout = options
    return arrays.open_npz(Path(source), labels=labels, label_columns=label_columns, image_key=image_key, layout=layout)


def refuse_tfrecord(source: str, options: TableOptions) -> Source:
    raise UsageError(
        f"{source}: TFRecord is not read; convert it to tars or Parquet where TensorFlow is installed, "
        "then make shards of those"
    )


def refuse_zipped_table(path: Path) -> None:
    """Raises UsageError for a zip that has a table and no images: it has to be unpacked."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return
    tables = [
        n for n in names if PurePosixPath(n).name == LMDB_FILE or n.lower().endswith((".parquet", ".h5", ".hdf5"))
    ]
    if tables and not any(map(is_image, names)):
        raise UsageError(f"{path} has {tables[0]}, which cannot be read inside of a zip; unzip it, and give its folder")


OPENERS: dict[str, Callable[[str, TableOptions], Source]] = {
    "parquet": open_parquet,
    "lmdb": open_lmdb,
    "hdf5": open_hdf5,
    "npy": open_npy,
    "npz": open_npz,
    "tfrecord": refuse_tfrecord,
}
