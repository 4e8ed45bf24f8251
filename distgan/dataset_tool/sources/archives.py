"""The files of tars, read by offset from many processes; compressed ones are decompressed once."""

import bz2
import contextlib
import gzip
import lzma
import os
import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from distgan.errors import UsageError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""First bytes of a compressed file -> what decompresses it."""
MAX_MEMBER = 1 << 28
"""Bytes of an image or a label."""


class Place(NamedTuple):
    """Where the data of an image is."""

    tar: int
    offset: int
    size: int


class Archives:
    """Tars, which are read by offset; compressed ones are decompressed into one temporary file without a name.

    The system removes that file with the last process that has it open, also if all are killed.
    """

    def __init__(self, root: Path, paths: list[Path]) -> None:
        self.paths = paths
        self.names = [path.relative_to(root).as_posix() for path in paths]
        self.decompressed: BinaryIO | None = None
        self.is_compressed = [opener_of(path) is not None for path in paths]

    @contextlib.contextmanager
    def open(self, tar: int) -> Iterator[BinaryIO]:
        """A file at the start of a tar, which ends with it. Raises UsageError."""
        if self.is_compressed[tar]:
            yield self.decompress(self.paths[tar])
            return
        with open(self.paths[tar], "rb") as file:
            yield file

    def decompress(self, path: Path) -> BinaryIO:
        """Append a tar to the temporary file, and return that at its start. Raises UsageError."""
        if self.decompressed is None:
            self.decompressed = tempfile.TemporaryFile()
            weakref.finalize(self, self.decompressed.close)
        start = self.decompressed.seek(0, os.SEEK_END)
        opener = opener_of(path)
        assert opener is not None
        try:
            with opener(path) as file:
                shutil.copyfileobj(file, self.decompressed, 1 << 20)
            self.decompressed.flush()
        except OSError as error:
            with contextlib.suppress(OSError):
                self.decompressed.close()  # tries to write the rest
            if error.errno is None:  # of gzip
                raise UsageError(f"{path}: a damaged compressed tar ({error})") from None
            where = tempfile.gettempdir()
            fix = "set TMPDIR to a folder with room, or decompress it first"
            raise UsageError(f"{path}: it does not fit into {where} ({error.strerror}); {fix}") from None
        except (EOFError, zlib.error, lzma.LZMAError) as error:
            raise UsageError(f"{path}: a damaged compressed tar ({error})") from None
        self.decompressed.seek(start)
        return self.decompressed

    def read(self, place: Place) -> bytes:
        """The data at a place. Each call opens the tar: forked workers share no position. Raises ValueError."""
        if place.size > MAX_MEMBER:
            raise ValueError(f"{place.size:,} bytes; members have at most {MAX_MEMBER:,}")
        if self.is_compressed[place.tar]:
            assert self.decompressed is not None
            data = os.pread(self.decompressed.fileno(), place.size, place.offset)
        else:
            with open(self.paths[place.tar], "rb", buffering=0) as file:
                data = os.pread(file.fileno(), place.size, place.offset)
        if len(data) < place.size:
            raise ValueError("the tar has been truncated")
        return data


def opener_of(path: Path) -> Any:
    """What decompresses a file, by its first bytes; None: it is not compressed."""
    with open(path, "rb") as file:
        start = file.read(6)
    return next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
