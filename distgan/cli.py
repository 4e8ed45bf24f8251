"""What every command shares: a parser with one-line errors, types for ranges of numbers, and the exit codes."""

import contextlib
import difflib
import importlib
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonargparse
import jsonargparse.typing as types
import yaml

from distgan import DistganError, UsageError, format_os_error

# Docstrings under fields are their help.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

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


INTERRUPTED = "distgan: interrupted"
ECHO = 200
"""Characters of what was given that a message repeats, at most."""
MAX_DIGITS = 300  # of a number, so that a float can hold it
MAX_DEPTH, MAX_VALUES = 20, 100_000  # of lists and sections
NO_BLANK = re.compile(r"[{\s]*([A-Za-z_]\w*):([^\s:/\\].*)", re.DOTALL)
"""A key and a value without a blank between them: to YAML one piece of text."""


def run(command: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command on `argv` (default: the command line's). Returns the exit code.

    0: done. 2: bad input, named in one line. 1: the run failed, named likewise. 130: Ctrl-C. A bug keeps its traceback.
    With several processes all of them fail; only rank 0 prints.
    """
    try:
        command(list(sys.argv[1:] if argv is None else argv))
    except DistganError as error:
        message = f"distgan: {shorten_values(str(error))}"
        report_to_launcher(message)
        # All processes of a node read the same arguments and files: what is wrong there is printed once per node.
        printer = not isinstance(error, UsageError) or os.environ.get("LOCAL_RANK", "0") == "0"
        if os.environ.get("RANK", "0") == "0" or (printer and not error.on_all_ranks):
            print(message, file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr, flush=True)
        return 130
    except UnicodeDecodeError as error:
        print(f"distgan: a text file is not UTF-8: {error}", file=sys.stderr, flush=True)
        return 2
    except BrokenPipeError:  # `distgan shards order ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"distgan: {shorten_values(format_os_error(error))}", file=sys.stderr, flush=True)
        return 1
    except MemoryError:
        print("distgan: out of memory", file=sys.stderr, flush=True)
        return 1
    return 0


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


def shorten(text: str, limit: int = ECHO) -> str:
    """The start and the end of `text`, together at most `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[5 - limit // 2 :]}"


def shorten_values(message: str) -> str:
    """`message` with its long words and quotations shortened, and then its long lines."""
    message = re.sub(rf"\S{{{ECHO + 1},}}|'[^'\n]{{{ECHO},}}'", lambda found: shorten(found[0]), message)
    return "\n".join(shorten(line, 3 * ECHO) for line in message.split("\n"))


def report_to_launcher(message: str) -> None:
    """Leave the message where the launcher of several processes looks for it: it prints it last, as the root cause."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        error = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": error}))


def import_user_modules(modules: Sequence[str]) -> None:
    """Import the user's modules, which add entries to LOSSES, MODELS and the like; also from the current folder.

    Only ever what the user names in a configuration or on the command line, never what a checkpoint says.
    Raises UsageError.
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UsageError(f"import: {module} cannot be imported: {error}") from error


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
