"""The table of runs as a file for a paper (.md) or for a program (.csv)."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from distgan.errors import UsageError
from distgan.page.table import Cell, Row, Table

SUFFIXES = (".md", ".csv")
NUMBERS = ("std", "min", "max", "n", "images")
"""Of a cell, in columns of their own of a CSV file."""


def export_table(table: Table, path: Path) -> str:
    """The text of a file by its suffix. Raises UsageError."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"table: {path} must end in {' or '.join(SUFFIXES)}")
    return to_markdown(table) if path.suffix == ".md" else to_csv(table)


def to_markdown(table: Table) -> str:
    """A row for each run or group, and the cards in lines below it."""
    head = ["run", *(column.label for column in table.columns)]
    align = [":--", *(":--" if column.kind == "text" else "--:" for column in table.columns)]
    rows = [[named(row), *map(markdown_cell, row.cells)] for row in table.rows]
    lines = ["| " + " | ".join(each) + " |" for each in ([escape(name) for name in head], align, *rows)]
    return "\n".join([*lines, "", *(f"{escape(note)}  " for note in table.notes)]).rstrip() + "\n"


def named(row: Row) -> str:
    return escape(row.name) + (f" ({escape(row.note)})" if row.note else "")


def markdown_cell(cell: Cell) -> str:
    text = f"**{escape(cell.text)}**" if cell.best else escape(cell.text)
    mark = f" [{cell.mark}]" if cell.mark else ""
    return text + mark + (f" ({escape(cell.note)})" if cell.note else "")


def escape(text: str) -> str:
    """Text of a cell: "|" would end it, "*" and "_" would set it in italics."""
    return "".join(f"\\{letter}" if letter in "\\|*_`<[]" else letter for letter in " ".join(text.split()))


def to_csv(table: Table) -> str:
    """A row for each group and for each run; `group` names that of a run. Numbers are in full."""
    all_rows = list(rows_with_group(table.rows))
    parts = [
        [name for name in NUMBERS if any(name in row.cells[i].numbers for _, row in all_rows)]
        for i in range(len(table.columns))
    ]
    marked = [any(row.cells[i].mark for _, row in all_rows) for i in range(len(table.columns))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["run", "group", "state"]
    for column, names, has_mark in zip(table.columns, parts, marked, strict=True):
        label = f"{column.label}, {column.unit}" if column.unit else column.label
        head += [label, *(f"{column.label} {name}" for name in names), *["card"] * has_mark]
    writer.writerow(head)
    for group, row in all_rows:
        fields = [row.name, group, row.note]
        for cell, names, has_mark in zip(row.cells, parts, marked, strict=True):
            fields += ["" if cell.value is None else cell.value, *(cell.numbers.get(name, "") for name in names)]
            fields += [cell.mark] * has_mark
        writer.writerow(fields)
    for note in table.notes:
        writer.writerow([f"# {note}"])
    return out.getvalue()


def rows_with_group(rows: list[Row], group: str = "") -> Iterator[tuple[str, Row]]:
    for row in rows:
        yield group, row
        yield from rows_with_group(row.children, row.name)
