"""What every command shares: a parser with one-line errors, and the exit codes."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jsonargparse

from distgan import RunError, UsageError, format_os_error

# Docstrings under fields are their help.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def run(command: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command on `argv` (default: the command line's). Returns the exit code.

    0: done. 2: bad input, named in one line. 1: the run failed, named likewise. A bug keeps its traceback.
    With several devices every one of them fails; the first speaks.
    """
    try:
        command(list(sys.argv[1:] if argv is None else argv))
    except (UsageError, RunError) as error:
        # What all devices of a node find in the same arguments and files is said once for the node.
        alone = os.environ.get("LOCAL_RANK", "0") == "0" if isinstance(error, UsageError) else True
        if os.environ.get("RANK", "0") == "0" or (alone and not error.on_all_ranks):
            print(f"distgan: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, UsageError) else 1
    except UnicodeDecodeError as error:
        print(f"distgan: a file that is read as text is not UTF-8: {error}", file=sys.stderr, flush=True)
        return 2
    except BrokenPipeError:  # `distgan shards order ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"distgan: {format_os_error(error)}", file=sys.stderr, flush=True)
        return 1
    return 0


class Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser whose errors are one line that names the key and what would do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["allow_abbrev"] = False  # a cut-off key is a typing error, not a key
        super().__init__(*args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise UsageError(self.one_line(message)) from None

    def one_line(self, message: str) -> str:
        message = " ".join(message.split())
        if message.startswith("Unexpected config:"):
            found = message.removeprefix("Unexpected config:").strip()
            return f"--config: {found or 'an empty file'} gives no key a value"
        unknown = re.search(r"(?i)^Unrecognized arguments: --(\S+)|^Option '(.+)' is not accepted", message)
        in_group = re.search(r"^Group '(.+)' does not accept option '(.+)'", message)
        found = unknown or in_group
        if found:
            key = ".".join(name for name in found.groups() if name).split("=")[0]
            return f"{key}: no such key; {self.nearest(key)}"
        message = re.sub(r"^Parser key \"([^\"]+)\": ", r"\1: ", message)
        message = re.sub(r"<class '(\w+)'>|typing\.Literal", lambda found: found[1] or "one of ", message)
        return message.replace("Expected a ", "expected ").replace(". Got value: ", ", got ")

    def nearest(self, key: str) -> str:
        known = [action.dest for action in self._actions if action.dest not in ("help", "print_shtab")]
        close = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
        parent = [name for name in known if "." in key and name.startswith(key.rsplit(".", 1)[0] + ".")]
        if close or parent:
            return "did you mean " + ", ".join(close or parent) + "?"
        return "the keys are " + ", ".join(name for name in known if "." not in name)
