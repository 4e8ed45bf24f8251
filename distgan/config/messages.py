"""Rewrites jsonargparse's error messages: one line with the key, what it takes, and what it was given."""

import difflib
import re
from collections.abc import Callable, Sequence

from distgan.config.refusals import check_blank
from distgan.config.types import RANGES, SCHEDULE_FORM
from distgan.errors import shorten

TYPES = RANGES | {
    "bool": "true or false",
    "str": "text",
    "list": "a list [value, ...]",
    "tuple": "a list of 2 values [value, value]",
    "dict": "a mapping {name: value, ...}",
}
"""Types as jsonargparse calls them, and what a message calls them."""


def reword(message: str, keys: Sequence[str]) -> str:
    """A message of jsonargparse in one line; `keys` are those of the parser. Raises UsageError for `a:1`, YAML
    without a space after the colon."""
    text = " ".join(message.split())
    for pattern, words in WORDINGS:
        match = re.search(pattern, text)
        if match:
            return words(match, keys)
    return shorten(text)


def no_section(key: str, value: object, keys: Sequence[str]) -> str:
    """The message for a value in the place of a section."""
    inner = ", ".join(name.removeprefix(f"{key}.") for name in keys if name.startswith(f"{key}."))
    got = "nothing" if value is None else shorten(str(value))
    return f"{key}: expected a section with the keys {inner}, got {got}"


def suggest(key: str, keys: Sequence[str]) -> str:
    """The keys that an unknown one may stand for."""
    sections = {name.rsplit(".", 1)[0] for name in keys if "." in name}
    values = [name for name in keys if name not in sections]
    same_name = [name for name in values if name.rsplit(".", 1)[-1] == key]
    if close := same_name or difflib.get_close_matches(key, values, n=3, cutoff=0.6):
        return "did you mean " + ", ".join(close) + "?"
    section = key.rsplit(".", 1)[0] + "."
    siblings = [name for name in values if "." in key and name.startswith(section)]
    return "choose from " + ", ".join(siblings or (name for name in keys if "." not in name))


def empty_config(match: re.Match[str], keys: Sequence[str]) -> str:
    check_blank("--config", match[1])
    return f"--config: {shorten(match[1]) or 'an empty file'} sets no key"


def invalid_yaml(match: re.Match[str], keys: Sequence[str]) -> str:
    problem = match[1].replace(' in "<unicode string>"', "")
    return f"--config: not YAML: {shorten(problem)}"


def unknown_key(match: re.Match[str], keys: Sequence[str]) -> str:
    key = ".".join(name for name in match.groups() if name).split("=")[0]
    return f"{shorten(key)}: no such key; {suggest(key, keys)}"


def unloaded_section(match: re.Match[str], keys: Sequence[str]) -> str:
    return no_section(match[1], match[2], keys)


def none_of_several(match: re.Match[str], keys: Sequence[str]) -> str:
    key, subtypes, got = match.groups()
    names = re.findall(r"(\w+)'>|(dict)\[", subtypes)
    words = [f"one of {choices}" for choices in re.findall(r"Literal\[([^\]]*)\]", subtypes)]
    words += [
        f"a schedule {SCHEDULE_FORM}" if mapping else TYPES[name] for name, mapping in names if name != "NoneType"
    ]
    return wrong_value(key, ", or ".join(words), got)


def out_of_range(match: re.Match[str], keys: Sequence[str]) -> str:
    key, name, reason = match.groups()
    # int() of Python: `invalid literal for int() with base 10: 'x'`; jsonargparse: `0 does not conform to restriction
    # v>0`, `64.5 not an integer`
    value = re.search(r"'(.*)'$|^(\S+) (?:does not conform|not a)", reason)
    got = reason if value is None else value[1] or value[2] or ""
    return wrong_value(key, RANGES[name], got)


def wrong_type(match: re.Match[str], keys: Sequence[str]) -> str:
    key, name, values, choices, got = match.groups()
    return wrong_value(key, f"one of {choices}" if choices else TYPES.get(name or values, name), got)


def unwanted_value(match: re.Match[str], keys: Sequence[str]) -> str:
    return f"{match[1]}: takes no value, got {shorten(match[2])}"


def wrong_value(key: str, expected: str, got: str) -> str:
    check_blank(key, got)
    return f"{key}: expected {expected}, got {shorten(got) or 'nothing'}"


KEY = r'^Parser key "([^"]+)": '
WORDINGS: list[tuple[str, Callable[[re.Match[str], Sequence[str]], str]]] = [
    # a --config file that holds no mapping
    (r"^Unexpected config: ?(.*)", empty_config),
    (r"^Problems parsing config: (.*)", invalid_yaml),
    # an unknown key: on the command line, in a section of a file, at the top of a file
    (r"^[Uu]nrecognized arguments: --(\S+)", unknown_key),
    (r"^Group '(.+)' does not accept option '(.+)'", unknown_key),
    (r"^Option '(.+)' is not accepted", unknown_key),
    (r"^unrecognized arguments: (.+)", lambda match, keys: f"{shorten(match[1])}: unexpected argument"),
    # `--ema 0`
    (KEY + r"Unable to load config '(.*)' - ", unloaded_section),
    # a value of `PositiveInt | None`, or of `PositiveFloat | Schedule`
    (KEY + r"Does not validate against .* Subtypes: \[(.*)\] Errors: .* Given value: (.*)", none_of_several),
    # a value of `PositiveInt`
    (KEY + rf"Not of type ({'|'.join(RANGES)}): (.*)", out_of_range),
    # a value of another type: `<class 'dict'>`, `tuple with 2 elements`, `typing.Literal['no', 'bf16', 'fp16']`
    (
        KEY + r"Expected a (?:<class '(\w+)'>|(tuple) with \d elements|typing\.Literal\[(.*?)\])\. Got value: (.*)",
        wrong_type,
    ),
    # argparse's own
    (r"^argument (--[\w.]+): expected one argument", lambda match, keys: f"{match[1]}: expected a value after it"),
    (r"^argument (--[\w.]+): ignored explicit argument '(.*)'", unwanted_value),
    # all others with a key
    (KEY + r"(.*)", lambda match, keys: f"{match[1]}: {shorten(match[2])}"),
]
"""The wordings of jsonargparse, of which the first that matches counts, and the function that words them anew."""
