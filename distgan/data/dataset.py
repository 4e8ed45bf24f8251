"""A dataset by its address: a folder, or the address of a server."""

from collections.abc import Mapping
from typing import Any

from distgan.data.remote.cache import open_storage
from distgan.data.shardset import ShardSet, open_shardset
from distgan.errors import UsageError


def open_dataset(address: str, keys: Mapping[str, Any] | None = None) -> ShardSet:
    """`keys` are those of `data` in a run's configuration: shards of a server go to the cache of the run.

    Raises UsageError.
    """
    cache = {key: keys[key] for key in ("cache_dir", "cache_gb") if keys and keys.get(key) is not None}
    dataset = open_shardset(open_storage(address, **cache), address)
    dataset.check_index()
    if missing := dataset.missing():
        raise UsageError(f"data: {address} lacks {missing[0]}; restore the missing files, or re-create the dataset")
    return dataset
