"""The page of a run, report.html: its folder as one file of HTML that asks no server for anything."""

import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from distgan import __version__
from distgan.errors import UsageError
from distgan.evaluation.card import better
from distgan.files import atomic_write
from distgan.page.data import MAX_POINTS, read_run
from distgan.page.groups import Run
from distgan.page.table import build_table

LABELS = {"d_real": "D(x)", "d_fake": "D(G(z))"}
"""What a chart calls a scalar, if not by its own name."""
TITLES = {
    "loss": "Losses",
    "real, fake": "D(x) and D(G(z))",
    "lr": "Learning rates",
    "images_per_second": "Images per second",
    "memory_gb": "Peak memory of a process, GB",
    "save_seconds": "Seconds waited for checkpoints",
    "data_wait_seconds": "Seconds waited for images",
    "evaluate_seconds": "Seconds of an evaluation",
    "nearest_seconds": "Seconds of a search for copies",
    "skipped": "Corrupt images skipped",
}
"""Group of scalars (`group_of`) -> title of its chart, if not the group's own name."""
NOT_TRAINING = (
    "images_per_second",
    "memory_gb",
    "lr",
    "save_seconds",
    "data_wait_seconds",
    "evaluate_seconds",
    "nearest_seconds",
    "skipped",
)
"""The groups of the section "Speed, memory and schedules"."""
SCRIPTS = ("format", "chart", "data", "samples", "tables", "bins", "overview", "page")
"""static/*.js, in the order in which they run."""


def write_page(folder: Path) -> Path:
    """Write RUN/report.html atomically, and return its path. Raises UsageError and OSError."""
    path = folder / "report.html"
    atomic_write(path, build_page([folder]).encode(errors="replace"))  # a name that is not UTF-8
    return path


def build_page(folders: Sequence[Path]) -> str:
    """The page of one run, or of several side by side: HTML with its style, scripts, data and pictures inside.

    Raises UsageError for a folder that holds no run, for a damaged file, and for a folder that is given twice.
    """
    return page_of(read_runs(folders))


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """What the page shows of each run, with its name. Raises UsageError as `build_page` does."""
    names = short_names(folders)
    return [read_run(folder) | {"name": name} for folder, name in zip(folders, names, strict=True)]


def page_of(runs: Sequence[Run]) -> str:
    """The page of runs that were read."""
    scores = list(dict.fromkeys(name for run in runs for name in run["scores"]))
    scalars = sorted({name for run in runs for name in run["series"]} - set(scores))
    data = {
        "version": __version__,
        "runs": runs,
        "labels": LABELS,
        "better": {name: better(name) for name in scores},
        "sections": sections(scalars, scores),
        "table": build_table(runs).to_json() if len(runs) > 1 else None,
        "thinned": MAX_POINTS if any(run["thinned"] for run in runs) else 0,
    }
    page = resources.files("distgan.page") / "static"
    parts = {
        "title": html.escape(f"{', '.join(run['name'] for run in runs)} - distgan"),
        "style": (page / "style.css").read_text(),
        # "<" could end the script element
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        "script": "\n".join((page / f"{name}.js").read_text() for name in SCRIPTS),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], (page / "page.html").read_text())


def short_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell it from the others. Raises UsageError if one is given twice."""
    paths = [folder.resolve().parts for folder in folders]
    names = []
    for i, path in enumerate(paths):
        if path in paths[:i]:
            raise UsageError(f"runs: {folders[i]} is given twice; give each folder once")
        count = 1
        while sum(path[-count:] == other[-count:] for other in paths) > 1 and count < len(path):
            count += 1
        names.append("/".join(path[-count:]))
    return names


def sections(scalars: Sequence[str], scores: Sequence[str]) -> list[dict[str, Any]]:
    """The charts by section: metrics of cards, one each; other scalars in groups that share a chart."""
    groups: dict[str, list[str]] = {}
    for name in scalars:
        groups.setdefault(group_of(name), []).append(name)
    training = [group for group in ("loss", "real, fake") if group in groups]
    training += [group for group in groups if group not in (*training, *NOT_TRAINING)]
    other = [group for group in NOT_TRAINING if group in groups]
    title = {group: TITLES.get(group, group if len(names) > 1 else names[0]) for group, names in groups.items()}
    all_sections = [
        ("metrics", "Metrics", [chart(name, [name], points=True) for name in scores]),
        ("training", "Training", [chart(title[group], groups[group]) for group in training]),
        ("speed", "Speed, memory and schedules", [chart(title[group], groups[group]) for group in other]),
    ]
    return [{"id": key, "title": title, "charts": charts} for key, title, charts in all_sections if charts]


def chart(title: str, names: Sequence[str], points: bool = False) -> dict[str, Any]:
    """A chart as page/chart.js takes it; `range` is shown in full if all values lie in it."""
    probabilities = set(names) <= {"d_real", "d_fake"}
    # D before G, real before fake: sorted by name except that fakes follow
    ordered = sorted(names, key=lambda name: ("fake" in name, name))
    return {"title": title, "names": ordered, "range": [0, 1] if probabilities else None, "points": points}


def group_of(name: str) -> str:
    """The chart of a scalar, by what is shared in the names of its curves.

    d_loss and g_loss share "loss", d_real and d_fake "real, fake", penalty/r1 and penalty/r2 "penalty".
    """
    if "/" in name:
        return name.rsplit("/", 1)[0]
    name = re.sub(r"^[dgDG]_", "", name)
    return re.sub(r"(^|_)(real|fake)($|_)", r"\1real, fake\3", name)
