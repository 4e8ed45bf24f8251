"""Scanning a shard of latents: one strict pass over the tar gives its rows of the index."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from distgan.data.index_file import COLUMNS, IMAGE_COLUMNS, read_npy_header
from distgan.data.tar import Member, members, split_key
from distgan.errors import CorruptDataError
from distgan.images import ENCODINGS
from distgan.samples import SampleSpec

LATENTS = "latents.npy"
"""The extension of the moments of a sample, float16 [2C, h, w], or [2, 2C, h, w] with those of the flipped image."""


def member_shape(spec: SampleSpec) -> tuple[int, ...]:
    """Of the array in the tar: `stored_shape`, without the axis of the encodings where there is one of them."""
    return spec.stored_shape if spec.stored_shape[0] > 1 else spec.stored_shape[1:]


def scan_latents(path: Path, spec: SampleSpec, images: bool) -> dict[str, np.ndarray]:
    """The index columns of a shard, [samples] each, without the labels; with `images`, also those of the images.

    Raises CorruptDataError for a corrupt tar, a duplicate key, and a sample without latents of `spec`, or with another
    number of images than it should have.
    """
    samples: dict[str, dict[str, Member]] = {}
    for member in members(path):
        key, extension = split_key(member.name)
        sample = samples.setdefault(key, {})
        if extension in sample:
            raise CorruptDataError(f"{path}: key {key} has two members .{extension}")
        sample[extension] = member
    columns: dict[str, list[int]] = {name: [] for name in COLUMNS if name != "label"}
    columns |= {name: [] for name in IMAGE_COLUMNS} if images else {}
    with open(path, "rb") as file:
        for key, sample in samples.items():
            found = [extension for extension in sample if extension in ENCODINGS]
            if LATENTS not in sample or len(found) != images:
                raise CorruptDataError(f"{path}: key {key} has .{', .'.join(sample)}; samples of this dataset do not")
            try:
                row = locate(file, sample[LATENTS], ("<f2", member_shape(spec)))
                if images:
                    shape = (spec.pixels.height, spec.pixels.width, spec.pixels.channels)
                    kind = ("|u1", shape) if ENCODINGS[found[0]] == "npy" else None
                    row |= {f"image_{name}": value for name, value in locate(file, sample[found[0]], kind).items()}
            except ValueError as error:
                raise CorruptDataError(f"{path}: key {key}: {error}") from None
            for name, value in row.items():
                columns[name].append(value)
    return {name: np.array(column, (COLUMNS | IMAGE_COLUMNS)[name]) for name, column in columns.items()}


def locate(file: BinaryIO, member: Member, array: tuple[str, tuple[int, ...]] | None) -> dict[str, int]:
    """Where the bytes of a member are, or with `array`, of an .npy of that dtype and shape, the values alone.

    Raises ValueError if it is another.
    """
    file.seek(member.offset)
    start = member.offset
    if array is not None:
        shape, fortran, dtype = read_npy_header(file)
        if (dtype, shape, fortran) != (*array, False):
            raise ValueError(f"{member.name} is {dtype} {shape}, not {array[0]} {array[1]}")
        start = file.tell()
    size = member.offset + member.size - start
    return {"offset": start, "size": size, "check": xxhash.xxh3_64_intdigest(file.read(size))}
