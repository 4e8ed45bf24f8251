"""Images in Parquet files, as Hugging Face datasets have them.

A column of images is a struct {bytes, path}, the bytes of image files, or paths relative to the Parquet file. It is
read in blocks of rows, of which a process keeps the last few in memory.
"""

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from distgan.dataset_tool.sources import parquet_columns
from distgan.dataset_tool.sources.columns import add_columns
from distgan.dataset_tool.sources.encoded import open_bytes, open_image
from distgan.dataset_tool.sources.parquet_files import download_dataset, files_of_split, find_parquets
from distgan.dataset_tool.sources.pixels import Layout
from distgan.dataset_tool.sources.source import Source
from distgan.errors import UsageError
from distgan.hub import HUB

BLOCK_BYTES = 32_000_000
"""Of images in a block of rows: a row group of up to this size is one block."""
BLOCKS_KEPT = 2
BUFFER_BYTES = 1 << 20
"""Read from a file at a time; without it, a row group is read whole."""


@dataclass(frozen=True)
class Block:
    """Rows of a row group that are read at once."""

    file: int
    row_group: int
    first: int
    """Row of the row group."""
    rows: int
    rows_of_others: int
    """Of every block of the row group but the last."""


def open_parquet(
    address: str,
    *,
    split: str,
    labels: str,
    label_columns: str | None,
    image_key: str | None,
    layout: Layout | None,
) -> Source:
    """Open a .parquet file, a folder of them, or hf://OWNER/NAME[@REV]; `layout` is that of images as .npy.

    The images of a block are a group. Raises UsageError.
    """
    folder, name = download_dataset(address, split) if address.startswith(HUB) else (Path(address), "parquet")
    files = files_of_split(find_parquets(folder), split, address) if folder.is_dir() else [folder.name]
    folder = folder if folder.is_dir() else folder.parent
    paths = [folder / file for file in files]
    schema, column = find_column(paths[0], image_key)
    leaves = parquet_columns.image_leaves(schema, column)
    blocks = [block for i, path in enumerate(paths) for block in find_blocks(i, path, schema, column, leaves)]
    sizes = [block.rows for block in blocks]
    readers = functools.cache(lambda pid: Reader(paths, blocks, leaves))
    source = Source(
        name,
        name_rows(files, blocks),
        lambda i: load(*readers(os.getpid()).value(i), layout),
        has_paths=True,
        fingerprint=[column, *((path.stat().st_size, path.stat().st_mtime_ns) for path in paths)],
        groups=np.repeat(np.arange(len(blocks)), sizes).tolist(),
    )
    names = parquet_columns.class_names(schema)
    candidates = parquet_columns.label_candidates(schema, column)
    if label_columns is None and labels == "auto":
        candidates = parquet_columns.default_columns(candidates, names, address)
    read = functools.partial(read_column, paths)
    return add_columns(source, candidates, read, labels=labels, label_columns=label_columns, where=address, names=names)


def opened(path: Path) -> pq.ParquetFile:
    """Raises UsageError."""
    return checked(path, lambda: pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False))


def checked(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` returns. Raises UsageError for what pyarrow raises."""
    try:
        return read()
    except UsageError:
        raise
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise UsageError(f"{path}: it cannot be read as Parquet: {' '.join(str(error).split())}") from None


def find_column(path: Path, image_key: str | None) -> tuple[pa.Schema, str]:
    """The schema of a file, and its column of images. Raises UsageError."""
    with opened(path) as file:
        column = checked(path, lambda: parquet_columns.find_image_column(file, image_key, str(path)))
        return file.schema_arrow, column


def find_blocks(number: int, path: Path, schema: pa.Schema, column: str, leaves: Sequence[str]) -> Iterator[Block]:
    """The blocks of a file, from its metadata. Raises UsageError if its columns are not those of `schema`."""
    with opened(path) as file:
        if not file.schema_arrow.equals(schema):
            fix = "give the files of one kind only"
            raise UsageError(f"{path}: its columns or their types are not those of the first file; {fix}")
        for group in range(file.metadata.num_row_groups):
            metadata = file.metadata.row_group(group)
            parts = [metadata.column(i) for i in range(metadata.num_columns)]
            size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema in leaves)
            rows = metadata.num_rows
            step = max(1, min(rows, int(rows * BLOCK_BYTES / max(1, size))))
            for first in range(0, rows, step):
                yield Block(number, group, first, min(step, rows - first), step)


def name_rows(files: Sequence[str], blocks: Sequence[Block]) -> list[str]:
    """FILE:ROW of every row, from 0."""
    names: list[str] = []
    row, file = 0, -1
    for block in blocks:
        row = row if block.file == file else 0
        file = block.file
        names += (f"{files[file]}:{row + i}" for i in range(block.rows))
        row += block.rows
    return names


def read_column(paths: Sequence[Path], name: str) -> list[Any]:
    """All values of a column of labels. Raises UsageError."""
    values: list[Any] = []
    for path in paths:
        with opened(path) as file:
            table = checked(path, lambda file=file: file.read(columns=[name], use_threads=False))
            values += table.column(name).to_pylist()
    return values


class Reader:
    """The values of the column of images by row, for one process."""

    def __init__(self, paths: Sequence[Path], blocks: Sequence[Block], leaves: list[str]) -> None:
        self.paths = paths
        self.blocks = blocks
        self.leaves = leaves
        self.starts = np.cumsum([0, *(block.rows for block in blocks)])
        self.read_block = functools.lru_cache(BLOCKS_KEPT)(self._read_block)
        self._group: tuple[int, int] | None = None
        """The (file, row group) that was read last."""
        self._batches: Iterator[pa.RecordBatch] = iter(())
        """Of that group, from row `_next` on."""
        self._next = 0

    def value(self, row: int) -> tuple[Any, Path]:
        """The value of a row, counted over all files, and its file. Raises ValueError and OSError."""
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        values = self.read_block(number)
        if isinstance(values, str):
            raise ValueError(values)
        return values[row - int(self.starts[number])].as_py(), self.paths[self.blocks[number].file]

    def _read_block(self, number: int) -> pa.Array | str:
        """The values in a block, or why they cannot be read; what is before them in the row group is read over."""
        block = self.blocks[number]
        try:
            if self._group != (block.file, block.row_group) or self._next > block.first:
                self._open(block)
            values = pa.array([])
            while self._next <= block.first:
                values = next(self._batches).column(0)
                self._next += len(values)
            if self._next != block.first + block.rows or len(values) != block.rows:
                raise ValueError("the rows are not those of its metadata")
            return values
        except (pa.ArrowException, OSError, ValueError, MemoryError, StopIteration) as error:
            self._group = None
            return " ".join(str(error).split()) or "the row group ends before this row"

    def _open(self, block: Block) -> None:
        file = pq.ParquetFile(self.paths[block.file], buffer_size=BUFFER_BYTES, pre_buffer=False)
        self._batches = file.iter_batches(
            block.rows_of_others, row_groups=[block.row_group], columns=self.leaves, use_threads=False
        )
        self._group = (block.file, block.row_group)
        self._next = 0


def load(value: Any, file: Path, layout: Layout | None) -> Image.Image | np.ndarray:
    """The image that a row holds, or names by its path. Raises ValueError and OSError."""
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return open_bytes(data, layout)
    path = value.get("path") if isinstance(value, dict) else value
    if not isinstance(path, str):
        raise ValueError("the row has no image")
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ValueError(f"the image {path!r} is not in the folder of the Parquet file")
    return open_image(file.parent / path, layout)
