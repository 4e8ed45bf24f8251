"""Where every member of a tar has its data: the standard library's reader, with the checks that it lacks.

tarfile takes a corrupt header past the first for the end of the archive, and so silently loses the rest of a shard.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from distgan.errors import CorruptDataError

INVALID = (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError)
"""What tarfile raises for headers that no program writes."""
PAX_RECORD = re.compile(rb"(\d{1,9}) [^=\n]+=")
"""A record is `LENGTH KEY=VALUE\\n`, LENGTH in bytes of all of it."""


class Member(NamedTuple):
    name: str
    offset: int
    """Of the first byte of data, in bytes from the start of the file."""
    size: int


def members(path: str | os.PathLike[str]) -> Iterator[Member]:
    """The regular files of an uncompressed tar, in order. Raises CorruptDataError."""
    with open(path, "rb") as file:
        yield from members_of(file, path)


def members_of(file: BinaryIO, path: str | os.PathLike[str]) -> Iterator[Member]:
    """Those of a tar from the position of `file` to its end; errors name it `path`. Raises CorruptDataError."""
    at = file.tell()
    end = os.fstat(file.fileno()).st_size
    try:
        with tarfile.TarFile(fileobj=file, encoding="utf-8", errors="replace") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined] - they are kept, 1 kB each
                if not (info.isdir() or info.isreg()) or info.issparse():
                    raise ValueError(f"a member of type {info.type!r}; shards hold regular files only")
                if info.offset_data - info.offset > tarfile.BLOCKSIZE:
                    check_pax(file, info)
                if info.isreg():
                    if not 0 <= info.size <= end - info.offset_data:
                        raise ValueError(f"a member of {info.size} bytes, which runs past the end of the file")
                    yield Member(info.name, info.offset_data, info.size)
                at = tar.offset
            at = tar.offset
        check_end(file, at)
    except INVALID as error:
        raise CorruptDataError(f"{path}: header at byte {at}: {error}") from None


def check_pax(file: BinaryIO, info: tarfile.TarInfo) -> None:
    """Check the records of the pax headers before a member: tarfile skips what it cannot parse, such as the name."""
    at = info.offset
    while at < info.offset_data - tarfile.BLOCKSIZE:
        file.seek(at)
        header = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "replace")
        records = file.read(header.size) if header.type in (tarfile.XHDTYPE, tarfile.XGLTYPE) else b""
        start = 0
        while start < len(records):
            record = PAX_RECORD.match(records, start)
            start += int(record[1]) if record else 0
            if record is None or start <= record.end() or records[start - 1 : start] != b"\n":
                raise ValueError("invalid pax record")
        at += tarfile.BLOCKSIZE * (1 + -(-header.size // tarfile.BLOCKSIZE))


def check_end(file: BinaryIO, offset: int) -> None:
    """Check that zero blocks follow, at least one, and nothing else. Raises ValueError or TarError."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise ValueError("truncated before the end-of-archive blocks")
    if any(block):
        tarfile.TarInfo.frombuf(block, "utf-8", "replace")  # raises the reason, unless it is in a pax record
        raise ValueError("invalid header")
    if file.read().strip(b"\0"):
        raise ValueError("data after the end-of-archive blocks")


def split_key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the last path component; the rest is the field."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()
