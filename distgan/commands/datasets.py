"""The dataset that a command reads: the one that is named, or the one of a run."""

from pathlib import Path
from typing import Any

from distgan.errors import UsageError


def run_at(path: str | None) -> Path | None:
    """The run folder at a path; None for a file, for another folder of weights, and for an address on the hub."""
    folder = Path(path) if path is not None else None
    return folder if folder is not None and (folder / "checkpoints").is_dir() else None


def run_config(run: Path | None) -> dict[str, Any]:
    """A run's configuration; {} without a run, or if it cannot be read."""
    import yaml

    if run is None:
        return {}
    try:
        config = yaml.safe_load((run / "config.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return config if isinstance(config, dict) else {}


def data_config(run: Path | None) -> dict[str, Any]:
    """The keys `data` of a run's configuration; {} without a run, or if they cannot be read."""
    data = run_config(run).get("data")
    return data if isinstance(data, dict) else {}


def trained_on(run: Path | None) -> str:
    """The dataset in a run's configuration. Raises UsageError."""
    if run is None:
        raise UsageError("data: give the dataset of the real images, as --data DATASET")
    shards = data_config(run).get("shards")
    if not isinstance(shards, str):
        raise UsageError(f"data: {run} has no config.yaml that names a dataset; give --data DATASET")
    return shards
