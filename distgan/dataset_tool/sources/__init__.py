"""What `shards make` reads: folders, class-folder trees, zips, tables, databases, and built-in datasets by name."""

from collections.abc import Callable
from pathlib import Path

from distgan.dataset_tool.sources.files import open_folder, open_zip
from distgan.dataset_tool.sources.named import cifar10, digits, fashion_mnist, mnist, stacked_mnist
from distgan.dataset_tool.sources.pixels import Layout
from distgan.dataset_tool.sources.source import Source
from distgan.dataset_tool.sources.tables import KINDS, TableOptions, open_table
from distgan.errors import UsageError


def open_source(
    source: str,
    *,
    split: str,
    files: str | None,
    labels: str,
    samples: int,
    seed: int,
    label_columns: str | None = None,
    image_key: str | None = None,
    layout: Layout | None = None,
) -> Source:
    """Open SRC of `shards make`; the options are those of the command. Raises UsageError."""
    if source in BUILTIN:
        return BUILTIN[source](split=split, files=Path(files) if files else None, samples=samples, seed=seed)
    table = open_table(source, TableOptions(split, labels, label_columns, image_key, layout))
    if table is not None:
        return table
    path = Path(source)
    if image_key is not None:
        raise UsageError(f"--image_key: {source} is not a table with columns; leave it out")
    if path.is_dir():
        return open_folder(path, labels, label_columns, layout)
    if path.suffix.lower() == ".zip" and path.is_file():
        return open_zip(path, labels, label_columns, layout)
    listed = f"a folder, a .zip, {KINDS}, or one of {', '.join(BUILTIN)}"
    raise UsageError(f"{source} is not there, or nothing that is read: SRC is {listed}")


BUILTIN: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "stacked-mnist": stacked_mnist,
    "cifar10": cifar10,
}
