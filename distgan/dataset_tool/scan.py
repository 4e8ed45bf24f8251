"""Scanning a shard: one strict pass over a tar gives its rows of the index."""

import io
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from distgan.data.index_file import COLUMNS, read_npy_header
from distgan.data.schema import MAX_SIZE, Label
from distgan.data.tar import Member, members, split_key
from distgan.dataset_tool.foreign import check_uncompressed, explain_images
from distgan.dataset_tool.label_files import read_label
from distgan.errors import CorruptDataError
from distgan.images import ENCODINGS, SHARD_PIL_FORMATS

Kind = tuple[int, Any, Any]
"""Size, channels and encoding of images, as in the manifest."""


class Scan:
    """The index columns and labels of one shard, and the (size, channels, encoding) of its images.

    Raises CorruptDataError for a corrupt tar, a sample without exactly one image, a duplicate key, and images that
    differ in size, channels or encoding.
    """

    def __init__(self, path: Path, label_key: str = "label") -> None:
        check_uncompressed(path)
        self.path = path
        self.label_key = label_key
        self.columns: dict[str, list[int]] = {name: [] for name in COLUMNS if name != "label"}
        self.labels: list[Label | None] = []
        self.names: list[str] = []
        """The members that are the images."""
        self.kind: Kind | None = None
        """(size, channels, encoding); None if the shard has no images."""
        seen: set[str] = set()
        sample: dict[str, Member] = {}
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
                        key = member_key
                        sample = {}
                    elif extension in sample:
                        raise CorruptDataError(f"{path}: key {key} has two members .{extension}")
                    sample[extension] = member
                self._add(key, sample, data)

    def _add(self, key: str | None, sample: dict[str, Member], data: mmap.mmap) -> None:
        """Append a sample, its members by extension, to the columns. Raises CorruptDataError."""
        if key is None:
            return
        if reason := explain_images(sample):
            raise CorruptDataError(f"{self.path}: key {key} {reason}")
        images = [extension for extension in sample if extension in ENCODINGS]
        encoding = ENCODINGS[images[0]]
        name, offset, size = sample[images[0]]
        try:
            height, width, channels, header = read_image_header(data[offset : offset + size], encoding)
            fields = {e: data[o : o + n] for e, (_, o, n) in sample.items() if e in ("cls", "json")}
            self.labels.append(read_label(fields, self.label_key))
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
        offset += header
        size -= header
        xxh3 = xxhash.xxh3_64_intdigest(data[offset : offset + size])
        self.names.append(name)
        for column, value in {"offset": offset, "size": size, "check": xxh3}.items():
            self.columns[column].append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """The index columns, [samples] each, without that of the labels."""
        return {name: np.array(column, COLUMNS[name]) for name, column in self.columns.items()}


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
