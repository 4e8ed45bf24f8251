"""Labels: which columns of a table are the class and the numbers of its images, and the numbers of classes."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from distgan.data.schema import MAX_CLASSES, Label
from distgan.dataset_tool.cells import KINDS, Column, Kind, as_label, check_filled, infer_kind, read_numbers
from distgan.dataset_tool.notes import note, warn
from distgan.errors import UsageError

MANY_CLASSES = 20
"""From so many classes on, a note says when most have one image only, as of captions."""


class Labels(NamedTuple):
    """The labels of N images: a class, numbers, both or neither."""

    labels: np.ndarray | None
    """The class, int64 [N]; None: without."""
    classes: list[str]
    """Their names, by number."""
    numbers: np.ndarray | None
    """The conditions, float64 [N, K], flags as 0 and 1; None: without."""
    number_names: list[str]
    """K names."""


NO_LABELS = Labels(None, [], None, [])


def labels_of_columns(
    columns: Mapping[str, Sequence[Any]],
    wanted: str | None,
    where: str,
    names: Mapping[str, Sequence[str]] | None = None,
    rows: Sequence[str] = (),
    class_names: Sequence[str] = (),
) -> Labels:
    """The labels in a table of N rows.

    `columns` are the candidates by name, [N] values each: str, int, float, bool, a list of numbers, or None for an
    empty cell. `wanted` is the value of `--label_columns`: `a,b:class,c:number,d:flag`; None: the only candidate.
    Text is a class, and so are integers alone; fractions are numbers; 0 and 1 (-1 and 1, true and false) are flags
    beside other columns. `names` are class names by column, which its integers index, and which is a class: of several
    candidates the only one in `names`, or else `label`, is taken; None: the table knows no class names. `where` names
    the table in errors and `rows` its rows (default: "row 1", ...). `class_names` are the names of classes of whatever
    column is the class.

    Raises UsageError for an unknown column, an empty cell, NaN, a column that may be class or number, and two classes.
    """
    chosen = choose_columns(columns, wanted, where, names)
    several = len(chosen) > 1
    named = names or {}
    classes: list[Column] = []
    numbers: dict[str, list[float]] = {}
    for column in chosen:
        check_filled(column, where, rows)
        known = "class" if column.name in named else None
        kind = column.kind or known or infer_kind(column, several, wanted is None, where)
        if kind == "class":
            classes.append(column)
        else:
            numbers[column.name] = read_numbers(column, kind, where, rows)
    check_one_class(classes, where)
    matrix = np.array(list(numbers.values()), np.float64).T if numbers else None
    if not classes:
        return NO_LABELS._replace(numbers=matrix, number_names=list(numbers))
    column = classes[0]
    try:
        cells = [as_label(value) for value in column.values]
        labels, taken = number_labels(cells, named.get(column.name, class_names), where)
    except ValueError as error:
        raise UsageError(f"{where}: column {column.name!r}: {error}") from None
    return Labels(labels, taken, matrix, list(numbers))


def check_one_class(classes: Sequence[Column], where: str) -> None:
    """Raises UsageError for two columns of classes."""
    if len(classes) > 1:
        pair = " and ".join(repr(column.name) for column in classes[:2])
        fix = "choose one, or write NAME:number or NAME:flag of columns of numbers"
        raise UsageError(f"--label_columns: {pair} of {where} are classes, and images have one class; {fix}")


def choose_columns(
    columns: Mapping[str, Sequence[Any]], wanted: str | None, where: str, names: Mapping[str, Sequence[str]] | None
) -> list[Column]:
    """The columns that are asked for; without `wanted`, the only candidate. Raises UsageError."""
    if wanted is None:
        return only_column(columns, where, names)
    asked = [split_kind(word.strip()) for word in wanted.split(",")]
    expanded = expand_vectors(columns, [name for name, _ in asked], where)
    chosen: list[Column] = []
    for name, kind in asked:
        parts = expanded.get(name)
        if parts is None:
            raise UsageError(f"--label_columns: {where} has no column {name!r}; it has {listed(columns)}")
        chosen += [Column(part, kind, values) for part, values in parts.items()]
    taken = [column.name for column in chosen]
    twice = next((name for name in taken if taken.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--label_columns: {twice!r} is in it twice")
    return chosen


def only_column(
    columns: Mapping[str, Sequence[Any]], where: str, names: Mapping[str, Sequence[str]] | None
) -> list[Column]:
    """The only candidate, if there is any at all. Raises UsageError."""
    found = list(columns)
    if names is not None and len(found) > 1:
        named = [name for name in columns if name in names]
        found = named if len(named) == 1 else [name for name in columns if name == "label"]
    if len(found) != 1 and columns:
        fix = f"say which: --label_columns {next(iter(columns))}, or several as A,B:number,C:flag"
        raise UsageError(f"{where} has the columns {listed(columns)}; {fix}, or --labels none")
    if found and is_vectors(columns[found[0]]):
        fix = f"--label_columns {found[0]}:number (or {found[0]}:flag, if all are 0 or 1)"
        raise UsageError(f"{where}: {found[0]!r} is a list of numbers; {fix} takes them as conditions")
    return [Column(name, None, columns[name]) for name in found]


def split_kind(word: str) -> tuple[str, Kind | None]:
    """`age:number` -> age and number; other words are names as they are."""
    for kind in KINDS:
        if word.endswith(f":{kind}"):
            return word.removesuffix(f":{kind}"), kind
    return word, None


def expand_vectors(
    columns: Mapping[str, Sequence[Any]], asked: Sequence[str], where: str
) -> dict[str, dict[str, Sequence[Any]]]:
    """What every name stands for: a column; all K numbers of a column of lists; or one of them, as `label_2`.

    As many names as a lone column of lists has numbers, none of them known, name its numbers. Raises UsageError.
    """
    expanded: dict[str, dict[str, Sequence[Any]]] = {}
    for name, values in columns.items():
        if not is_vectors(values):
            expanded[name] = {name: values}
            continue
        width = len(values[0])
        if not all(isinstance(value, list) and len(value) == width for value in values):
            raise UsageError(f"{where}: {name!r} is not a list of {width} numbers in all rows")
        parts: dict[str, Sequence[Any]] = {f"{name}_{i}": [value[i] for value in values] for i in range(width)}
        expanded[name] = parts
        expanded |= {part: {part: numbers} for part, numbers in parts.items()}
        if len(columns) == 1 and len(asked) == width and not set(asked) & set(expanded):
            return {own: {own: values} for own, values in zip(asked, parts.values(), strict=True)}
    return expanded


def is_vectors(values: Sequence[Any]) -> bool:
    return len(values) > 0 and isinstance(values[0], list)


def listed(names: Mapping[str, Any], limit: int = 12) -> str:
    """Up to `limit` names."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(repr(name) for name in list(names)[:limit]) + more if names else "none"


def number_labels(labels: Sequence[Label], names: Sequence[str] = (), where: str = "") -> tuple[np.ndarray, list[str]]:
    """Labels as numbers, int64 [N], and the names of the classes. Raises ValueError.

    Integers index `names`; without names, the integers that occur are the classes, in their order, and a note says so
    if some are left out in between. If not all are integers, they are places in `names`; by default those are the
    labels, sorted.
    """
    if not all(isinstance(label, int) or label.isdecimal() for label in labels):
        names = names or sorted({str(label) for label in labels})
        index = {name: i for i, name in enumerate(names)}
        unknown = next((str(label) for label in labels if str(label) not in index), None)
        if unknown is not None:
            raise ValueError(f"the label {unknown!r} is not one of the {len(names)} classes")
        if len(names) >= MANY_CLASSES and len(names) > len(labels) / 2:
            warn(f"{where or 'labels'}: {len(names):,} classes for {len(labels):,} images, such as {names[0]!r}")
        return np.array([index[str(label)] for label in labels], np.int64), list(names)
    limit = len(names) or MAX_CLASSES
    numbers = np.array([int(label) if len(str(label)) < 19 else limit for label in labels], np.int64)
    outside = np.flatnonzero((numbers < 0) | (numbers >= limit))
    if len(outside):
        raise ValueError(f"the label {labels[outside[0]]} is not in [0, {limit:,})")
    spellings: dict[int, str] = {}
    for text in sorted({str(label) for label in labels}):
        if (other := spellings.setdefault(int(text), text)) != text:
            raise ValueError(f"the labels {other!r} and {text!r} are the same number; write it in one way")
    if names:
        return numbers, list(names)
    present, places = np.unique(numbers, return_inverse=True)
    if len(present) and present[-1] != len(present) - 1:
        absent = next(i for i, number in enumerate(present) if i != number)
        numbered = f"the {len(present)} that occur are numbered from 0 and keep their names"
        note(f"{where or 'labels'}: no image has the label {absent}, and some have {present[-1]}; {numbered}")
    return places.reshape(-1).astype(np.int64), [str(number) for number in present]
