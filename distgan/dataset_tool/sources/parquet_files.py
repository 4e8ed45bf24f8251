"""The Parquet files of a dataset: those of a split in a folder, and the hub's datasets in its cache."""

import re
from pathlib import Path, PurePosixPath

from distgan.dataset_tool.notes import note
from distgan.dataset_tool.sources.source import is_hidden
from distgan.errors import UsageError
from distgan.hub import HUB, download, parse_address

SPLITS = {
    **{"train": "train", "training": "train", "test": "test"},
    **{"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"},
}
"""A word in the name of a file or folder -> the split that it means."""


def find_parquets(folder: Path) -> list[str]:
    """The names of the Parquet files in a folder and its subfolders, sorted; hidden ones are left out."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*.parquet"))
    return sorted(name for name in names if not any(map(is_hidden, PurePosixPath(name).parts)))


def split_of(name: str) -> str | None:
    """The split that a file is of: data/train-00000-of-00002.parquet, or en/test/0.parquet; None: it does not say."""
    words = re.split(r"[^a-z]+", name.lower().removesuffix(".parquet"))
    return next((SPLITS[word] for word in reversed(words) if word in SPLITS), None)


def files_of_split(names: list[str], split: str, where: str) -> list[str]:
    """The files of a split; all, if no name says what split it is of. A note says how many are left out.

    Raises UsageError if no file is of the split.
    """
    splits = {name: split_of(name) for name in names}
    known = sorted({found for found in splits.values() if found is not None})
    if not known:
        return names
    chosen = [name for name in names if splits[name] == split]
    if not chosen:
        raise UsageError(f"--split: no Parquet file in {where} is of {split!r}; there is {', '.join(known)}")
    if left_out := [name for name in names if name not in set(chosen)]:
        note(f"{where}: {len(chosen)} files are of the split {split}; {len(left_out)} others are not, as {left_out[0]}")
    return chosen


def download_dataset(address: str, split: str) -> tuple[Path, str]:
    """The folder in the hub's cache of the dataset hf://OWNER/NAME[@REV], and hf://OWNER/NAME@COMMIT.

    Only Parquet files are downloaded, and of a dataset in splits only those of `split`. Raises UsageError.
    """
    where = parse_address(address, "a dataset")
    for pattern in (f"*{split}*.parquet", "*.parquet"):
        folder = download(where, [pattern], extra="parquet", kind="dataset")
        if find_parquets(folder):
            return folder, f"{HUB}{where.repository}@{folder.name}"
    fix = "the hub's own conversion of many is at @refs/convert/parquet"
    raise UsageError(f"{address}: there is no Parquet file in it; {fix}")
