"""Labels: lists of files and their labels, labels in tars, and the names of classes."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distgan.data.schema import MAX_CLASSES, ClassNames, Label, LabelFile, LabelRow, decode
from distgan.errors import UsageError


def parse_labels(suffix: str, data: bytes, where: str) -> dict[str, Label]:
    """{file name: label} of a CSV (two columns), JSONL ({"file_name", "label"}) or NVlabs dataset.json.

    Raises UsageError, also if a file is in it twice.
    """
    rows: Sequence[tuple[str, Label]]
    try:
        if suffix == ".csv":
            lines = [line for line in csv.reader(io.StringIO(data.decode("utf-8-sig"))) if line]
            rows = [(line[0], line[1]) for line in lines if line[:2] != ["file_name", "label"]]
        elif suffix == ".jsonl":
            objects = [decode(line, LabelRow) for line in data.splitlines() if line.strip()]
            rows = [(row.file_name, row.label) for row in objects]
        else:
            rows = decode(data, LabelFile).labels or []
    except (ValueError, IndexError, csv.Error) as error:
        raise UsageError(f"{where}: not a list of file names and labels ({error})") from None
    labels = dict(rows)
    if len(labels) < len(rows):
        twice = Counter(name for name, _ in rows).most_common(1)[0][0]
        raise UsageError(f"{where}: more than one label of {twice!r}; keep one")
    return labels


def number_labels(labels: Sequence[Label], names: Sequence[str] = ()) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers, int64 [N], and the names of the classes. Raises ValueError.

    Integers stay, if each is spelled in one way. If not all are integers, they are places in `names`; by default those
    are the labels, sorted.
    """
    if not all(isinstance(label, int) or label.isdecimal() for label in labels):
        names = names or sorted({str(label) for label in labels})
        index = {name: i for i, name in enumerate(names)}
        unknown = next((str(label) for label in labels if str(label) not in index), None)
        if unknown is not None:
            raise ValueError(f"the label {unknown!r} is not one of the {len(names)} classes")
        return np.array([index[str(label)] for label in labels]), list(names)
    limit = len(names) or MAX_CLASSES
    numbers = np.array([int(label) if len(str(label)) < 19 else limit for label in labels])
    outside = np.flatnonzero((numbers < 0) | (numbers >= limit))
    if len(outside):
        raise ValueError(f"the label {labels[outside[0]]} is not in [0, {limit:,})")
    spellings: dict[int, str] = {}
    for text in sorted({str(label) for label in labels}):
        if (other := spellings.setdefault(int(text), text)) != text:
            raise ValueError(f"the labels {other!r} and {text!r} are the same number; write it in one way")
    return numbers, list(names) or [str(i) for i in range(int(numbers.max()) + 1)]


def read_label(fields: dict[str, bytes], key: str = "label") -> Label | None:
    """The label in a sample's .cls, or under `key` in its .json; None if it has none. Raises ValueError."""
    label: Any = None
    if key == "label" and "cls" in fields:
        label = int(fields["cls"])
    elif "json" in fields:
        label = json.loads(fields["json"]).get(key)
    if isinstance(label, bool) or not isinstance(label, int | str | None):
        raise ValueError(f"the label {label!r} is neither a number nor a name")
    return None if label == -1 else label


def labels_beside(folder: Path) -> tuple[dict[str, Label], list[str]]:
    """The labels in a folder's dataset.json by member, and the names in its classes.json, if it has them.

    classes.json is a list of names, or {name: number}. Raises UsageError.
    """
    path = folder / "dataset.json"
    labels = parse_labels(".json", path.read_bytes(), str(path)) if path.exists() else {}
    names = folder / "classes.json"
    if not names.exists():
        return labels, []
    try:
        classes: ClassNames = decode(names.read_bytes(), ClassNames)  # type: ignore[arg-type] - a union
        if isinstance(classes, dict):
            if sorted(classes.values()) != list(range(len(classes))):
                raise ValueError(f"its numbers are not 0 to {len(classes) - 1}")
            classes = sorted(classes, key=classes.__getitem__)
        if len(set(classes)) != len(classes) or not classes:
            raise ValueError("it has no names, or one of them twice")
    except ValueError as error:
        raise UsageError(f"{names}: not the names of classes ({error})") from None
    return labels, classes
