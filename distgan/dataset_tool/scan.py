"""Scanning a shard: one strict pass over a tar gives its rows of the index."""

import io
import math
import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash
from PIL import Image

from distgan.data.index_file import COLUMNS, read_npy_header
from distgan.data.schema import MAX_CHANNELS, MAX_SIZE, Label
from distgan.data.tar import Member, members, split_key
from distgan.dataset_tool.foreign import check_uncompressed, explain_images
from distgan.dataset_tool.label_files import read_label
from distgan.dataset_tool.pictures import conversion_needed
from distgan.dataset_tool.tar_labels import TarLabels
from distgan.dataset_tool.value_range import PixelValues
from distgan.errors import CorruptDataError, UsageError
from distgan.images import ENCODINGS, SHARD_PIL_FORMATS

NPY_DTYPES = {"|u1": "uint8", "<u2": "uint16", "<f2": "float16", "<f4": "float32"}
"""dtype in the header of an .npy -> dtype of pixels."""
ALL_ALIKE = (
    "all images of a dataset have the same size, channels, dtype and encoding: "
    "`distgan shards make DIR_OF_TARS DEST --size N` makes them alike"
)
FIX = "`distgan shards make DIR_OF_TARS DEST` converts it"


class Kind(NamedTuple):
    """What the images of a dataset have in common."""

    height: int
    width: int
    channels: int
    dtype: Any
    encoding: Any

    def __str__(self) -> str:
        kind = "" if self.dtype == "uint8" else f"{self.dtype} "
        return f"{self.height}x{self.width}x{self.channels} {kind}{self.encoding}"


class Scan:
    """The index columns and labels of one shard, and the kind of its images.

    Raises CorruptDataError for a corrupt tar, a sample without exactly one image, a duplicate key, images that differ
    in kind, and images that `shards make` would convert: they are not read as they are.
    """

    def __init__(self, path: Path, label_key: str = "label", rows: TarLabels | None = None) -> None:
        check_uncompressed(path)
        self.path = path
        self.label_key = label_key
        self.rows = rows
        """What takes columns of .cls and .json; None: they have the class alone."""
        self.columns: dict[str, list[int]] = {name: [] for name in COLUMNS if name != "label"}
        self.labels: list[Label | None] = []
        self.names: list[str] = []
        """The members that are the images."""
        self.kind: Kind | None = None
        """None if the shard has no images."""
        self.values = PixelValues()
        """Of images whose range is not that of their dtype."""
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
        image = data[offset : offset + size]  # a copy, which may be large
        try:
            kind, header = read_image_header(image, encoding)
            fields = {e: data[o : o + n] for e, (_, o, n) in sample.items() if e in ("cls", "json")}
            if self.rows is not None:
                self.rows.add(f"{self.path.name}/{name}", {f".{e}": field for e, field in fields.items()})
            self.labels.append(None if self.rows is not None else read_label(fields, self.label_key))
        except UsageError:
            raise
        except Exception as error:  # decoders document no exceptions
            raise CorruptDataError(f"{self.path}: key {key}: {error}") from None
        sides = (kind.height, kind.width)
        if not (1 <= min(sides) and max(sides) <= MAX_SIZE and 1 <= kind.channels <= MAX_CHANNELS):
            limits = f"1 to {MAX_SIZE} pixels a side and 1 to {MAX_CHANNELS} channels"
            raise CorruptDataError(f"{self.path}: key {key} is {kind}; images have {limits}")
        if self.kind not in (None, kind):
            raise CorruptDataError(f"{self.path}: key {key} is {kind}, the images before it {self.kind}; {ALL_ALIKE}")
        self.kind = kind
        if kind.dtype != "uint8":
            self._add_values(key, np.frombuffer(image, kind.dtype, offset=header))
        xxh3 = xxhash.xxh3_64_intdigest(memoryview(image)[header:])
        self.names.append(name)
        for column, value in {"offset": offset + header, "size": size - header, "check": xxh3}.items():
            self.columns[column].append(value)

    def arrays(self) -> dict[str, np.ndarray]:
        """The index columns, [samples] each, without that of the labels."""
        return {name: np.array(column, COLUMNS[name]) for name, column in self.columns.items()}

    def _add_values(self, key: str, pixels: np.ndarray) -> None:
        if not np.isfinite(pixels).all():
            raise CorruptDataError(f"{self.path}: key {key}: NaN or Inf among the pixels")
        self.values.add(pixels)


def read_image_header(data: bytes, encoding: str) -> tuple[Kind, int]:
    """The kind of an image, and the bytes before the pixels of an .npy (else 0); decodes nothing.

    Raises ValueError, also for a picture that is not read as it is: whatever `shards make` converts.
    """
    if encoding == "npy":
        file = io.BytesIO(data)
        shape, fortran, dtype = read_npy_header(file)
        if dtype not in NPY_DTYPES or fortran or len(shape) != 3:
            kinds = ", ".join(NPY_DTYPES.values())
            order = "in Fortran order" if fortran else str(shape)
            raise ValueError(f"an array of {dtype} {order}; images are [height, width, channels] of {kinds}; {FIX}")
        name = NPY_DTYPES[dtype]
        if len(data) - file.tell() != math.prod(shape) * np.dtype(name).itemsize:
            raise ValueError("the array's size in bytes does not match its shape")
        return Kind(*shape, name, encoding), file.tell()
    with Image.open(io.BytesIO(data), formats=SHARD_PIL_FORMATS) as image:
        if change := conversion_needed(image):
            raise ValueError(f"{change}; {FIX}")
        return Kind(image.height, image.width, 1 if image.mode in ("L", "1") else 3, "uint8", encoding), 0
