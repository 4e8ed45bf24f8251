"""The cells of label columns: what kind of label they are, and their numbers."""

import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from distgan.data.schema import Label
from distgan.errors import UsageError

Kind = Literal["class", "number", "flag"]
KINDS: tuple[Kind, ...] = ("class", "number", "flag")
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
FLOAT32_MAX = 3.4028234663852886e38
"""Datasets keep float32."""
TRUTH = {"true": 1, "false": 0}


class Column(NamedTuple):
    """A column that labels are taken from."""

    name: str
    kind: Kind | None
    """None: what its values tell."""
    values: Sequence[Any]


def check_filled(column: Column, where: str, rows: Sequence[str]) -> None:
    """Raises UsageError for an empty cell, NaN, and what is neither text nor a number."""
    for i, value in enumerate(column.values):
        if value is None or (isinstance(value, str) and not value.strip()):
            what = "an empty cell"
        elif value != value or (isinstance(value, str) and value.strip().lower() == "nan"):
            what = "NaN, which is no label"
        elif not isinstance(value, str | int | float | bool | np.generic):
            what = "neither text nor a number"
        else:
            continue
        raise UsageError(f"{where}: {row_name(rows, i)}, column {column.name!r}: {what}; fill it in, or leave it out")


def row_name(rows: Sequence[str], index: int) -> str:
    return rows[index] if rows else f"row {index + 1}"


def infer_kind(column: Column, several: bool, untold: bool, where: str) -> Kind:
    """What a column is by its values. Raises UsageError where these do not tell."""
    name = column.name
    texts = {cell_text(value) for value in column.values}
    if several and texts <= set(TRUTH):
        return "flag"
    if not all(NUMBER.fullmatch(text) for text in texts):
        return "class"
    if not all(INTEGER.fullmatch(text) for text in texts):
        if untold:
            fix = f"--label_columns {name}:number takes them as a condition"
            raise UsageError(f"{where}: {name!r} has fractions, which are no classes; {fix}")
        return "number"
    if not several:
        return "class"
    values = {float(text) for text in texts}
    if values <= {0, 1} or values <= {-1, 1}:
        return "flag"
    question = "is it a class or a number?"
    raise UsageError(f"--label_columns: {name!r} of {where}: {question} write {name}:class or {name}:number")


def cell_text(value: Any) -> str:
    """A cell as a CSV would have it; true and false in small letters."""
    if isinstance(value, np.generic):
        value = value.item()
    text = str(value).strip()
    return text.lower() if text.lower() in TRUTH else text


def as_label(value: Any) -> Label:
    """A cell as a class: a number or its text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else cell_text(value)


def read_numbers(column: Column, kind: Kind, where: str, rows: Sequence[str]) -> list[float]:
    """A column as finite numbers of float32, [N]; one of flags as 0 and 1. Raises UsageError."""
    numbers: list[float] = []
    for i, value in enumerate(column.values):
        text = cell_text(value)
        number = float(TRUTH.get(text, text)) if text in TRUTH or NUMBER.fullmatch(text) else math.nan
        if not abs(number) <= FLOAT32_MAX or (kind == "flag" and number not in (-1, 0, 1)):
            what = "0 or 1" if kind == "flag" else "a number of float32"
            raise UsageError(f"{where}: {row_name(rows, i)}, column {column.name!r}: {text!r} is not {what}")
        numbers.append(number)
    if kind == "flag" and {-1, 0} <= set(numbers):
        raise UsageError(f"{where}: column {column.name!r} has -1 and 0; flags are 0 and 1, or -1 and 1")
    return [max(number, 0.0) for number in numbers] if kind == "flag" else numbers
