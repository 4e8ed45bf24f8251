"""The dataset that a command reads: the one that is named, or the one of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distgan.errors import UsageError

if TYPE_CHECKING:
    from distgan.data.shardset import ShardSet


def data_config(run: Path | None) -> dict[str, Any]:
    """The keys `data` of a run's configuration; {} without a run, or if they cannot be read."""
    import yaml

    if run is None:
        return {}
    try:
        data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return {}
    return data if isinstance(data, dict) else {}


def trained_on(run: Path | None) -> str:
    """The dataset in a run's configuration. Raises UsageError."""
    if run is None:
        raise UsageError("data: give the dataset of the real images, as --data DATASET")
    shards = data_config(run).get("shards")
    if not isinstance(shards, str):
        raise UsageError(f"data: {run} has no config.yaml that names a dataset; give --data DATASET")
    return shards


def open_dataset(address: str, keys: Mapping[str, Any] | None = None) -> "ShardSet":
    """`keys` are those of `data` in a run's configuration: shards of a server go to the cache of the run.

    Raises UsageError.
    """
    from distgan.data.remote.cache import open_storage
    from distgan.data.shardset import open_shardset

    cache = {key: keys[key] for key in ("cache_dir", "cache_gb") if keys and keys.get(key) is not None}
    dataset = open_shardset(open_storage(address, **cache), address)
    dataset.check_index()
    if missing := dataset.missing():
        raise UsageError(f"data: {address} lacks {missing[0]}; restore the missing files, or re-create the dataset")
    return dataset
