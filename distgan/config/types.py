"""Types of the keys of a configuration, with their ranges, which the parser checks."""

import math
from typing import TYPE_CHECKING, Any

import jsonargparse.typing as types

if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    PositiveFloat = float
    NonNegativeFloat = float
    Decay = float
else:
    PositiveInt = types.PositiveInt
    NonNegativeInt = types.NonNegativeInt
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
"""What a message calls the numbers of a type."""


Schedule = dict[str, Any]
"""A number that changes during a run: {from, to, images[, shape][, start]}; see distgan/config/entries.py."""
SCHEDULE_FORM = "{from: number, to: number, images: number, shape: linear or cosine, start: number}"
