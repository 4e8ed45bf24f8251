"""Schedules, penalties, terms and augmentations: what a configuration may say of them, parsed into typed values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from distgan.config.types import SCHEDULE_FORM
from distgan.errors import UsageError

LARGEST = 1e18


@dataclass(frozen=True)
class Range:
    """The numbers that a key takes."""

    words: str
    """What a message calls them."""
    contains: Callable[[float], bool]


NUMBER = Range("a number, 0 or more", lambda number: 0 <= number <= LARGEST)
POSITIVE = Range("a number above 0", lambda number: 0 < number <= LARGEST)
PROBABILITY = Range("a number in [0, 1]", lambda number: 0 <= number <= 1)
BETA = Range("a number in [0, 1)", lambda number: 0 <= number < 1)
COUNT = Range("an integer above 0", lambda number: isinstance(number, int) and number > 0)
UNIT_FRACTION = Range(
    "1, or a unit fraction as a number (0.5, 0.333, 0.25, 0.125, ...)",
    lambda number: 0 < number <= 1 and abs(number * round(1 / number) - 1) < 0.005,
)

SHAPES = ("linear", "cosine")
PENALTY_OPTIONS = {"every": "iterations", "sigma": "number", "share": "number", "separate": "true or false"}
G_PENALTY_OPTIONS = {name: form for name, form in PENALTY_OPTIONS.items() if name != "sigma"}
TERM = "{weight: number or schedule, network: name, path: folder}"
ADAPTIVE = "{target: number, images: number}"


@dataclass(frozen=True)
class PenaltyEntry:
    """A penalty of D or of G."""

    weight: float | dict[str, Any]
    """A number or a schedule."""
    every: int = 1
    """Iterations between two applications."""
    sigma: float | None = None
    """Standard deviation of the noise that a penalty adds to images; None: the default."""
    share: float | None = None
    """Of the images, those that it adds noise to, or of G's latents, those that it takes: 1 / `stride`; None: all."""
    separate: bool = False
    """Whether it has an update of its own; never if it is due in every iteration."""

    @property
    def stride(self) -> int:
        """Every so many images, it takes one."""
        return round(1 / (self.share or 1))


@dataclass(frozen=True)
class TermEntry:
    """A term of the objective of D or of G."""

    weight: float | dict[str, Any]
    """A number or a schedule."""
    network: str | None = None
    """The frozen network whose features it compares with; None: it needs none, or dinov2."""
    path: str | None = None
    """Of its files: a folder, or hf://OWNER/NAME."""


@dataclass(frozen=True)
class AugmentEntry:
    """An augmentation of what D sees."""

    name: str
    factor: float = 1.0
    """Of its probability, in [0, 1]."""


@dataclass(frozen=True)
class AdaptiveProbability:
    """The rule of Karras et al. 2020: a probability of augmentation that follows sign(D(x))."""

    target: float
    """Target for the mean of sign(D(x)), in [0, 1]."""
    images: float
    """Images it takes the probability to go from 0 to 1, at the fastest."""


def parse_number(key: str, value: Any, numbers: Range, expected: str = "") -> float:
    """Raises UsageError, which says what is `expected`: by default the words of the range."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not numbers.contains(value):
        raise UsageError(f"{key}: expected {expected or numbers.words}, got {value!r}")
    return value


def check_keys(
    key: str, section: dict[str, Any], expected: str, *, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> None:
    """Raises UsageError for an unknown key in a section, and for one that is missing."""
    for name in section:
        if name not in (*required, *optional):
            raise UsageError(f"{key}.{name}: no such key; expected {expected}")
    for name in required:
        if name not in section:
            raise UsageError(f"{key}: {name!r} is missing; expected {expected}")


def parse_schedule(key: str, value: Any, numbers: Range = NUMBER, *others: str) -> float | dict[str, Any]:
    """A number in the range, or a schedule between two of them: {from, to, images[, shape][, start]}, as it is.

    distgan/gan/schedules.py computes it. `others` are more forms that the key takes, for messages. Raises UsageError.
    """
    forms = [f"a schedule {SCHEDULE_FORM}", *others]
    if not isinstance(value, dict):
        return parse_number(key, value, numbers, ", or ".join([numbers.words, *forms]))
    check_keys(key, value, ", or ".join(forms), required=("from", "to", "images"), optional=("shape", "start"))
    parse_number(f"{key}.from", value["from"], numbers)
    parse_number(f"{key}.to", value["to"], numbers)
    parse_number(f"{key}.images", value["images"], POSITIVE)
    parse_number(f"{key}.start", value.get("start", 0), NUMBER)
    if value.get("shape", "cosine") not in SHAPES:
        raise UsageError(f"{key}.shape: unknown shape {value['shape']!r}; choose from {', '.join(SHAPES)}")
    return value


def parse_penalty(key: str, value: Any, options: Mapping[str, str] = PENALTY_OPTIONS) -> PenaltyEntry:
    """A weight, a schedule of it, or {weight, every, ...} with some of the options. Raises UsageError.

    Of D's penalties those that add noise take `sigma` and `share`: distgan/training/noise_checks.py refuses them for
    others.
    """
    form = ", ".join(f"{name}: {what}" for name, what in {"weight": "number or schedule", **options}.items())
    expected = f"{{{form}}}"
    if not (isinstance(value, dict) and value.keys() & {"weight", *options}):
        return PenaltyEntry(parse_schedule(key, value, NUMBER, expected))
    check_keys(key, value, expected, required=("weight",), optional=tuple(options))
    every = parse_number(f"{key}.every", value.get("every", 1), COUNT)
    sigma = parse_number(f"{key}.sigma", value["sigma"], POSITIVE) if "sigma" in value else None
    share = parse_number(f"{key}.share", value["share"], UNIT_FRACTION) if "share" in value else None
    separate = value.get("separate", False)
    if not isinstance(separate, bool):
        raise UsageError(f"{key}.separate: expected true or false, got {separate!r}")
    weight = parse_schedule(f"{key}.weight", value["weight"])
    return PenaltyEntry(weight, int(every), sigma, share, separate and every > 1)


def separate_interval(entries: Mapping[str, PenaltyEntry]) -> int:
    """The iterations between two updates of a network for its separate penalties alone; 1 if it has none.

    distgan/training/penalty_checks.py refuses several of different intervals.
    """
    return max((entry.every for entry in entries.values() if entry.separate), default=1)


def parse_term(key: str, value: Any) -> TermEntry:
    """A weight, a schedule of it, or {weight, network, path}. Raises UsageError."""
    if not (isinstance(value, dict) and value.keys() & {"weight", "network", "path"}):
        return TermEntry(parse_schedule(key, value, NUMBER, TERM))
    check_keys(key, value, TERM, required=("weight",), optional=("network", "path"))
    for name in ("network", "path"):
        if not isinstance(value.get(name), str | None):
            raise UsageError(f"{key}.{name}: expected text, got {value[name]!r}")
    return TermEntry(parse_schedule(f"{key}.weight", value["weight"]), value.get("network"), value.get("path"))


def parse_augmentation(value: Any) -> AugmentEntry:
    """A name, or {name: factor}. Raises UsageError."""
    if isinstance(value, str):
        return AugmentEntry(value)
    if not isinstance(value, dict) or len(value) != 1:
        raise UsageError(f"augment: expected names, or {{name: factor in [0, 1]}}, got {value!r}")
    ((name, factor),) = value.items()
    return AugmentEntry(name, parse_number(f"augment.{name}", factor, PROBABILITY))


def parse_probability(value: Any) -> float | dict[str, Any] | AdaptiveProbability:
    """`augment_p`: a probability, a schedule of it, or {target, images}. Raises UsageError."""
    if not (isinstance(value, dict) and "target" in value):
        return parse_schedule("augment_p", value, PROBABILITY, ADAPTIVE)
    check_keys("augment_p", value, ADAPTIVE, required=("target", "images"))
    target = parse_number("augment_p.target", value["target"], PROBABILITY)
    return AdaptiveProbability(target, parse_number("augment_p.images", value["images"], POSITIVE))
