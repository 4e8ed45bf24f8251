"""Conditions of generated images: values by name, ranges of them, and values spread over those of the training set."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from distgan.errors import UsageError
from distgan.rng import rng
from distgan.samples import Condition

MAX_STEPS = 1000
"""Of a range."""
FLOAT32_MAX = np.finfo(np.float32).max
FORMS = "energy=50,angle=0.3, or energy=1:100:8 for 8 columns from 1 to 100"


def parse_conditions(text: str | None) -> dict[str, np.ndarray]:
    """The values by name of `energy=50,angle=0:1:8`, float64: [1], or [8] for a range. Raises UsageError."""
    given: dict[str, np.ndarray] = {}
    for part in text.split(",") if text is not None else []:
        name, _, values = (word.strip() for word in part.rpartition("="))
        if not name or not values:
            raise UsageError(f"condition: {part!r} is not NAME=VALUE; write {FORMS}")
        if name in given:
            raise UsageError(f"condition: {name} is given twice; keep one")
        given[name] = parse_values(name, values.split(":"))
    ranges = [name for name, values in given.items() if len(values) > 1]
    if len(ranges) > 1:
        raise UsageError(
            f"condition: {' and '.join(ranges)} are ranges; give one range, and single values of the others"
        )
    return given


def parse_values(name: str, words: Sequence[str]) -> np.ndarray:
    """float64 [1] of a value, [steps] of FROM, TO and STEPS. Raises UsageError."""
    if len(words) not in (1, 3):
        raise UsageError(f"condition: {name}={':'.join(words)} is neither a value nor FROM:TO:STEPS; write {FORMS}")
    bounds = [parse_number(name, word) for word in words[:2]]
    if len(words) == 1:
        return np.array(bounds)
    steps = int(words[2]) if words[2].isdecimal() and len(words[2]) < 6 else 0
    if not 2 <= steps <= MAX_STEPS:
        raise UsageError(f"condition: the steps of {name} are {words[2]!r}; give an integer from 2 to {MAX_STEPS}")
    return np.linspace(bounds[0], bounds[1], steps)


def parse_number(name: str, word: str) -> float:
    """Raises UsageError unless it is a finite number."""
    try:
        number = float(word)
    except ValueError:
        raise UsageError(f"condition: the value {word!r} of {name} is no number; --label chooses a class") from None
    if not math.isfinite(number):
        raise UsageError(f"condition: the value {word!r} of {name} is not a finite number")
    return number


def check_values(conditions: Sequence[Condition], given: Mapping[str, np.ndarray]) -> None:
    """Raises UsageError for a name that is no condition, for what float32 cannot hold, and for flags beside 0 and 1."""
    known = {condition.name: condition for condition in conditions}
    for name, values in given.items():
        if name not in known:
            has = f"choose from {', '.join(known)}" if known else "the generator was trained without conditions"
            raise UsageError(f"condition: unknown condition {name!r}; {has}")
        if not (np.abs(values) < FLOAT32_MAX).all():
            raise UsageError(f"condition: a value of {name} is not a finite number of 32 bits")
        if known[name].kind == "flag" and not np.isin(values, (0, 1)).all():
            raise UsageError(f"condition: {name} is a flag, which is 0 or 1")


def values_outside(conditions: Sequence[Condition], given: Mapping[str, np.ndarray]) -> list[str]:
    """Warnings, one for each condition with a value that no sample of the training set reaches."""
    found = []
    for condition in conditions:
        low, high = np.float32(condition.low), np.float32(condition.high)  # datasets store numbers as float32
        values = given.get(condition.name, np.array([])).astype(np.float32)
        outside = values[(values < low) | (values > high)]
        if len(outside):
            trained = f"{condition.low:g} to {condition.high:g}"
            found.append(f"condition: {condition.name}={outside[0]:g} is outside of the training set's {trained}")
    return found


def describe(conditions: Sequence[Condition], given: Mapping[str, np.ndarray]) -> str:
    """The conditions of images in words: `energy=50, angle spread over 0 to 3.1, forward 0 or 1`."""
    words = []
    for condition in conditions:
        values = given.get(condition.name)
        if values is None and condition.kind == "flag":
            words.append(f"{condition.name} 0 or 1")
        elif values is None:
            words.append(f"{condition.name} spread over {condition.low:g} to {condition.high:g}")
        elif len(values) == 1:
            words.append(f"{condition.name}={values[0]:g}")
        else:
            words.append(f"{condition.name} from {values[0]:g} to {values[-1]:g}")
    return ", ".join(words)


def spread(conditions: Sequence[Condition], count: int, seed: int) -> dict[str, np.ndarray]:
    """Values float64 [count] of each condition by name, between the least and the greatest of the training set.

    A Latin hypercube (McKay, Beckman & Conover 1979): in each of `count` equal parts of a number's range lies one
    value, and their order is another for each condition. A flag is 0 in one half of the images.
    """
    values = {}
    for i, condition in enumerate(conditions):
        generator = rng(seed, "condition", i)
        uniform = (generator.permutation(count) + generator.random(count)) / count
        if condition.kind == "flag":
            values[condition.name] = np.where(uniform < 0.5, condition.low, condition.high)
        else:
            values[condition.name] = condition.low + uniform * (condition.high - condition.low)
    return values


def values_of_rows(
    conditions: Sequence[Condition], given: Mapping[str, np.ndarray], rows: int, columns: int, seed: int
) -> dict[str, np.ndarray]:
    """Values float64 [rows * columns] of each condition by name, for images in reading order.

    `given` has one value, or one for each column; the others are spread over the rows.
    """
    by_row = {name: values[:, None] for name, values in spread(conditions, rows, seed).items()}
    return {
        name: np.broadcast_to(values, (rows, columns)).reshape(-1) for name, values in (by_row | dict(given)).items()
    }
