"""The classes, or bins of a condition, of the newest metric card of a run that tells them: the worst first."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distgan.runs.cards import read_card
from distgan.runs.metrics_file import Record, cards_of, is_number


def read_bins(folder: Path, records: Sequence[Record]) -> dict[str, Any] | None:
    """The bins of the newest card among the records of a run and in RUN/cards; None if none has bins.

    Raises UsageError for a damaged card.
    """
    cards: list[dict[str, Any]] = [{"at": images} | card for images, card in cards_of(records)]
    cards += [read_card(path) for path in sorted((folder / "cards").glob("*.json"))]
    binned = [card for card in cards if card.get("bins")]
    if not binned:
        return None
    card = max(binned, key=lambda card: str(card.get("time", "")))
    rows = [describe_bin(row) for row in card["bins"]]
    return {
        "by": card.get("by"),
        "classes_from": card.get("classes_from"),
        "images": card.get("at", card.get("generator", {}).get("images")),
        "distance": next((row["distance"] for row in rows if row["distance"]), None),
        "rows": sorted(rows, key=badness),
    }


def describe_bin(row: Mapping[str, Any]) -> dict[str, Any]:
    """A bin as the page shows it. `ratio` is that of its distance to the real-vs-real one; None where unknown."""
    metrics = row["metrics"]
    low, high = row["low"], row["high"]
    distance = next((name for name in metrics if name == "fid" or name.startswith("fd_")), None)
    value = metrics.get(distance)
    floor = row["floor"].get(distance)
    known = is_number(value) and is_number(floor) and math.isfinite(value) and math.isfinite(floor) and floor > 0
    return {
        "name": row.get("class", f"{low:.5g}" if low == high else f"{low:.5g} to {high:.5g}"),
        "generated": row["counts"]["generated"],
        "reference": row["counts"]["reference"],
        "distance": distance,
        "value": value,
        "floor": floor,
        "ratio": value / floor if known else None,
        "precision": metrics.get("precision"),
        "recall": metrics.get("recall"),
        "too_few": row.get("too_few"),
    }


def badness(row: Mapping[str, Any]) -> tuple[int, float]:
    """Sorts the worst first: what G hardly makes, then by ratio, or else by recall, then what has no metric to tell."""
    if row["too_few"] is not None:
        return (0, row["generated"]) if row["reference"] >= row["too_few"] else (3, 0.0)
    if row["ratio"] is not None:
        return 1, -row["ratio"]
    return (2, row["recall"]) if is_number(row["recall"]) else (3, 0.0)
