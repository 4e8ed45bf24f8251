"""metrics.jsonl, the log of a run as data."""

import json
import os
from pathlib import Path
from typing import Any

from distgan.errors import UsageError


def truncate_metrics(path: Path, images_seen: int) -> None:
    """Drop the lines after `images_seen`, which the resumed run will write again, and an incomplete last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["images"] <= images_seen:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The lines of metrics.jsonl, without an incomplete last one, which the run is writing. Raises UsageError."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not is_number(row.get("images")):
            raise UsageError(f"{path}: line {number} is not a line of distgan's; resume the run to drop it")
        rows.append(row)
    return rows


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
