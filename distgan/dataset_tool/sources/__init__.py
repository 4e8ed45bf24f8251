"""What `shards make` reads: folders, class folders, zips, tars of others, tables, and built-in datasets by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distgan.dataset_tool.notes import note
from distgan.dataset_tool.sources.files import find_files, open_folder, open_zip
from distgan.dataset_tool.sources.named import cifar10, digits, fashion_mnist, mnist, stacked_mnist
from distgan.dataset_tool.sources.pixels import Layout
from distgan.dataset_tool.sources.source import LABEL_FILES, Source, count_suffixes, is_image
from distgan.dataset_tool.sources.tables import KINDS, TableOptions, kind_of_table, open_table, refuse_zipped_table
from distgan.dataset_tool.sources.tars import is_tar, open_tars
from distgan.errors import UsageError

BESIDE_TARS = (*LABEL_FILES, "manifest.json", "index.npz", "sources.txt")
"""Files that a folder of tars may hold."""


def open_source(source: str, *, layout: Layout | None = None, **options: Any) -> Source:
    """Open SRC of `shards make`; the options are those of `find_source`. Raises UsageError."""
    found = find_source(source, layout=layout, **options)
    if layout is not None:  # with another one, an interrupted `make` is not resumed
        found.fingerprint = [*found.fingerprint, layout]
    return found


def find_source(
    source: str,
    *,
    split: str,
    files: str | None,
    labels: str,
    samples: int,
    seed: int,
    label_columns: str | None = None,
    label_key: str = "label",
    image_key: str | None = None,
    layout: Layout | None = None,
) -> Source:
    """The source that SRC of `shards make` is; the options are those of the command. Raises UsageError."""
    path = Path(source)
    of_tars = {"label_key": None if label_key == "label" else label_key, "image_key": image_key}
    if source in BUILTIN:
        refuse(source, label_columns=label_columns, layout=layout, **of_tars)
        return open_builtin(source, split, files, samples, seed)
    found = list(find_files(path)) if path.is_dir() else []
    kind = kind_of_table(source, found)
    if kind is not None:
        refuse(source, label_key=of_tars["label_key"])
        return open_table(kind, source, TableOptions(split, labels, label_columns, image_key, layout))
    tars = [path] if path.is_file() and is_tar(path.name) else [file for file in found if is_tar(file.name)]
    if tars:
        root = path if path.is_dir() else path.parent
        check_beside_tars(path, tars[0], found)
        return open_tars(root, tars, labels, label_columns, label_key, image_key, layout)
    if path.is_dir():
        refuse(source, **of_tars)
        return open_folder(path, found, labels, label_columns, layout)
    if not path.is_file() or path.suffix.lower() != ".zip":
        kinds = f"a folder, .zip, .tar, {KINDS} or built-in dataset; choose from {', '.join(BUILTIN)}"
        raise UsageError(f"{source} is not {kinds}")
    refuse(source, **of_tars)
    try:
        return open_zip(path, labels, label_columns, layout)
    except UsageError:
        refuse_zipped_table(path)
        raise


def open_builtin(source: str, split: str, files: str | None, samples: int, seed: int) -> Source:
    """A dataset by name. Raises UsageError."""
    if split not in ("train", "test"):
        raise UsageError(f"--split: {source} has the splits train and test")
    return BUILTIN[source](split=split, files=Path(files) if files else None, samples=samples, seed=seed)


def check_beside_tars(folder: Path, tar: Path, files: list[Path]) -> None:
    """Say which `files` in a folder of tars are no tars. Raises UsageError if one is an image."""
    image = next((file for file in files if is_image(file.name)), None)
    if image is not None:
        both = f"images ({image.relative_to(folder)}) and tars ({tar.relative_to(folder)})"
        raise UsageError(f"{folder} has {both}; put the tars into a folder of their own, and make that")
    others = count_suffixes(file.name for file in files if not is_tar(file.name) and file.name not in BESIDE_TARS)
    if others:
        note(f"left out, since they are no tars: {others}")


def refuse(source: str, **options: str | None) -> None:
    """Raises UsageError for an option that is given, and that this kind of source does not have."""
    for name, value in options.items():
        if value is not None:
            raise UsageError(f"--{name}: {source} has nothing that it could choose from; leave it out")


BUILTIN: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "stacked-mnist": stacked_mnist,
    "cifar10": cifar10,
}
