"""metrics.jsonl, the log of a run as data: one JSON object a line, read and written here only."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from distgan.errors import UsageError
from distgan.files import atomic_write

Record = dict[str, Any]
"""One line: `images`, the images seen when it was written, and scalars, a metric card, a warning or changed keys."""

Curve = tuple[list[int], list[float]]
"""Images seen, and the values there."""

NOT_CURVES = {"images", "epoch", "time", "digest"}
"""Numeric keys that are not curves."""


class MetricsFile:
    """The file of one run. Only complete lines count: the last one may be half written, by the run or by a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Record) -> None:
        """Add a line."""
        with open(self.path, "a") as file:
            file.write(json.dumps(record) + "\n")

    def truncate(self, images_seen: int) -> None:
        """Drop the lines after `images_seen`, which the resumed run will write again, and those that are corrupt."""
        if not self.path.exists():
            return
        kept = []
        for line in self.lines():
            record = parse(line)
            if record is not None and record["images"] <= images_seen:
                kept.append(line + b"\n")
        atomic_write(self.path, b"".join(kept))

    def records(self) -> list[Record]:
        """All complete lines; none if there is no file. Raises UsageError if a line is corrupt."""
        records = []
        for number, line in enumerate(self.lines(), 1):
            record = parse(line)
            if record is None:
                raise UsageError(f"{self.path}: line {number} is not a line of distgan's; resume the run to drop it")
            records.append(record)
        return records

    def cards(self) -> list[tuple[int, dict[str, Any]]]:
        """The metric card of every evaluation, with the images seen then. Raises UsageError as `records` does."""
        return cards_of(self.records())

    def lines(self) -> list[bytes]:
        """The complete lines, without line endings; none if there is no file."""
        try:
            return self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []


def parse(line: bytes) -> Record | None:
    """The record of a line; None if it is not one of distgan's."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and is_number(record.get("images")) else None


def cards_of(records: Sequence[Record]) -> list[tuple[int, dict[str, Any]]]:
    """The metric cards among records, with the images seen then."""
    return [(record["images"], record["card"]) for record in records if isinstance(record.get("card"), dict)]


def scalar_curves(records: Sequence[Record]) -> dict[str, Curve]:
    """The curve of every scalar by name."""
    curves: dict[str, Curve] = {}
    for record in records:
        for name in record.keys() - NOT_CURVES:
            add_point(curves, name, record["images"], record[name])
    return curves


def metric_curves(records: Sequence[Record]) -> dict[str, Curve]:
    """The curve of every metric of the cards by name: a number, or an object with a number as `value`."""
    curves: dict[str, Curve] = {}
    for images, card in cards_of(records):
        metrics = card.get("metrics")
        if isinstance(metrics, dict):
            for name, value in metrics.items():
                add_point(curves, name, images, value.get("value") if isinstance(value, dict) else value)
    return curves


def add_point(curves: dict[str, Curve], name: str, images: int, value: object) -> None:
    """Add a value to the curve of its name, if it is a number."""
    if is_number(value):
        at, values = curves.setdefault(name, ([], []))
        at.append(images)
        values.append(value)


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of JSON is a number; booleans do not count."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)
