"""Tensors that are still in a file: their shapes are known, their values are read when they are asked for."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distgan.errors import UsageError

MOST_DIMENSIONS = 8


@dataclass(frozen=True)
class Storage:
    """A run of `count` numbers of one type in a file of torch."""

    dtype: torch.dtype
    count: int
    read_bytes: Callable[[], bytes]
    """The `nbytes` bytes; raises UsageError, where the file has fewer."""

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of floating-point numbers in a file."""

    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], Tensor]
    """Its values, float64; raises UsageError."""


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    """A view of a storage, as torch's own function of this name makes it; raises UsageError for one beyond its end.

    `size` and `stride` are those of torch.as_strided, `offset` the storage's first number.
    """
    numbers = [offset, *size, *stride] if isinstance(size, tuple) and isinstance(stride, tuple) else [None]
    if not isinstance(storage, Storage) or not all(type(number) is int and number >= 0 for number in numbers):
        raise UsageError("a tensor without a storage, a size or a stride")
    if len(size) != len(stride) or len(size) > MOST_DIMENSIONS:
        raise UsageError(f"a tensor of size {size} and stride {stride}")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if count > storage.count or (count and last >= storage.count):
        raise UsageError(f"a tensor of size {size} in a storage of {storage.count} numbers")
    if not storage.dtype.is_floating_point:
        # counters of optimizers and masks of buffers: not read, but a file may have them
        return StoredTensor(size, count * storage.dtype.itemsize, refuse_integers(storage.dtype))

    def read() -> Tensor:
        if not count:
            return torch.empty(size, dtype=torch.float64)
        numbers = torch.frombuffer(bytearray(storage.read_bytes()), dtype=storage.dtype)
        return numbers.as_strided(size, stride, offset).to(torch.float64)

    return StoredTensor(size, count * storage.dtype.itemsize, read)


def refuse_integers(dtype: torch.dtype) -> Callable[[], Tensor]:
    def read() -> Tensor:
        raise UsageError(f"a tensor of {dtype}, where weights are")

    return read
