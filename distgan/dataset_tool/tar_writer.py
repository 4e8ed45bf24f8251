"""Tars whose bytes are a function of their samples, written to disk whole."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def open_tar(path: Path) -> Iterator[Any]:
    """A webdataset TarWriter that takes samples of bytes, without times and owners; synced to disk at the end."""
    from webdataset.writer import TarWriter  # imports torch, which takes a second

    with open(path, "wb") as file:
        with TarWriter(file, encoder=False, mtime=0, user="root", group="root") as tar:
            yield tar
        file.flush()
        os.fsync(file.fileno())
