"""Indexing shards that another program wrote: their manifest and index."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from distgan import __version__
from distgan.data.index_file import NUMBERS, write_index
from distgan.data.manifest import class_rows, condition_rows, decode_manifest, write_manifest
from distgan.data.schema import FORMAT, Fields, ImageField, Label, Manifest, Shard
from distgan.dataset_tool.check import Progress
from distgan.dataset_tool.foreign import find_tars
from distgan.dataset_tool.label_files import class_names, labels_beside, labels_of_table, read_table
from distgan.dataset_tool.labels import NO_LABELS, Labels, number_labels
from distgan.dataset_tool.scan import ALL_ALIKE, Kind, Scan
from distgan.dataset_tool.tar_labels import TarLabels, made_columns
from distgan.dataset_tool.value_range import PixelValues, resolve_range
from distgan.errors import CorruptDataError, UsageError
from distgan.files import sha256_file


class Tars(NamedTuple):
    """What is in the tars of a folder."""

    shards: list[Shard]
    columns: dict[str, np.ndarray]
    """Of the index, [samples] each, without the labels."""
    names: list[str]
    """The members that are the images."""
    labels: list[Label | None]
    """None: without a label."""
    kind: Kind
    values: list[PixelValues]
    """Of each shard, where the range of pixels is not that of their dtype."""


def index(
    folder: Path,
    progress: Progress = iter,
    label_key: str = "label",
    range: str | None = None,
    label_columns: str | None = None,
) -> Manifest:
    """Write manifest.json and index.npz for the tars in `folder`; returns the manifest.

    Labels are those of .cls members, of .json members under `label_key`, or of a dataset.json in the folder; names of
    classes those of its classes.json, or the labels themselves. With `label_columns`, they are those columns of .json
    members and "cls", or of the dataset.json. Where `shards make` wrote the dataset, only index.npz is written. Raises
    UsageError, and CorruptDataError if images differ in kind, or are not read as they are.
    """
    made = read_manifest_of_make(folder)
    if made is not None:
        return restore_index(folder, made, progress, label_key, label_columns)
    if label_columns is None:
        beside, names = labels_beside(folder)
        tars = scan_folder(folder, progress, label_key, beside)
        labels = classes_of(folder, tars, names, label_key)
    else:
        rows = TarLabels(label_columns, label_key)
        tars = scan_folder(folder, progress, label_key, {}, rows)
        labels = columns_of(folder, tars, label_columns, rows)
    add_columns(tars, labels)
    height, width, channels, dtype, encoding = tars.kind
    limits = resolve_range(range, dtype, tars.values)
    manifest = Manifest(
        format=FORMAT,
        samples=len(tars.labels),
        fields=Fields(ImageField(height, width, channels, dtype, limits, encoding)),
        classes=class_rows(labels.classes, tars.columns["label"]) if labels.classes else [],
        conditions=condition_rows(labels.number_names, tars.columns[NUMBERS]) if labels.number_names else [],
        shards=tars.shards,
        made_by=f"distgan {__version__}, index",
        index=write_index(folder, tars.columns),
    )
    write_manifest(folder, manifest)
    return manifest


def restore_index(
    folder: Path, made: Manifest, progress: Progress, label_key: str, label_columns: str | None
) -> Manifest:
    """Write the index.npz of a dataset that `shards make` wrote. Raises UsageError and CorruptDataError."""
    if label_columns is not None or label_key != "label":
        option = "--label_key" if label_columns is None else "--label_columns"
        raise UsageError(f"{option}: `shards make` wrote {folder}, with its labels; leave it out, or make it again")
    columns = made_columns(made)
    rows = None if columns is None else TarLabels(columns, "label")
    tars = scan_folder(folder, progress, label_key, {}, rows)
    labels = NO_LABELS if rows is None else rows.labels(str(folder), [row.name for row in made.classes])
    add_columns(tars, labels or NO_LABELS)
    check_same(folder, made, tars)
    manifest = msgspec.structs.replace(made, index=write_index(folder, tars.columns))
    write_manifest(folder, manifest)
    return manifest


def classes_of(folder: Path, tars: Tars, names: Sequence[str], label_key: str) -> Labels:
    """The classes of the samples. Raises UsageError if `label_key` is in none, and CorruptDataError."""
    if label_key != "label" and not any(label is not None for label in tars.labels):
        raise UsageError(f"--label_key: no .json in {folder} has a {label_key!r}")
    try:
        labels, classes = number_all(tars.labels, names)
    except ValueError as error:
        raise CorruptDataError(f"{folder}: {error}") from None
    return NO_LABELS._replace(labels=labels, classes=classes)


def columns_of(folder: Path, tars: Tars, label_columns: str, rows: TarLabels) -> Labels:
    """The labels in columns of the folder's dataset.json, or of the .cls and .json members. Raises UsageError."""
    path = folder / "dataset.json"
    names = class_names(folder)
    if path.exists():
        table = read_table(".json", path.read_bytes(), str(path))
        return labels_of_table(table, tars.names, label_columns, str(path), names)
    return rows.labels(str(folder), names) or NO_LABELS


def add_columns(tars: Tars, labels: Labels) -> None:
    """Add the labels to the columns of the index."""
    tars.columns["label"] = np.full(len(tars.labels), -1) if labels.labels is None else labels.labels
    if labels.numbers is not None:
        tars.columns[NUMBERS] = labels.numbers.astype(np.float32)


def number_all(labels: Sequence[Label | None], names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """The labels as numbers, [samples], and the names of the classes; -1 and no names if there are no labels at all.

    Raises ValueError.
    """
    given = [label for label in labels if label is not None]
    if not given:
        return np.full(len(labels), -1), []
    if len(given) < len(labels):
        raise ValueError("some samples have a label and some have none")
    return number_labels(given, names)


def read_manifest_of_make(folder: Path) -> Manifest | None:
    """The manifest that `shards make` wrote, with class names and more that the tars do not have; None without one.

    Raises UsageError if there is a manifest that cannot be read.
    """
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        manifest = decode_manifest(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{folder}: {error}; restore it, or delete it to index the tars alone") from None
    if manifest.fields.latents is not None:
        raise UsageError(f"{folder} holds latents, which `shards index` does not read; encode the dataset again")
    return manifest if manifest.options is not None else None


def check_same(folder: Path, made: Manifest, tars: Tars) -> None:
    """Raises UsageError unless the tars are those of the manifest that `shards make` wrote."""
    labels = tars.columns["label"]
    samples = np.bincount(labels[labels >= 0], minlength=len(made.classes)).tolist()
    image = made.fields.image
    assert image is not None, "datasets of latents are refused before"
    kind = Kind(image.height, image.width, image.channels, image.dtype, image.encoding)
    same = made.shards == tars.shards and kind == tars.kind
    if made.conditions:
        same = same and condition_rows([row.name for row in made.conditions], tars.columns[NUMBERS]) == made.conditions
    if not same or (made.classes and samples != [row.samples for row in made.classes]):
        raise UsageError(f"{folder}: its shards are not those of `shards make`; re-create the dataset")


def scan_folder(
    folder: Path, progress: Progress, label_key: str, beside: dict[str, Label], rows: TarLabels | None = None
) -> Tars:
    """What is in the tars of a folder; samples without a label have theirs in `beside`, by member, if it has any.

    With `rows`, these get the .cls and .json of all samples, and no label is read. Raises UsageError and
    CorruptDataError.
    """
    paths = find_tars(folder)
    shards: list[Shard] = []
    parts: list[dict[str, np.ndarray]] = []
    names: list[str] = []
    labels: list[Label | None] = []
    kind: Kind | None = None
    values: list[PixelValues] = []
    for path in progress(paths):
        scan = Scan(path, label_key, rows)
        if scan.kind is None:
            raise CorruptDataError(f"{path}: holds no image")
        if kind not in (None, scan.kind):
            raise CorruptDataError(f"{path}: its images are {scan.kind}, those of {paths[0]} {kind}; {ALL_ALIKE}")
        kind = scan.kind
        values.append(scan.values)
        parts.append(scan.arrays())
        names += scan.names
        for label, member in zip(scan.labels, scan.names, strict=True):
            if label is None and beside and member not in beside:
                fix = "list every image by its name in the tar, or remove the file"
                raise UsageError(f"{folder}/dataset.json: no label of {member} in {path.name}; {fix}")
            labels.append(beside.get(member) if label is None else label)
        name = path.relative_to(folder).as_posix()
        shards.append(Shard(name, len(scan.labels), path.stat().st_size, sha256_file(path)))
    assert kind is not None
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Tars(shards, columns, names, labels, kind, values)
