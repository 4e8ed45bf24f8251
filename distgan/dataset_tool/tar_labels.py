"""The labels in the .cls and .json members of foreign tars."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from distgan.data.schema import ClassCount, ConditionRow, Label, Manifest, decode
from distgan.dataset_tool.label_files import read_label
from distgan.dataset_tool.labels import NO_LABELS, Labels, labels_of_columns, number_labels, split_kind
from distgan.dataset_tool.notes import escape_name
from distgan.errors import UsageError


class MadeLabels(Struct, frozen=True):
    """What the manifest.json of a dataset of ours says of its labels; other keys are skipped."""

    format: str
    classes: list[ClassCount]
    conditions: list[ConditionRow] = []


def read_made_labels(folder: Path) -> MadeLabels | None:
    """The labels in the manifest.json of a dataset of ours; None without one."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        made = decode(path.read_bytes(), MadeLabels)
    except ValueError:  # of another program
        return None
    return made if made.format.startswith("distgan-") else None


def made_columns(made: MadeLabels | Manifest) -> str | None:
    """The `--label_columns` that take the labels of a dataset of ours; None: it has none."""
    words = ["cls:class"] if made.classes else []
    words += [f"{row.name}:number" for row in made.conditions]
    return ",".join(words) or None


class TarLabels:
    """Labels of images by their members, which are added in the order of the images.

    Without `columns`, the class in .cls, or under `key` in .json; with `columns`, those keys of .json, and "cls".
    Raises UsageError if both are given.
    """

    def __init__(self, columns: str | None, key: str) -> None:
        if columns is not None and key != "label":
            raise UsageError("--label_key: --label_columns names the keys of .json; leave out one of the two")
        self.columns = columns
        self.key = key
        self.wanted = [split_kind(word.strip())[0] for word in columns.split(",")] if columns is not None else []
        self.names: list[str] = []
        self.classes: list[Label | None] = []
        self.cells: dict[str, list[Any]] = {}
        """Of the wanted columns."""

    def add(self, name: str, fields: dict[str, bytes]) -> None:
        """Add the labels of an image, by its .cls and .json. Raises UsageError."""
        self.names.append(name)
        try:
            if self.columns is None:
                by_extension = {suffix.removeprefix("."): data for suffix, data in fields.items()}
                self.classes.append(read_label(by_extension, self.key))
            else:
                self.add_row(fields)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{escape_name(name)}: its label cannot be read: {error}") from None

    def add_row(self, fields: dict[str, bytes]) -> None:
        row: dict[str, Any] = json.loads(fields[".json"]) if ".json" in fields else {}
        if not isinstance(row, dict):
            raise ValueError("its .json is no object")
        if ".cls" in fields:
            row.setdefault("cls", fields[".cls"].decode().strip())
        for key, value in row.items():
            # `label_2` is a number of the list `label`
            if any(name == key or name.startswith(f"{key}_") for name in self.wanted):
                column = self.cells.setdefault(key, [])
                column += [None] * (len(self.names) - 1 - len(column)) + [value]

    def labels(self, where: str, class_names: Sequence[str]) -> Labels | None:
        """The labels of all images, `class_names` being the names of classes; None if there are none.

        Raises UsageError if some images have a label and some have none.
        """
        if self.columns is not None:
            cells = {key: column + [None] * (len(self.names) - len(column)) for key, column in self.cells.items()}
            rows = [escape_name(name) for name in self.names]
            where = f"the .cls and .json in {where}"
            return labels_of_columns(cells, self.columns, where, rows=rows, class_names=class_names)
        given = [label for label in self.classes if label is not None]
        if not given:
            if self.key != "label":
                raise UsageError(f"--label_key: no .json in {where} has a {self.key!r}")
            return None
        if len(given) < len(self.classes):
            first = self.names[self.classes.index(None)]
            fix = "label it, or give --labels none or a file of labels"
            raise UsageError(f"{where}: some images have a label and some have none, as {escape_name(first)}; {fix}")
        try:
            labels, classes = number_labels(given, class_names, where)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from None
        return NO_LABELS._replace(labels=labels, classes=classes)
