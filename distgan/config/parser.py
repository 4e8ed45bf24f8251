"""The parser of commands and configurations: errors in one line that names the key and how to fix it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonargparse

from distgan.config.messages import no_section, reword
from distgan.config.refusals import check_text, check_values
from distgan.errors import UsageError, shorten

# Docstrings under fields are their help.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

NOT_KEYS = ("help", "print_shtab", "config", "print_config")
"""Options of jsonargparse's own, not to suggest for an unknown key."""


def split_options(words: Sequence[str]) -> list[tuple[str, str]]:
    """The words of a command line, each with the option that it belongs to, without dashes.

    `--a=1` is ("a", "1"); `--a 1` is ("a", "") and ("a", "1"); words before the first option belong to "".
    """
    options = []
    option = ""
    for word in words:
        if word.startswith("--"):
            name, _, word = word.partition("=")
            option = name.lstrip("-")
        options.append((option, word))
    return options


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose errors are one line that names the key and how to fix it."""

    given: frozenset[str] = frozenset()
    """The options on the command line, by name."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["allow_abbrev"] = False  # an abbreviated key is a typing error
        super().__init__(*args, **kwargs)

    @property
    def keys(self) -> list[str]:
        """The keys that can be given as options, those of sections with dots."""
        return [action.dest for action in self._actions if action.option_strings and action.dest not in NOT_KEYS]

    def add_import(self, help: str) -> None:
        """Add the key `import`, of modules of the user. A field cannot be called so: `take_import` takes it out."""
        self.add_argument("--import", type=list[str] | str, default=[], help=help)

    def parse_args(self, args: Any = None, *more: Any, **options: Any) -> Any:
        """As argparse; refuses what no key can take, before and after. Raises UsageError."""
        words = list(sys.argv[1:] if args is None else args)
        split = split_options(words)
        self.given = frozenset(option for option, _ in split)
        for option, text in split:
            check_text(option, text)
            if option == "config" and text and "--config" in self._option_string_actions:
                check_file(text)
        try:
            namespace = super().parse_args(words, *more, **options)
        except RecursionError:
            raise UsageError("the configuration is nested too deep") from None
        except UsageError:
            raise
        except (ValueError, AttributeError, LookupError) as error:  # of PyYAML, such as for `!!timestamp x`
            raise UsageError(f"the configuration has a value that YAML cannot read: {shorten(str(error))}") from None
        check_values("", namespace.as_dict())
        self.check_sections(namespace)
        return namespace

    def check_sections(self, namespace: jsonargparse.Namespace) -> None:
        """Raises UsageError for a value in the place of a section, which jsonargparse lets pass in a file."""
        for section in dict.fromkeys(key.rsplit(".", 1)[0] for key in self.keys if "." in key):
            value = namespace.get(section)
            if not isinstance(value, jsonargparse.Namespace):
                raise UsageError(no_section(section, value, self.keys))

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UsageError(reword(message, self.keys)) from None


def take_import(namespace: jsonargparse.Namespace) -> list[str]:
    """Take the modules of the key `import` out of what was parsed: one name is a list of one."""
    modules = namespace.pop("import")
    return [modules] if isinstance(modules, str) else modules


def check_file(path: str) -> None:
    """Raises UsageError for a --config that is no file, or holds what no key can take."""
    if not is_file(path):
        raise UsageError(f"--config: no such file: {path}")
    check_text("", Path(path).read_text())


def is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long, or with a NUL byte
        return False
