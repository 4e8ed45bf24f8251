"""Images in an LMDB database, as LSUN comes: a key for each image, and as its value the bytes of an image file."""

from pathlib import Path

import lmdb
import numpy as np
from PIL import Image

from distgan.dataset_tool.sources.apart import call_apart
from distgan.dataset_tool.sources.columns import add_columns
from distgan.dataset_tool.sources.encoded import open_bytes
from distgan.dataset_tool.sources.pixels import Layout
from distgan.dataset_tool.sources.source import Source
from distgan.errors import UsageError


def open_lmdb(path: Path, *, labels: str, label_columns: str | None, layout: Layout | None) -> Source:
    """Open the database at `path`, a folder with data.mdb or one file. Raises UsageError.

    `layout` is that of values that are .npy files. LMDB trusts its files, and damaged ones can crash a process: the
    keys are listed in a process of its own.
    """
    keys = call_apart(lambda: list_keys(path), str(path))
    stat = data_file(path).stat()
    source = Source(
        "lmdb",
        [name_key(key) for key in keys],
        lambda i: load(path, keys[i], layout),
        has_paths=True,
        fingerprint=[stat.st_size, stat.st_mtime_ns],
    )
    return add_columns(source, (), lambda name: (), labels=labels, label_columns=label_columns, where=str(path))


def data_file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def open_database(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False, create=False)


def list_keys(path: Path) -> list[bytes]:
    """All keys, in order; the first value is read too. Raises UsageError."""
    try:
        with open_database(path) as database, database.begin() as transaction:
            pages = database.info()["last_pgno"] + 1
            size = pages * database.stat()["psize"]
            if data_file(path).stat().st_size < size:
                raise UsageError(f"{data_file(path)}: it is truncated: it has {pages:,} pages, {size:,} bytes")
            keys = list(transaction.cursor().iternext(keys=True, values=False))
            if keys:
                transaction.get(keys[0])
            return keys
    except (lmdb.Error, OSError) as error:
        raise UsageError(f"{path}: it cannot be read as LMDB: {' '.join(str(error).split())}") from None


def name_key(key: bytes) -> str:
    """A key as text; one that is not, in hexadecimal."""
    try:
        text = key.decode()
    except UnicodeDecodeError:
        return f"0x{key.hex()}"
    return text if text.isprintable() and text else f"0x{key.hex()}"


def load(path: Path, key: bytes, layout: Layout | None) -> Image.Image | np.ndarray:
    """The image of a key. Raises ValueError and lmdb.Error.

    The database is opened each time, which takes 40 microseconds: a process opens one only once at a time, also if it
    has it from the process that it was forked from.
    """
    with open_database(path) as database, database.begin() as transaction:
        data = transaction.get(key)
    if data is None:
        raise ValueError("the key is no longer there")
    return open_bytes(data, layout)
