"""index.npz: where each image of a dataset is, memory-mapped."""

import functools
import hashlib
import io
import os
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from distgan.data.schema import File
from distgan.files import atomic_write

COLUMNS = {"offset": "<i8", "size": "<u4", "label": "<i4", "check": "<u8"}
"""Columns of index.npz, 24 bytes per image; `check` is the xxh3 of the image's bytes."""
IMAGE_COLUMNS = {f"image_{name}": COLUMNS[name] for name in ("offset", "size", "check")}
"""Columns of the images beside latents."""
NUMBERS = "numbers"
"""The column [samples, conditions], float32, of a dataset that has them."""
INVALID_INDEX = (
    OSError,
    ValueError,
    ArithmeticError,
    LookupError,
    NotImplementedError,
    struct.error,
    zipfile.BadZipFile,
)
"""What zipfile and numpy raise for a file that is no index."""


def map_columns(path: Path, samples: int, conditions: int = 0, images: bool = False) -> dict[str, np.ndarray]:
    """Memory-map the arrays of an uncompressed .npz (numpy maps only single .npy files). Raises INVALID_INDEX.

    With `images`, also IMAGE_COLUMNS.
    """
    columns = {}
    stored = COLUMNS | (IMAGE_COLUMNS if images else {})
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {name: (dtype, (samples,)) for name, dtype in stored.items()}
    if conditions:
        kinds[NUMBERS] = ("<f4", (samples, conditions))
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for name, (dtype, expected) in kinds.items():
            member = archive.getinfo(f"{name}.npy")
            seek_member(file, member)
            shape, fortran, stored = read_npy_header(file)
            if (stored, shape, fortran) != (dtype, expected, False) or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"column {name} is {stored} {shape}; the manifest needs {dtype} {expected}, stored")
            columns[name] = np.memmap(file, dtype, "r", file.tell(), expected)
    return columns


def seek_member(file: BinaryIO, member: zipfile.ZipInfo) -> None:
    """Put `file`, a zip, at the data of a member."""
    file.seek(member.header_offset + 26)
    name_length, extra_length = (int.from_bytes(file.read(2), "little") for _ in range(2))
    file.seek(name_length + extra_length, os.SEEK_CUR)


def read_npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, str]:
    """Shape, whether it is in Fortran order, and dtype of a .npy; leaves `file` at the data. Raises ValueError."""
    magic = file.read(8)
    width = 2 if magic[6:7] == b"\1" else 4
    length = int.from_bytes(file.read(width), "little")
    if magic[:6] != b"\x93NUMPY" or length > 10_000:
        raise ValueError("not a .npy array")
    return parse_npy_header(file.read(length))


@functools.lru_cache(1024)
def parse_npy_header(header: bytes) -> tuple[tuple[int, ...], bool, str]:
    matches = [re.search(rb"'" + key + rb"': *" + value, header) for key, value in NPY_KEYS.items()]
    if None in matches:
        raise ValueError("not the header of a .npy array")
    shape, fortran, dtype = (match[1] for match in matches if match)
    return tuple(int(n) for n in shape.split(b",") if n.strip()), fortran == b"True", dtype.decode()


NPY_KEYS = {b"shape": rb"\(([\d, ]{0,80})\)", b"fortran_order": rb"(True|False)", b"descr": rb"'([ -&(-~]{1,20})'"}
"""Of the header's Python dict, which numpy reads with its parser for Python."""


def write_index(folder: Path, columns: dict[str, np.ndarray]) -> File:
    """Write index.npz atomically; returns what the manifest records of it."""
    buffer = io.BytesIO()
    stored = COLUMNS | {name: dtype for name, dtype in IMAGE_COLUMNS.items() if name in columns}
    arrays = {name: np.asarray(columns[name], dtype) for name, dtype in stored.items()}
    if NUMBERS in columns:
        arrays[NUMBERS] = np.ascontiguousarray(columns[NUMBERS], "<f4")
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write(folder / "index.npz", buffer.getvalue())
    return File(buffer.tell(), hashlib.sha256(buffer.getvalue()).hexdigest())
