"""The cards of a run: those in its metrics.jsonl, and those that `distgan evaluate` wrote to RUN/cards/."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distgan.errors import UsageError
from distgan.runs.metrics_file import Record, cards_of

Cards = list[tuple[int, dict[str, Any]]]
"""(images seen, metric card), by images seen."""


def read_cards(run: Path) -> Cards:
    """The cards in RUN/cards/ that say how many images the run had seen; [] without the folder.

    Cards of images that no checkpoint made do not say so, and are left out. Raises UsageError for a damaged file.
    """
    cards = []
    for path in sorted((run / "cards").glob("*.json")):
        card = read_card(path)
        images = (card.get("generator") or {}).get("images")
        if isinstance(images, int) and isinstance(card.get("metrics"), dict):
            cards.append((images, card))
    return sorted(cards, key=lambda each: each[0])


def read_card(path: Path) -> dict[str, Any]:
    """A card as JSON. Raises UsageError."""
    try:
        card = json.loads(path.read_text())
    except (OSError, ValueError):
        card = None
    if not isinstance(card, dict):
        raise UsageError(f"{path} is not a metric card; remove it, and evaluate again")
    return card


def all_cards(run: Path, records: Sequence[Record]) -> Cards:
    """The cards of the lines of metrics.jsonl, and those in RUN/cards/. Raises UsageError."""
    return sorted(cards_of(records) + read_cards(run), key=lambda each: each[0])
