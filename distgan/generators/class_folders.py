"""Folders of classes: names that every file system takes, for classes of any name."""

import re
from collections.abc import Sequence

LONGEST = 100
"""Characters of a folder's name."""
RESERVED = ("", "__MACOSX")


def folder_names(classes: Sequence[str]) -> list[str]:
    """A folder's name for each class: its own, or a safe one where that is none, all different.

    Characters of paths (/, \\, and those that Windows refuses), control characters, and a dot in front or behind, which
    hides a folder or is lost, become _. Names that are then the same, in whatever case, get the class's number.
    """
    names: list[str] = []
    taken: set[str] = set()
    for number, name in enumerate(classes):
        safe = re.sub(r'[\x00-\x1f\x7f/\\:*?"<>|]|^[. ]|[. ]$', "_", name[:LONGEST])
        safe = f"class{safe}" if safe in RESERVED else safe
        while safe.casefold() in taken:
            safe = f"{safe}-{number}"
        taken.add(safe.casefold())
        names.append(safe)
    return names
