"""Notes of `shards make` and `shards index` on standard error: what they left out or decided, and what to type."""

import sys

from distgan.errors import shorten_values


def note(line: str) -> None:
    """Print a line that does not stop the command; long names in it are shortened."""
    print(f"note: {shorten_values(' '.join(line.splitlines()))}", file=sys.stderr)
