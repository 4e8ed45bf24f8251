"""What no key can take, refused before the parser reads it: NUL bytes, huge numbers, deep nesting, `a:1` for `a: 1`."""

import re
from typing import Any

import yaml

from distgan.errors import ECHO, UsageError, shorten

MAX_DIGITS = 300
"""Of a number, so that a float can hold it."""
MAX_DEPTH = 20
"""Of lists and sections in each other."""
MAX_VALUES = 100_000

LONG_NUMBER = re.compile(rf"\d{{{MAX_DIGITS},}}")
NO_BLANK = re.compile(r"[{\s]*([A-Za-z_]\w*):([^\s:/\\].*)", re.DOTALL)
"""A key and a value without a blank between them: to YAML one piece of text."""


def check_text(key: str, text: str) -> None:
    """Raises UsageError for a value of the command line, or a configuration, that no key can take."""
    check_digits(key, text)
    check_values(key, text)
    try:
        values = yaml.safe_load(text)
    except RecursionError:
        raise UsageError(f"{shorten(key or '--config')}: nested too deep") from None
    except (yaml.YAMLError, ValueError, AttributeError, LookupError):
        return  # the parser says what is wrong, if it reads this as YAML
    check_values(key, values)


def check_digits(key: str, text: str) -> None:
    """Raises UsageError for a number of too many digits, with the word before it: most often its key."""
    number = LONG_NUMBER.search(text)
    if number:
        before = text[max(0, number.start() - ECHO) : number.start()]
        words = re.findall(r"[\w.]+", before) or [key]
        raise UsageError(f"{words[-1]}: a number of more than {MAX_DIGITS} digits")


def check_values(key: str, value: Any) -> None:
    """Raises UsageError, with the key, for a NUL byte, a number beyond 64 bits, deep nesting, and aliases in a circle.

    Not recursive, and limited: an alias in YAML repeats what is in it.
    """
    left: list[tuple[str, Any, int]] = [(key, value, 0)]
    for _ in range(MAX_VALUES):
        if not left:
            return
        key, value, depth = left.pop()
        if depth > MAX_DEPTH:
            raise UsageError(f"{shorten(key or 'the command line')}: nested more than {MAX_DEPTH} deep")
        check_value(key, value)
        if isinstance(value, dict | list | tuple):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(f"{key}.{name}" if key else str(name), item, depth + 1) for name, item in items]
    raise UsageError(f"{shorten(key)}: more than {MAX_VALUES:,} values")


def check_value(key: str, value: Any) -> None:
    """Raises UsageError for a NUL byte, a number beyond 64 bits, and `{a:1}`, which is a key without a value."""
    shown = shorten(key or "the command line")
    if isinstance(value, str) and "\0" in value:
        raise UsageError(f"{shown}: a NUL byte in {shorten(value)!r}")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UsageError(f"{shown}: a number beyond 64 bits")
    if isinstance(value, dict):
        for name, item in value.items():
            if item is None and isinstance(name, str):
                check_blank(key, name)


def check_blank(key: str, text: str) -> None:
    """Raises UsageError for `a:1` in the place of `a: 1`."""
    pair = NO_BLANK.fullmatch(text)
    if pair:
        name, rest = pair.groups()
        value = shorten(rest.split(",")[0].strip("{} \n") or "...", 40)
        where = f"{shorten(key)}: " if key else ""
        raise UsageError(f"{where}YAML needs a blank after the colon: {name}: {value}, not {name}:{value}")
