"""The table of runs: a row for each run or group of seeds, what differs between them, and what they come to."""

import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from distgan.evaluation.card import better
from distgan.page.groups import Run, compared_keys, differing_keys, group_name, group_runs, seed_of
from distgan.page.words import duration, mean_and_deviation, number, place, value_text


@dataclass
class Cell:
    """A field of the table."""

    text: str = "–"
    note: str = ""
    value: float | str | None = None
    """What it is sorted by."""
    mark: str = ""
    """The letter of the kind of card, where there are several; values are ranked within a kind only."""
    best: bool = False
    numbers: dict[str, float] = field(default_factory=dict)
    """Of a group: std (with n - 1), min, max and n; of the best value of a run: images, where it is."""


@dataclass
class Row:
    """A run, or a group of runs that differ in the seed only."""

    name: str
    cells: list[Cell]
    runs: list[int]
    note: str = ""
    children: list["Row"] = field(default_factory=list)
    """The single runs of a group."""


@dataclass(frozen=True)
class Column:
    """`of` makes the cell of one run, or of several."""

    label: str
    of: Callable[[Sequence[Run]], Cell]
    better: str | None = None
    """"lower" or "higher", of a column whose best value is marked."""
    kind: str = "number"
    """Or "text", which is aligned left."""
    unit: str = ""
    """Of the values that it is sorted by, where its text has another."""


@dataclass(frozen=True)
class Table:
    columns: list[Column]
    rows: list[Row]
    notes: list[str]
    """The cards of the metrics, and what is left out."""

    def to_json(self) -> dict[str, Any]:
        """For the page."""
        return {
            "columns": [{"label": each.label, "better": each.better, "kind": each.kind} for each in self.columns],
            "rows": [row_to_json(row) for row in self.rows],
            "notes": self.notes,
        }


def row_to_json(row: Row) -> dict[str, Any]:
    cells = [{name: value for name, value in vars(cell).items() if value and name != "numbers"} for cell in row.cells]
    for cell, found in zip(row.cells, cells, strict=True):
        found["value"] = cell.value
    children = [row_to_json(child) for child in row.children]
    return {"name": row.name, "note": row.note, "runs": row.runs, "cells": cells, "children": children}


def build_table(runs: Sequence[Run]) -> Table:
    """The table of runs as `read_run` returns them, with their names."""
    marks = card_marks(runs)
    columns = [
        *(key_column(key) for key in differing_keys(runs)),
        *seed_column(runs),
        *metric_columns(runs, marks),
        *cost_columns(),
    ]
    rows = []
    for group in group_runs(runs):
        singles = [make_row(runs, [i], columns) for i in group]
        rows.append(make_row(runs, group, columns, singles) if len(group) > 1 else singles[0])
    for place_in_row, column in enumerate(columns):
        if column.better is not None:
            mark_best([row.cells[place_in_row] for row in rows], column.better)
    return Table(columns, rows, notes_of(runs, marks))


def make_row(runs: Sequence[Run], group: Sequence[int], columns: Sequence[Column], children: Sequence[Row] = ()) -> Row:
    chosen = [runs[i] for i in group]
    name = group_name([run["name"] for run in chosen])
    kinds = Counter(state.split(":")[0] for run in chosen if (state := state_of(run)))
    if len(group) == 1:
        note = "".join(kinds)
    else:
        note = ", ".join([f"{len(group)} runs", *(f"{count} {kind}" for kind, count in kinds.items())])
    return Row(name, [column.of(chosen) for column in columns], list(group), note, list(children))


def is_unfinished(run: Run) -> bool:
    return run["total_images"] is not None and run["images"] < run["total_images"]


def state_of(run: Run) -> str:
    """What keeps a run out of the means, if anything."""
    if is_unfinished(run):
        return f"unfinished: {run['images']:,} of {run['total_images']:,} images"
    return "" if run["scores"] else "no metrics"


def card_marks(runs: Sequence[Run]) -> dict[str, str]:
    """A letter for each kind of card, by its key."""
    keys = dict.fromkeys(kind["key"] for run in runs for kind in run["measured"].values())
    return {key: letters(i) for i, key in enumerate(keys)}


def letters(number: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    return (letters(number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def key_column(key: str) -> Column:
    def of(group: Sequence[Run]) -> Cell:
        value = compared_keys(group[0]).get(key)
        sorted_by = float(value) if isinstance(value, (int, float)) else value_text(value)
        return Cell(value_text(value), value=sorted_by)

    return Column(key, of, kind="text")


def seed_column(runs: Sequence[Run]) -> list[Column]:
    def of(group: Sequence[Run]) -> Cell:
        seeds = [seed_of(run) for run in group]
        return Cell(", ".join(map(str, seeds)), value=seeds[0])

    return [Column("seed", of, kind="text")] if len({seed_of(run) for run in runs}) > 1 else []


def metric_columns(runs: Sequence[Run], marks: dict[str, str]) -> list[Column]:
    """The best and the last value of each metric whose better direction is known, and the last of the others."""
    columns = []
    for name in dict.fromkeys(name for run in runs for name in run["scores"]):
        direction = better(name)
        for which in ("best", "last") if direction is not None else ("last",):
            columns.append(metric_column(name, which, direction, marks))
    return columns


def metric_column(name: str, which: str, direction: str | None, marks: dict[str, str]) -> Column:
    def of(group: Sequence[Run]) -> Cell:
        found = [run for run in group if run[which].get(name) and run[which][name]["value"] is not None]
        if not found:
            return Cell()
        kinds = [run["measured"][name]["key"] for run in found]
        kind = max(dict.fromkeys(kinds), key=kinds.count)
        mark = marks[kind] if len(marks) > 1 else ""
        if len(group) == 1:
            point = found[0][which][name]
            note = place(point) if which == "best" else ""
            return Cell(number(point["value"]), note, point["value"], mark, numbers={"images": point["images"]})
        counted = [
            run for run, its_kind in zip(found, kinds, strict=True) if its_kind == kind and not is_unfinished(run)
        ]
        return mean_cell([run[which][name]["value"] for run in counted], len(group), mark)

    return Column(f"{which} {name}", of, direction)


def mean_cell(values: Sequence[float], runs: int, mark: str = "") -> Cell:
    """Mean and standard deviation (n - 1) of the values of a group; `runs` are those of the group."""
    count = len(values)
    share = f"n = {count}" if count == runs else f"n = {count} of {runs}"
    if not values:
        return Cell(note=share, numbers={"n": 0})
    numbers = {"min": min(values), "max": max(values), "n": count}
    mean = statistics.fmean(values)
    if count == 1:
        return Cell(number(mean), share, mean, mark, numbers=numbers)
    deviation = statistics.stdev(values)
    span = f"{number(numbers['min'])} to {number(numbers['max'])}, {share}"
    return Cell(mean_and_deviation(mean, deviation), span, mean, mark, numbers={"std": deviation, **numbers})


def cost_columns() -> list[Column]:
    """What a run, or the mean run of a group, took."""

    def mean_of(value: Callable[[Run], float | None], text: Callable[[float], str]) -> Callable[[Sequence[Run]], Cell]:
        def of(group: Sequence[Run]) -> Cell:
            values = [found for run in group if (found := value(run)) is not None]
            if not values:
                return Cell()
            mean = statistics.fmean(values)
            return Cell(text(mean), "mean" if len(set(values)) > 1 else "", mean)

        return of

    def warnings(group: Sequence[Run]) -> Cell:
        count = sum(event["kind"] == "warning" for run in group for event in run["events"])
        return Cell(number(count), value=count)

    return [
        Column("images seen", mean_of(lambda run: run["images"], lambda mean: number(round(mean)))),
        Column("training time", mean_of(lambda run: run["clock"][1][-1] or None, duration), unit="minutes"),
        Column("images/s", mean_of(lambda run: run["median_rate"], lambda mean: number(round(mean)))),
        Column("warnings", warnings),
    ]


def mark_best(cells: Sequence[Cell], direction: str) -> None:
    """Mark the best value of each kind of card that has several."""
    for mark in {cell.mark for cell in cells}:
        values = [cell.value for cell in cells if cell.mark == mark and isinstance(cell.value, (int, float))]
        if len(values) < 2:
            continue
        winner = (min if direction == "lower" else max)(values)
        for cell in cells:
            cell.best = cell.best or (cell.mark == mark and cell.value == winner)


def notes_of(runs: Sequence[Run], marks: dict[str, str]) -> list[str]:
    """The cards of the metrics by their letters, and what is left out of means and of curves."""
    cards: dict[str, list[str]] = {}
    for run in runs:
        for kind in run["measured"].values():
            cards.setdefault(kind["key"], []).append(kind["card"])
    label = {key: f"{mark}: " if len(marks) > 1 else "Metrics: " for key, mark in marks.items()}
    notes = [label[key] + "; ".join(dict.fromkeys(texts)) for key, texts in cards.items()]
    if len(marks) > 1:
        notes.append("Values with different letters are not comparable.")
    states = [f"{run['name']}: {state}" for run in runs if (state := state_of(run))]
    if states:
        notes.append(f"Excluded from means: {'; '.join(states)}.")
    for run in runs:
        if left_out := sum(kind["left_out"] for kind in run["measured"].values()):
            notes.append(f"{run['name']}: {left_out} values of cards that are not comparable with these are left out.")
    return notes
