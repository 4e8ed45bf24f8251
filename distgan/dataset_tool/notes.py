"""Notes of `shards make` and `shards index` on standard error: what they left out or decided, and what to type."""

import sys

from distgan.errors import shorten_values


def note(line: str) -> None:
    """Print a line that does not stop the command; long names in it are shortened."""
    print(f"note: {shorten_values(line)}", file=sys.stderr)


def warn(line: str) -> None:
    """Print a line on what may be wrong."""
    print(f"warning: {shorten_values(line)}", file=sys.stderr)


def escape_name(name: str) -> str:
    """A file name as one line of UTF-8: backslashes, line breaks and bytes that are not UTF-8 are escaped."""
    name = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return name.encode(errors="backslashreplace").decode()
