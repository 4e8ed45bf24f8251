"""Class folders: which folders of a tree are the classes, and which only look like it."""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

from distgan.dataset_tool.notes import escape_name, note, warn
from distgan.errors import UsageError

SPLIT = re.compile(r"(?i)(train|training|val|valid|validation|test|testing)")
SPLIT_FILE = re.compile(rf"{SPLIT.pattern}(?:[-_.\d].*)?")


def class_folders(names: Sequence[str], forced: bool) -> list[str] | None:
    """The class folder of every image by its path, [N]; None if the images are not in several folders.

    A single folder around all is gone into, and a note says so. Raises UsageError for folders that are splits (train,
    val, test) or buckets (00000, 01000), unless `forced`, and for a forced tree without class folders.
    """
    paths = [PurePosixPath(name).parts for name in names]
    depth = 0
    while len(folders := {path[depth] if len(path) > depth + 1 else None for path in paths}) == 1 and folders != {None}:
        depth += 1
    stray = next((name for name, path in zip(names, paths, strict=True) if len(path) <= depth + 1), None)
    tops = sorted(folder for folder in folders if folder is not None)
    if stray is not None or len(tops) < 2:
        if forced:
            where = f"{escape_name(stray)} is in none" if stray is not None else "there is no image"
            raise UsageError(f"--labels folders: every image needs a class folder, and {where}")
        if len(tops) > 1 and stray is not None:
            warn(f"no labels: {escape_name(stray)} is not in a class folder")
        return None
    if not forced:
        check_folders(tops, paths, depth)
    if depth:
        note(f"the classes are the folders in {escape_name('/'.join(paths[0][:depth]))}/")
    return [path[depth] for path in paths]


def check_folders(tops: list[str], paths: Sequence[tuple[str, ...]], depth: int) -> None:
    """Raises UsageError if the folders `tops`, `depth` folders deep, may be no classes."""
    choose = "--labels none leaves them without labels, --labels folders takes the folders for classes"
    splits = [top for top in tops if SPLIT.fullmatch(top)]
    if len(splits) > 1:
        within = "/".join(("SRC", *paths[0][:depth], splits[0]))
        inside = sorted({path[depth + 1] for path in paths if path[depth] == splits[0] and len(path) > depth + 2})
        classes = f" (with the classes {listed(inside)})" if len(inside) > 1 else ""
        each = f"make one of them, `distgan shards make {escape_name(within)} DEST`"
        raise UsageError(f"{listed(tops)} are splits, not classes: {each}{classes}; of all together, {choose}")
    if all(re.fullmatch(r"\d+", top) for top in tops):
        raise UsageError(f"the folders {listed(tops)} are classes or only parts of one set; {choose}")


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Up to `limit` names, and how many more."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(map(escape_name, names[:limit])) + more


def check_splits(tars: Sequence[str], folder: str, command: str) -> None:
    """Raises UsageError if the tars in a folder, by their paths, are of several splits, by their folders or names.

    `command` is what to type for a folder of tars, such as "distgan shards index DIR".
    """
    splits: dict[str, PurePosixPath] = {}
    for tar in tars:
        parts = PurePosixPath(tar).parts
        found = next((i for i, part in enumerate(parts) if SPLIT_FILE.fullmatch(part)), None)
        if found is not None:
            splits.setdefault(parts[found][:2].lower(), PurePosixPath(*parts[: found + 1]))
    if len(splits) > 1:
        first, second = list(splits.values())[:2]
        move = "" if str(first) not in tars else "move the tars of each into a folder of its own, and "
        one = f"{folder}/{first}" if str(first) not in tars else f"{folder}/train"
        fix = f"{move}take one: `{command.replace('DIR', escape_name(one))}`"
        shown = f"{escape_name(str(first))} and {escape_name(str(second))}"
        raise UsageError(f"{escape_name(folder)} has tars of several splits, {shown}; {fix}")
