"""What is in a shard: one strict pass over a tar gives its rows of the index."""

import io
import json
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from distgan import CorruptDataError
from distgan.data.shardset import CLASSES, COLUMNS, EXTENSIONS, PIL_FORMATS
from distgan.data.tar import members, split_key


class Scan:
    """The index columns of one shard and what its images are: (size, channels, encoding).

    Raises CorruptDataError where the tar is, where a sample has no image or two, where a key comes twice, and where images
    differ in size, channels or encoding: a set is of one kind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: dict[str, list[int]] = {name: [] for name in COLUMNS}
        self.kind: tuple[int, int, str] | None = None
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
                            raise CorruptDataError(f"{path}: key {member_key} comes twice")
                        seen.add(member_key)
                        key, sample = member_key, {}
                    elif extension in sample:
                        raise CorruptDataError(f"{path}: key {key} has two members .{extension}")
                    sample[extension] = member.offset, member.size
                self._add(key, sample, data)

    def _add(self, key: str | None, sample: dict[str, tuple[int, int]], data: mmap.mmap) -> None:
        if key is None:
            return
        images = [extension for extension in sample if extension in EXTENSIONS]
        if len(images) != 1:
            have = ", ".join(f".{extension}" for extension in sample)
            raise CorruptDataError(f"{self.path}: key {key} needs one image (.npy, .png, .jpg), it has {have}")
        encoding = EXTENSIONS[images[0]]
        offset, size = sample[images[0]]
        try:
            height, width, channels, skip = describe(data[offset : offset + size], encoding)
            label = self._label({e: data[o : o + n] for e, (o, n) in sample.items() if e in ("cls", "json")})
        except (ValueError, KeyError, TypeError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise CorruptDataError(f"{self.path}: key {key}: {error}") from None
        if height != width:
            raise CorruptDataError(f"{self.path}: key {key} is {width}x{height}; images must be square")
        kind = (height, channels, encoding)
        if self.kind not in (None, kind):
            raise CorruptDataError(
                f"{self.path}: key {key} is {kind}, the images before it {self.kind}; a set is of one kind"
            )
        self.kind = kind
        offset, size = offset + skip, size - skip
        row = {
            "offset": offset,
            "size": size,
            "label": label,
            "check": xxhash.xxh3_64_intdigest(data[offset : offset + size]),
        }
        for name, value in row.items():
            self.columns[name].append(value)

    @staticmethod
    def _label(fields: dict[str, bytes]) -> int:
        label: Any = -1
        if "cls" in fields:
            label = int(fields["cls"])
        elif "json" in fields:
            label = json.loads(fields["json"]).get("label", -1)
        if not isinstance(label, int) or not -1 <= label < CLASSES:
            raise ValueError(f"the label {label!r} is not a number from 0 to {CLASSES:,}")
        return label

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.array(self.columns[name], dtype) for name, dtype in COLUMNS.items()}


def describe(data: bytes, encoding: str) -> tuple[int, int, int, int]:
    """Height, width, channels of an image, and the bytes before its pixels where they lie raw; decodes nothing."""
    if encoding == "npy":
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype != np.uint8 or fortran or len(shape) != 3 or shape[2] not in (1, 3):
            raise ValueError(f"an array of {dtype} {shape}; images are uint8 [height, width, 1 or 3]")
        if len(data) - file.tell() != int(np.prod(shape)):
            raise ValueError("the array's bytes are not those its shape needs")
        return (*shape, file.tell())
    with Image.open(io.BytesIO(data), formats=PIL_FORMATS) as image:
        return image.height, image.width, 1 if image.mode in ("L", "1") else 3, 0
