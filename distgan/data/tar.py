"""A strict reader of tar headers: where every member's data is, or what is wrong with the file.

Python's tarfile takes a corrupt header past the first for the end of the archive, and so silently loses the rest of a
shard. Here each header's checksum, each member's bounds and the end-of-archive blocks are checked.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from distgan import CorruptDataError

BLOCK = 512
REGULAR, SKIPPED, LONG_NAME, PAX = (b"0", b"\0", b"7"), (b"5", b"g"), b"L", b"x"


class Member(NamedTuple):
    name: str
    offset: int
    """Of the first byte of data, in bytes from the start of the file."""
    size: int


def members(path: str | os.PathLike[str]) -> Iterator[Member]:
    """The regular files of an uncompressed tar, in order. Raises CorruptDataError."""
    end = os.path.getsize(path)
    offset, name = 0, ""
    with open(path, "rb") as file:

        def data(size: int) -> bytes:
            file.seek(offset + BLOCK)
            return file.read(size)

        while True:
            file.seek(offset)
            header = file.read(BLOCK)
            if len(header) < BLOCK:
                raise CorruptDataError(f"{path}: truncated at byte {offset}, before the end-of-archive blocks")
            if not any(header):
                if any(file.read()):
                    raise CorruptDataError(f"{path}: data after the end-of-archive blocks at byte {offset}")
                return
            if offset == 0 and header[:32].lstrip()[:1] == b"<":
                raise CorruptDataError(f"{path}: a web page, not a tar")
            kind, size = check_header(header, f"{path}: header at byte {offset}")
            if offset + BLOCK + size > end:
                raise CorruptDataError(f"{path}: truncated; the member at byte {offset} runs past the end of the file")
            if kind == LONG_NAME:
                name = decode_name(data(size))
            elif kind == PAX:
                try:
                    name = pax_path(data(size)) or name
                except (ValueError, IndexError):
                    raise CorruptDataError(f"{path}: invalid pax header at byte {offset}") from None
            elif kind in REGULAR:
                yield Member(name or ustar_name(header), offset + BLOCK, size)
                name = ""
            elif kind not in SKIPPED:
                raise CorruptDataError(
                    f"{path}: member of type {kind!r} at byte {offset}; shards hold regular files only"
                )
            offset += BLOCK + -(-size // BLOCK) * BLOCK


def check_header(header: bytes, where: str) -> tuple[bytes, int]:
    """The type and the size in a header. Raises CorruptDataError."""
    try:
        checksum, size = parse_octal(header[148:156]), parse_octal(header[124:136])
    except ValueError:
        raise CorruptDataError(f"{where} is not a tar header") from None
    if sum(header[:148]) + sum(header[156:]) + 8 * ord(" ") != checksum:
        raise CorruptDataError(f"{where} has a wrong checksum")
    return header[156:157], size


def parse_octal(data: bytes) -> int:
    """An octal field, or GNU's base-256 for larger numbers. Raises ValueError."""
    if data[0] & 0x80:
        return int.from_bytes(data, "big") & ~(0x80 << 8 * (len(data) - 1))
    digits = data.strip(b"\0 ")
    if digits.strip(b"01234567"):  # int() would accept a sign
        raise ValueError
    return int(digits or b"0", 8)


def decode_name(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="replace")


def ustar_name(header: bytes) -> str:
    prefix = decode_name(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return (prefix + "/" if prefix else "") + decode_name(header[:100])


def pax_path(records: bytes) -> str:
    """The path record of a pax header: lines of `LENGTH KEY=VALUE`, LENGTH in bytes of the entire line."""
    path = ""
    while records:
        length = int(records.split(b" ", 1)[0])
        if length < 1:
            raise ValueError
        key, _, value = records[:length].split(b" ", 1)[1].rstrip(b"\n").partition(b"=")
        path, records = value.decode() if key == b"path" else path, records[length:]
    return path


def split_key(name: str) -> tuple[str, str]:
    """WebDataset's rule: the key ends at the first dot of the last path component; the rest is the field."""
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()
