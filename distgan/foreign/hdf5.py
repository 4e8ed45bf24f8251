"""The datasets of an HDF5 file, as tensors by path."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from distgan.dataset_tool.sources.apart import call_apart
from distgan.errors import UsageError, shorten
from distgan.foreign.stored import StoredTensor

MOST_ITEMS = 10_000
MOST_DEPTH = 16
COMPRESSION = 4
"""The most that weights, which are nearly random bits, are compressed by: a file that claims more is refused."""


def read_hdf5(path: Path) -> dict[str, StoredTensor]:
    """The datasets by path, such as synthesis_network/const. Raises UsageError.

    The HDF5 library can crash on damaged files: it runs in a process of its own.
    """
    arrays = call_apart(lambda: read_arrays(path), str(path))
    return {name: stored(array) for name, array in arrays.items()}


def stored(array: np.ndarray) -> StoredTensor:
    return StoredTensor(array.shape, array.nbytes, lambda: torch.from_numpy(array).to(torch.float64))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The datasets' values, float16 to float64. Raises UsageError."""
    items: dict[str, h5py.Dataset | None] = {}
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            find_items(file, "", items)
            found = {name: dataset for name, dataset in items.items() if dataset is not None}
            claimed = sum(dataset.nbytes for dataset in found.values())
            if claimed > COMPRESSION * path.stat().st_size:
                raise UsageError(f"it claims {claimed:,} bytes of numbers, in a file of {path.stat().st_size:,}")
            return {name: dataset[()] if dataset.shape else np.array(dataset[()]) for name, dataset in found.items()}
    except UsageError:
        raise
    except Exception as error:  # h5py documents no exceptions
        raise UsageError(f"it is damaged ({shorten(' '.join(str(error).split()))})") from None


def find_items(group: h5py.Group, path: str, found: dict[str, h5py.Dataset | None]) -> None:
    """Add the datasets below `group` by path, and None for each group.

    Raises UsageError for what points out of the file, or in circles.
    """
    for name in group:
        place = f"{path}{name}"
        item: Any = group.get(name) if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
        if len(found) == MOST_ITEMS or place.count("/") > MOST_DEPTH:
            raise UsageError(f"it has more than {MOST_ITEMS:,} items, or is nested too deep")
        if isinstance(item, h5py.Group):
            found[place] = None
            find_items(item, f"{place}/", found)
        elif not isinstance(item, h5py.Dataset) or item.external or item.is_virtual:
            raise UsageError(f"{place} is not in the file itself")
        elif item.dtype.kind != "f" or item.shape is None:
            raise UsageError(f"{place} is of type {item.dtype}, where weights are")
        else:
            found[place] = item
