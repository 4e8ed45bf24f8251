"""The parser of commands and configurations: errors in one line that names the key and how to fix it."""

import difflib
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from distgan.config.types import RANGES
from distgan.errors import ECHO, UsageError, shorten

# Docstrings under fields are their help.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


MAX_DIGITS = 300  # of a number, so that a float can hold it


MAX_DEPTH, MAX_VALUES = 20, 100_000  # of lists and sections


NO_BLANK = re.compile(r"[{\s]*([A-Za-z_]\w*):([^\s:/\\].*)", re.DOTALL)
"""A key and a value without a blank between them: to YAML one piece of text."""


def check_text(key: str, text: str) -> None:
    """Raises UsageError for a word of the command line, or a configuration, that no key can take."""
    if number := re.search(rf"\d{{{MAX_DIGITS},}}", text):
        before = re.findall(r"[\w.]+", text[max(0, number.start() - ECHO) : number.start()])
        raise UsageError(f"{(before or [key.lstrip('-')])[-1]}: a number of more than {MAX_DIGITS} digits")
    check_values(key, text)
    try:
        check_values(key, yaml.safe_load(text))
    except RecursionError:
        raise UsageError(f"{shorten(key.lstrip('-') or '--config')}: nested too deep") from None
    except UsageError:
        raise
    except (yaml.YAMLError, ValueError, AttributeError, LookupError):
        pass  # the parser says what is wrong, if it reads this as YAML


def check_values(key: str, value: Any) -> None:
    """Raises UsageError, with the key, for a NUL byte, a number beyond 64 bits, deep nesting, and aliases in a circle.

    Not recursive, and limited: an alias in YAML repeats what is in it.
    """
    left: list[tuple[str, Any, int]] = [(key.lstrip("-").split("=")[0], value, 0)]
    for _ in range(MAX_VALUES):
        if not left:
            return
        key, value, depth = left.pop()
        shown = shorten(key or "the command line")
        if depth > MAX_DEPTH:
            raise UsageError(f"{shown}: nested more than {MAX_DEPTH} deep")
        if isinstance(value, str) and "\0" in value:
            raise UsageError(f"{shown}: a NUL byte in {shorten(value)!r}")
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise UsageError(f"{shown}: a number beyond 64 bits")
        if isinstance(value, dict):
            for name in value:
                if value[name] is None and isinstance(name, str):
                    check_blank(key, name)
        if isinstance(value, dict | list | tuple):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(f"{key}.{name}" if key else str(name), item, depth + 1) for name, item in inner]
    raise UsageError(f"{shorten(key)}: more than {MAX_VALUES:,} values")


def check_blank(key: str, text: str) -> None:
    """Raises UsageError for `a:1` in the place of `a: 1`."""
    if found := NO_BLANK.fullmatch(text):
        name, value = found[1], shorten(found[2].split(",")[0].strip("{} \n") or "...", 40)
        where = f"{shorten(key)}: " if key else ""
        raise UsageError(f"{where}YAML needs a blank after the colon: {name}: {value}, not {name}:{value}")


def is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long, or with a NUL byte
        return False


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose errors are one line that names the key and how to fix it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["allow_abbrev"] = False  # an abbreviated key is a typing error
        super().__init__(*args, **kwargs)

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """As argparse; refuses what no key can take, before and after. Raises UsageError."""
        words = list(sys.argv[1:] if args is None else args)
        given = [
            word.removeprefix("--config=") for flag, word in pairwise(["", *words]) if "--config" in (flag, word[:8])
        ]
        for path in filter(is_file, given):
            check_text("", Path(path).read_text())
        for flag, word in pairwise(["", *words]):
            if word.startswith("--"):
                flag, _, word = word.partition("=")
            check_text(flag, word)
        try:
            namespace = super().parse_args(words, *more, **options)
        except RecursionError:
            raise UsageError("the configuration is nested too deep") from None
        except UsageError:
            raise
        except (ValueError, AttributeError, LookupError) as error:  # of PyYAML, such as for `!!timestamp x`
            raise UsageError(f"the configuration has a value that YAML cannot read: {shorten(str(error))}") from None
        check_values("", namespace.as_dict())
        return namespace

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UsageError(self.one_line(message)) from None

    def one_line(self, message: str) -> str:
        message = " ".join(message.split())
        if message.startswith("Unexpected config:"):
            found = message.removeprefix("Unexpected config:").strip()
            check_blank("--config", found)
            return f"--config: {shorten(found) or 'an empty file'} sets no key"
        unknown = re.search(r"(?i)^Unrecognized arguments: --(\S+)|^Option '(.+)' is not accepted", message)
        in_group = re.search(r"^Group '(.+)' does not accept option '(.+)'", message)
        found = unknown or in_group
        if found:
            key = ".".join(name for name in found.groups() if name).split("=")[0]
            return f"{shorten(key)}: no such key; {self.suggest(key)}"
        number = re.search(r'^Parser key "([^"]+)":.*Not of type (\w+): (.*)', message)
        if number and number[2] in RANGES:
            value = re.search(r"Given value: (.*)|'(.*)'$|^(\S+) (?:does not conform|not a)", number[3])
            got = next((text for text in value.groups() if text is not None), "") if value else number[3]
            check_blank(number[1], got)
            return f"{number[1]}: expected {RANGES[number[2]]}, got {shorten(got)}"
        message = re.sub(r"^Parser key \"([^\"]+)\": ", r"\1: ", message)
        message = re.sub(r"<class '(\w+)'>|typing\.Literal", lambda found: found[1] or "one of ", message)
        message = message.replace("Expected a ", "expected ").replace(". Got value: ", ", got ")
        if section := re.match(r"(\S+): expected dict, got (.*)", message):
            check_blank(section[1], section[2])
        return shorten(message)

    def suggest(self, key: str) -> str:
        known = [action.dest for action in self._actions if action.dest not in ("help", "print_shtab")]
        inner = [name for name in known if name.rsplit(".", 1)[-1] == key]
        close = inner or difflib.get_close_matches(key, known, n=3, cutoff=0.6)
        siblings = [name for name in known if "." in key and name.startswith(key.rsplit(".", 1)[0] + ".")]
        if close or siblings:
            return "did you mean " + ", ".join(close or siblings) + "?"
        return "the keys are " + ", ".join(name for name in known if "." not in name)
