"""Files of labels: CSV, JSONL and NVlabs' dataset.json, the labels in tars, and the names of classes."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from distgan.data.schema import ClassNames, Label, LabelFile, decode
from distgan.dataset_tool.labels import Labels, labels_of_columns
from distgan.dataset_tool.notes import note
from distgan.errors import UsageError, shorten
from distgan.images import PIL_FORMATS

FILE_NAME = "file_name"
"""The column with the names of the images; a CSV without one has them in its first."""
IMAGE_SUFFIXES = {*PIL_FORMATS, ".npy"}


class Table(NamedTuple):
    """A file of labels: the names of N images, and columns about them."""

    names: Sequence[str]
    """Unique, [N]."""
    columns: dict[str, list[Any]]
    """[N] values each; None: nothing there."""
    rows: Sequence[str]
    """Where each is in the file, [N]: "line 3"."""


def read_table(suffix: str, data: bytes, where: str, known: Container[str] = ()) -> Table:
    """Read a CSV, a JSONL with a "file_name" in each line, or else a dataset.json; `known` are names of images.

    The columns of a CSV without a header are numbered: the second is "2". Raises UsageError, also for a file that is
    in it twice.
    """
    try:
        if suffix == ".csv":
            table = read_csv(data.decode("utf-8-sig"), known)
        elif suffix == ".jsonl":
            table = read_jsonl(data)
        else:
            rows = decode(data, LabelFile).labels or []
            places = [f"row {i + 1}" for i in range(len(rows))]
            table = Table([name for name, _ in rows], {"label": [label for _, label in rows]} if rows else {}, places)
    except (ValueError, csv.Error) as error:
        raise UsageError(f"{where}: not a list of file names and labels ({error})") from None
    return table


def check_once(names: Sequence[str], where: str) -> None:
    """Raises UsageError if a name is in the list twice."""
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise UsageError(f"{where}: more than one label of {twice!r}; keep one")


def read_csv(text: str, known: Container[str]) -> Table:
    """The first line is a header unless its first cell names an image. Raises ValueError and csv.Error."""
    reader = csv.reader(io.StringIO(text))
    lines = [(reader.line_num, line) for line in reader if line]
    if not lines:
        raise ValueError("it is empty")
    first = lines[0][1]
    width = len(first)
    if width < 2:
        raise ValueError("it has one column; names and labels are separated by commas")
    wrong = next((number for number, line in lines if len(line) != width), None)
    if wrong is not None:
        raise ValueError(f"line {wrong} has another number of cells than the first line, which has {width}")
    has_header = first[0] not in known and PurePosixPath(first[0]).suffix.lower() not in IMAGE_SUFFIXES
    header = [name.strip() or str(i + 1) for i, name in enumerate(first)] if has_header else []
    header = header or [str(i + 1) for i in range(width)]
    if len(set(header)) < width:
        raise ValueError(f"two columns are called {Counter(header).most_common(1)[0][0]!r}")
    body = lines[1:] if has_header else lines
    columns = {name: [line[i] for _, line in body] for i, name in enumerate(header)}
    names = columns.pop(FILE_NAME if FILE_NAME in columns else header[0])
    return Table(names, columns, [f"line {number}" for number, _ in body])


def read_jsonl(data: bytes) -> Table:
    """A line is an object with a "file_name"; its other keys are the columns. Raises ValueError."""
    places: list[str] = []
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = decode(line, dict[str, Any])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if not isinstance(row.get(FILE_NAME), str):
            raise ValueError(f'line {number}: it has no "{FILE_NAME}"')
        places.append(f"line {number}")
        objects.append(row)
    keys = dict.fromkeys(key for row in objects for key in row if key != FILE_NAME)
    columns = {key: [row.get(key) for row in objects] for key in keys}
    return Table([row[FILE_NAME] for row in objects], columns, places)


def labels_of_table(
    table: Table, names: Sequence[str], wanted: str | None, where: str, classes: Sequence[str] = ()
) -> Labels:
    """The labels of the images `names`; `classes` are the names of classes, if they are known.

    Raises UsageError if an image is not in the table; a note names what else is.
    """
    check_once(table.names, where)
    places = {name: i for i, name in enumerate(table.names)}
    missing = [name for name in names if name not in places]
    if missing:
        raise UsageError(f"{where}: {len(missing)} images have no label, the first is {missing[0]}")
    there = set(names)
    absent = sum(name not in there for name in table.names)
    if absent:
        first = next(name for name in table.names if name not in there)
        note(f"{where}: {absent:,} files that it lists are not in the source, the first is {shorten(first)}")
    order = [places[name] for name in names]
    columns = {name: [values[i] for i in order] for name, values in table.columns.items()}
    rows = [f"{table.rows[i]} ({table.names[i]})" for i in order]
    return labels_of_columns(columns, wanted, where, rows=rows, class_names=classes)


def read_label(fields: dict[str, bytes], key: str = "label") -> Label | None:
    """The class in a sample's .cls, or under `key` in its .json; None if it has none. Raises ValueError."""
    label: Any = None
    if key == "label" and "cls" in fields:
        text = fields["cls"].strip()
        if not re.fullmatch(rb"[+-]?[0-9]{1,18}", text):
            raise ValueError(f"its .cls is {shorten(repr(text))}, not a number")
        label = int(text)
    elif "json" in fields:
        row = json.loads(fields["json"])
        if not isinstance(row, dict):
            raise ValueError("its .json is no object")
        label = row.get(key)
    if isinstance(label, float | list):
        fix = f"--label_columns {key}:number takes it as a condition"
        raise ValueError(f"the label {shorten(repr(label))} is no class; {fix}")
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise ValueError(f"the label {label!r} is neither a number nor a name")
    return None if label == -1 else label


def labels_beside(folder: Path) -> tuple[dict[str, Label], list[str]]:
    """The classes in a folder's dataset.json by member, and the names in its classes.json, if it has them.

    Raises UsageError.
    """
    path = folder / "dataset.json"
    names = class_names(folder)
    if not path.exists():
        return {}, names
    table = read_table(".json", path.read_bytes(), str(path))
    for name, label in zip(table.names, table.columns.get("label", []), strict=True):
        if isinstance(label, bool) or not isinstance(label, int | str):
            raise UsageError(f"{path}: not a list of file names and labels (the label of {name!r} is {label!r})")
    return dict(zip(table.names, table.columns.get("label", []), strict=True)), names


def class_names(folder: Path) -> list[str]:
    """The names of classes, by number, in a folder's classes.json; [] without one. Raises UsageError."""
    path = folder / "classes.json"
    return parse_class_names(path.read_bytes(), str(path)) if path.exists() else []


def parse_class_names(data: bytes, where: str) -> list[str]:
    """The names of classes, by number, in a classes.json: a list of names, or {name: number}. Raises UsageError."""
    try:
        classes: ClassNames = decode(data, ClassNames)  # type: ignore[arg-type] - a union
        if isinstance(classes, dict):
            if sorted(classes.values()) != list(range(len(classes))):
                raise ValueError(f"its numbers are not 0 to {len(classes) - 1}")
            classes = sorted(classes, key=classes.__getitem__)
        if len(set(classes)) != len(classes) or not classes:
            raise ValueError("it has no names, or one of them twice")
    except ValueError as error:
        raise UsageError(f"{where}: not the names of classes ({error})") from None
    return classes
