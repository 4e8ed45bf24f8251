"""What `shards make` reads: folders, class-folder trees, zips, and built-in datasets by name."""

from collections.abc import Callable
from pathlib import Path

from distgan.dataset_tool.sources.files import open_folder, open_zip
from distgan.dataset_tool.sources.named import cifar10, digits, fashion_mnist, mnist, stacked_mnist
from distgan.dataset_tool.sources.source import Source
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
) -> Source:
    """Open SRC of `shards make`; the options are those of the command. Raises UsageError."""
    if source in BUILTIN:
        return BUILTIN[source](split=split, files=Path(files) if files else None, samples=samples, seed=seed)
    path = Path(source)
    if path.is_dir():
        return open_folder(path, labels, label_columns)
    if path.suffix.lower() == ".zip" and path.is_file():
        return open_zip(path, labels, label_columns)
    raise UsageError(f"{source} is not a folder, .zip or built-in dataset; choose from {', '.join(BUILTIN)}")


BUILTIN: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "stacked-mnist": stacked_mnist,
    "cifar10": cifar10,
}
