"""What the page of a run shows, read from the run folder: curves, metric cards, events, keys."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distgan.config.keys import Config, flatten, to_dict
from distgan.errors import UsageError
from distgan.evaluation.card import better
from distgan.page.bins import read_bins
from distgan.page.grids import read_grids
from distgan.page.scores import describe_card, scores_of
from distgan.runs.cards import Cards, all_cards
from distgan.runs.length import run_length
from distgan.runs.metrics_file import (
    Curve,
    MetricsFile,
    Record,
    is_number,
    scalar_curves,
)

MAX_POINTS = 2_000
"""Of a curve, about."""


def read_run(folder: Path) -> dict[str, Any]:
    """Everything the page shows of a run, as JSON values.

    It is in config.yaml, environment.json, metrics.jsonl, cards/ and samples/, each of which may be missing. Raises
    UsageError for a damaged one, and for a folder that holds no run.
    """
    records = MetricsFile(folder / "metrics.jsonl").records()
    config = read_mapping(folder / "config.yaml", yaml.safe_load)
    if not records and not config:
        raise UsageError(f"{folder}: neither metrics.jsonl nor config.yaml is there; give a run folder")
    values = flatten(config)
    defaults = flatten(to_dict(Config()))
    return {
        "path": str(folder),
        "epochs": config.get("epochs"),
        "total_images": run_length(config, count_samples(config)),
        **summary(records),
        **curves_of(records, all_cards(folder, records)),
        "events": events_of(records),
        "bins": to_json(read_bins(folder, records)),
        "grids": read_grids(folder / "samples"),
        "config": {
            "values": to_json(values),
            "changed": [key for key, value in values.items() if value != defaults.get(key)],
        },
        "environment": to_json(flatten(read_mapping(folder / "environment.json", json.loads))),
    }


def summary(records: Sequence[Record]) -> dict[str, Any]:
    """How far the run is, and the time of its last line in seconds since 1970."""
    return {
        "images": max((record["images"] for record in records), default=0),
        "epoch": max((record["epoch"] for record in records if is_number(record.get("epoch"))), default=0),
        "updated": max((record["time"] for record in records if is_number(record.get("time"))), default=None),
    }


def count_samples(config: Mapping[str, Any]) -> int | None:
    """The number of images of a run's dataset, by its manifest; None of one that is not on this machine."""
    shards = (config.get("data") or {}).get("shards")
    try:
        samples = json.loads(Path(str(shards), "manifest.json").read_text())["samples"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return samples if isinstance(samples, int) else None


def curves_of(records: Sequence[Record], cards: Cards) -> dict[str, Any]:
    """The curves of scalars and of the cards' metrics, the best and the last of these, and the last card."""
    measured = scores_of(cards)
    scores = {name: each.curve for name, each in measured.items()}
    scalars = {name: curve for name, curve in sorted(scalar_curves(records).items()) if any(curve[1])}
    all_curves = scalars | scores
    curves = {name: thin(curve) for name, curve in all_curves.items()}
    rates = scalars.get("images_per_second", ([], []))
    epochs = {record["images"]: record["epoch"] for record in records if is_number(record.get("epoch"))}
    details = {key: value for key, value in cards[-1][1].items() if key not in ("metrics", "bins")} if cards else {}
    return {
        "series": {name: to_json(curve) for name, curve in curves.items()},
        "thinned": any(len(curves[name][0]) < len(curve[0]) for name, curve in all_curves.items()),
        "clock": to_json(thin(clock(rates))),
        "median_rate": to_json(statistics.median(rates[1])) if rates[1] else None,
        "scores": list(scores),
        "best": {name: point(curve, i, epochs) for name, curve in scores.items() for i in best(name, curve)},
        "last": {name: point(curve, -1, epochs) for name, curve in scores.items()},
        "measured": {
            name: {"key": each.key, "card": describe_card(each.card), "left_out": each.left_out}
            for name, each in measured.items()
        },
        "card": to_json(flatten(details)),
    }


def read_mapping(path: Path, parse: Callable[[str], Any]) -> dict[str, Any]:
    """A file that holds one mapping; {} if there is none. Raises UsageError."""
    try:
        values = parse(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        raise UsageError(f"{path} is corrupt: not a mapping; resume the run to write it again, or remove it")
    return values


def clock(rates: Curve) -> Curve:
    """Minutes of training by images seen, from (0, 0); rates are images per second since the line before.

    So the pause before a resume does not count.
    """
    images = [0]
    minutes = [0.0]
    for images_seen, rate in zip(*rates, strict=True):
        minutes.append(minutes[-1] + ((images_seen - images[-1]) / rate / 60 if rate > 0 else 0))
        images.append(images_seen)
    return images, minutes


def thin(curve: Curve, limit: int = MAX_POINTS) -> Curve:
    """A curve of at most about `limit` points: the smallest and the largest of each interval, the first and the last.

    So a spike of one line stays visible.
    """
    images, values = curve
    count = len(images)
    intervals = limit // 2
    if count <= limit:
        return curve
    kept = {0, count - 1}
    for i in range(intervals):
        inside = range(i * count // intervals, (i + 1) * count // intervals)
        finite = [j for j in inside if math.isfinite(values[j])]
        kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)} if finite else {inside[0]}
    return [images[i] for i in sorted(kept)], [values[i] for i in sorted(kept)]


def to_json(value: Any) -> Any:
    """Values for JSON: six significant digits, null for NaN and Inf, text for what JSON does not have (dates)."""
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value if isinstance(value, (int, str)) or value is None else str(value)


def best(name: str, curve: Curve) -> list[int]:
    """The index of the first best value of a metric; none if better is unknown, or no value finite."""
    direction = better(name)
    values = curve[1]
    finite = [i for i, value in enumerate(values) if math.isfinite(value)]
    if direction is None or not finite:
        return []
    return [(min if direction == "lower" else max)(finite, key=values.__getitem__)]


def point(curve: Curve, index: int, epochs: dict[int, int]) -> dict[str, Any]:
    """A point of a curve, with its epoch if that is known."""
    images = curve[0][index]
    return {"images": images, "value": to_json(curve[1][index]), "epoch": epochs.get(images)}


def events_of(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Warnings, and the keys that a resumed run changed, with where they happened."""
    events = []
    for record in records:
        where = {"images": record["images"], "epoch": record.get("epoch")}
        if "warning" in record:
            text = record["warning"] if isinstance(record["warning"], str) else json.dumps(record["warning"])
            events.append({**where, "kind": "warning", "text": text})
        if isinstance(record.get("override"), dict):
            changes = (f"{key} {old} → {new}" for key, (old, new) in record["override"].items())
            events.append({**where, "kind": "override", "text": "; ".join(changes)})
    return events
