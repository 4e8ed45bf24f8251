"""Types of values in a configuration: ranges of numbers, schedules, penalties, augmentations."""

import math
from typing import TYPE_CHECKING, Any

import jsonargparse.typing as types

from distgan.errors import UsageError

if TYPE_CHECKING:
    PositiveInt = NonNegativeInt = int
    PositiveFloat = NonNegativeFloat = Decay = float
else:
    PositiveInt, NonNegativeInt = types.PositiveInt, types.NonNegativeInt
    # jsonargparse's own types for floats let infinity pass.
    PositiveFloat = types.restricted_number_type("FinitePositiveFloat", float, [(">", 0), ("<", math.inf)])
    NonNegativeFloat = types.restricted_number_type("FiniteNonNegativeFloat", float, [(">=", 0), ("<", math.inf)])
    Decay = types.restricted_number_type("Decay", float, [(">=", 0), ("<", 1)])


RANGES = {
    "PositiveInt": "an integer above 0",
    "NonNegativeInt": "an integer, 0 or more",
    "FinitePositiveFloat": "a finite number above 0",
    "FiniteNonNegativeFloat": "a finite number, 0 or more",
    "Decay": "a number in [0, 1)",
}


Schedule = dict[str, Any]
"""A number that changes during a run: {from, to, images[, shape][, start]}; see distgan/gan/schedules.py."""


MAX_NUMBER = 1e18


def is_number(value: object, limit: float = math.inf) -> bool:
    """Whether `value` is a finite number in [0, limit]."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= min(limit, MAX_NUMBER)


def check_schedule(key: str, value: object, limit: float = math.inf) -> None:
    """Raises UsageError unless `value` is a number in [0, limit], or a schedule between such numbers."""
    form = "{from: number, to: number, images: number, shape: linear or cosine, start: number}"
    if not isinstance(value, dict):
        if not is_number(value, limit):
            raise UsageError(f"{key}: expected a number{range_of(limit)}, or a schedule {form}, got {value!r}")
        return
    for name in ("from", "to", "images"):
        if name not in value:
            raise UsageError(f"{key}: the schedule lacks {name!r}; a schedule is {form}")
    for name, number in value.items():
        if name not in ("from", "to", "images", "shape", "start"):
            raise UsageError(f"{key}.{name}: no such key; a schedule is {form}")
        if name == "shape" and number not in ("linear", "cosine"):
            raise UsageError(f"{key}.shape: unknown shape {number!r}; choose from linear, cosine")
        largest = limit if name in ("from", "to") else math.inf
        if name != "shape" and not is_number(number, largest):
            raise UsageError(f"{key}.{name}: expected a number{range_of(largest)}, got {number!r}")
        if name == "images" and number == 0:
            raise UsageError(f"{key}.images: expected a number above 0, got 0")


def range_of(limit: float) -> str:
    return ", 0 or more" if limit == math.inf else " in [0, 1)" if limit < 1 else f" in [0, {limit:g}]"


def check_penalties(penalties: dict[str, Any]) -> None:
    """Raises UsageError unless each is a weight, a schedule, or {weight, every}."""
    for name, value in penalties.items():
        if isinstance(value, dict) and value.keys() & {"weight", "every"}:
            if value.keys() != {"weight", "every"}:
                raise UsageError(f"penalties.{name}: expected {{weight: number, every: iterations}}, got {value!r}")
            every = value["every"]
            if not isinstance(every, int) or isinstance(every, bool) or every < 1:
                raise UsageError(f"penalties.{name}.every: expected an integer above 0, got {every!r}")
            check_schedule(f"penalties.{name}.weight", value["weight"])
        else:
            check_schedule(f"penalties.{name}", value)


def check_augment(augment: list[Any], augment_p: object) -> None:
    """Raises UsageError unless the entries are names or {name: factor}, and `augment_p` a probability."""
    for entry in augment:
        if isinstance(entry, dict) and len(entry) == 1 and is_number(next(iter(entry.values())), limit=1):
            continue
        if not isinstance(entry, str):
            raise UsageError(f"augment: expected names, or {{name: factor in [0, 1]}}, got {entry!r}")
    if isinstance(augment_p, dict) and "target" in augment_p:
        if augment_p.keys() != {"target", "images"}:
            raise UsageError(f"augment_p: expected {{target: number, images: number}}, got {augment_p!r}")
        check_schedule("augment_p.target", augment_p["target"], limit=1)
        check_schedule("augment_p", {"from": 0, "to": 1, "images": augment_p["images"]})
    else:
        check_schedule("augment_p", augment_p, limit=1)
    if not augment and augment_p != 1:
        raise UsageError("augment_p: no augmentation is given in augment, e.g. [color, translation, cutout]")
