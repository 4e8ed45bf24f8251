"""Runs that differ in nothing but the seed form a group; and the keys in which runs differ."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from distgan.config.keys import Config, flatten, to_dict

Run = dict[str, Any]
"""As `distgan.page.data.read_run` returns it, with its `name`."""
COUNTED = ("epochs", "images", "data.shards", "init_from")
"""Keys that a resumed run may change, but that change what two runs come to."""


def free_keys(section: Any = Config, prefix: str = "") -> list[str]:
    """The keys of speed, place and reporting, which do not change what a run computes; of a section, its name."""
    names = []
    for key in dataclasses.fields(section):
        if "free" in key.metadata:
            names.append(prefix + key.name)
        elif dataclasses.is_dataclass(key.default_factory):
            names += free_keys(key.default_factory, f"{prefix}{key.name}.")
    return ["import" if name == "imports" else name for name in names]


FREE = tuple(key for key in free_keys() if key not in COUNTED)


def compared_keys(run: Run) -> dict[str, Any]:
    """The keys of a run that tell it from others, without the seed; defaults for keys newer than the run."""
    values = flatten(to_dict(Config(epochs=1))) | {"epochs": None} | run["config"]["values"]
    sections = tuple(f"{key}." for key in FREE)
    return {
        key: value
        for key, value in values.items()
        if key != "seed" and key not in FREE and not key.startswith(sections) and value != {}
    }


def differing_keys(runs: Sequence[Run]) -> list[str]:
    """The keys in which the values of `runs` differ, in the order of the configuration."""
    compared = [compared_keys(run) for run in runs]
    keys = dict.fromkeys(key for values in compared for key in values)
    return [key for key in keys if len({json.dumps(values.get(key)) for values in compared}) > 1]


def group_runs(runs: Sequence[Run]) -> list[list[int]]:
    """The numbers of the runs of each group, in the order of the first of each; by the seed within a group."""
    groups: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        # without its configuration nothing is known of a run
        key = json.dumps(compared_keys(run), sort_keys=True) if run["config"]["values"] else f"run {i}"
        groups.setdefault(key, []).append(i)
    return [sorted(group, key=lambda i: str(seed_of(runs[i])).zfill(20)) for group in groups.values()]


def seed_of(run: Run) -> int | str:
    """The seed of a run; "unknown" without one."""
    seed = run["config"]["values"].get("seed")
    return seed if isinstance(seed, int) else "unknown"


def group_name(names: Sequence[str]) -> str:
    """What the names of the runs of a group begin with, or the first and the last of them."""
    shared = ""
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        shared += letters[0]
    if len(names) == 1:
        return names[0]
    if shared.strip("/-_. "):
        return f"{shared}*"
    return ", ".join(names) if len(names) < 4 else f"{names[0]} … {names[-1]}"
