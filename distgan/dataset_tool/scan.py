"""Scanning a shard: one strict pass over a tar gives its rows of the index."""

import io
import json
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from distgan import CorruptDataError
from distgan.data.schema import MAX_CLASSES, MAX_SIZE
from distgan.data.shardset import COLUMNS, read_npy_header
from distgan.data.tar import members, split_key
from distgan.images import ENCODINGS, SHARD_PIL_FORMATS


class Scan:
    """The index columns of one shard, and the (size, channels, encoding) of its images.

    Raises CorruptDataError for a corrupt tar, a sample without exactly one image, a duplicate key, and images that
    differ in size, channels or encoding.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: dict[str, list[int]] = {name: [] for name in COLUMNS}
        self.kind: tuple[int, int, str] | None = None
        """(size, channels, encoding); None if the shard has no images."""
        seen: set[str] = set()
        sample: dict[str, tuple[int, int]] = {}
        key = None
        with open(path, "rb") as file:
            if path.stat().st_size == 0:
                raise CorruptDataError(f"{path}: an empty file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                for member in members(path):
                    member_key, extension = split_key(member.name)
                    if member_key != key:
                        self._add(key, sample, data)
                        if member_key in seen:
                            raise CorruptDataError(f"{path}: duplicate key {member_key}")
                        seen.add(member_key)
                        key, sample = member_key, {}
                    elif extension in sample:
                        raise CorruptDataError(f"{path}: key {key} has two members .{extension}")
                    sample[extension] = member.offset, member.size
                self._add(key, sample, data)

    def _add(self, key: str | None, sample: dict[str, tuple[int, int]], data: mmap.mmap) -> None:
        """Append the row of a sample: {extension: (offset, size)} of its members."""
        if key is None:
            return
        images = [extension for extension in sample if extension in ENCODINGS]
        if len(images) != 1:
            found = ", ".join(f".{extension}" for extension in sample)
            raise CorruptDataError(f"{self.path}: key {key} needs one image (.npy, .png, .jpg), it has {found}")
        encoding = ENCODINGS[images[0]]
        offset, size = sample[images[0]]
        try:
            height, width, channels, header = read_image_header(data[offset : offset + size], encoding)
            label = read_label({e: data[o : o + n] for e, (o, n) in sample.items() if e in ("cls", "json")})
        except Exception as error:  # decoders document no exceptions
            raise CorruptDataError(f"{self.path}: key {key}: {error}") from None
        if height != width or height > MAX_SIZE:
            raise CorruptDataError(
                f"{self.path}: key {key} is {width}x{height}; images must be square, with sides up to {MAX_SIZE}"
            )
        kind = (height, channels, encoding)
        if self.kind not in (None, kind):
            raise CorruptDataError(
                f"{self.path}: key {key} is {kind}, the images before it {self.kind}; "
                "all images of a dataset have the same size, channels and encoding"
            )
        self.kind = kind
        offset, size = offset + header, size - header
        xxh3 = xxhash.xxh3_64_intdigest(data[offset : offset + size])
        for name, value in {"offset": offset, "size": size, "label": label, "check": xxh3}.items():
            self.columns[name].append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """The index columns, [samples] each."""
        return {name: np.array(self.columns[name], dtype) for name, dtype in COLUMNS.items()}


def read_label(fields: dict[str, bytes]) -> int:
    """The label in a sample's .cls or .json; -1 if it has none. Raises ValueError."""
    label: Any = -1
    if "cls" in fields:
        label = int(fields["cls"])
    elif "json" in fields:
        label = json.loads(fields["json"]).get("label", -1)
    if not isinstance(label, int) or not -1 <= label < MAX_CLASSES:
        raise ValueError(f"the label {label!r} is not an integer in [0, {MAX_CLASSES:,})")
    return label


def read_image_header(data: bytes, encoding: str) -> tuple[int, int, int, int]:
    """Height, width and channels of an image, and the bytes before the pixels of an .npy (else 0); decodes nothing."""
    if encoding == "npy":
        file = io.BytesIO(data)
        shape, fortran, dtype = read_npy_header(file)
        if dtype != "|u1" or fortran or len(shape) != 3 or shape[2] not in (1, 3):
            raise ValueError(f"an array of {dtype} {shape}; images are uint8 [height, width, 1 or 3]")
        if len(data) - file.tell() != math.prod(shape):
            raise ValueError("the array's size in bytes does not match its shape")
        return (*shape, file.tell())
    with Image.open(io.BytesIO(data), formats=SHARD_PIL_FORMATS) as image:
        return image.height, image.width, 1 if image.mode in ("L", "1") else 3, 0
