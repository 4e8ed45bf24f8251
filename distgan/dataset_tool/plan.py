"""The plan of a dataset: what decides its bytes, and which image goes into which shard."""

import hashlib
import json
import math
from dataclasses import asdict
from typing import Any

import msgspec
import numpy as np

from distgan.data.schema import ConditionRow, Fields
from distgan.dataset_tool.convert import Options
from distgan.dataset_tool.sources.source import Source


class Encoded(msgspec.Struct, frozen=True):
    """What the manifest of a dataset of latents says of its samples, before they are written."""

    fields: Fields
    conditions: list[ConditionRow]
    """Those of the dataset that is encoded."""


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """What decides the bytes of a dataset; all parts of a `make` or `encode` follow the same one."""

    options: dict[str, Any]
    """Resolved."""
    source: dict[str, Any]
    """The manifest's `source`."""
    fingerprint: str
    sources: bool
    """Whether sources.txt is written."""
    classes: list[str] | None
    """None: without classes."""
    numbers: list[str]
    """Names of the conditions."""
    shards: int
    encoded: Encoded | None = None
    """Of a dataset of latents."""

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    def digest(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()


def plan_dataset(source: Source, options: Options, record_paths: bool) -> tuple[Plan, list[list[int]]]:
    """The plan for resolved options, and the image indices of each shard.

    With `record_paths`, the paths of the images of a folder or zip go to sources.txt.
    """
    order = shuffled(source, options.seed)
    shards = split_into_shards(source, order, options)
    listing = [source.names, source.labels.tolist() if source.labels is not None else None, source.classes]
    if source.numbers is not None:
        listing += [source.number_names, source.numbers.tolist()]
    plan = Plan(
        options=asdict(options),
        source={"name": source.name, "images": len(source), "sha256": sha256_json(listing)},
        fingerprint=sha256_json(source.fingerprint),
        sources=record_paths and source.has_paths,
        classes=None if source.labels is None else source.classes,
        numbers=source.number_names,
        shards=len(shards),
    )
    return plan, shards


def shuffled(source: Source, seed: int) -> list[int]:
    """The image indices ordered by the hash of (seed, name): a folder sorted by class gives mixed shards.

    The images of a group stay together, and the groups are ordered by the hash of (seed, group).
    """
    keys = [hashlib.sha256(f"{seed}|{name}".encode(errors="surrogateescape")).digest() for name in source.names]
    if source.groups is not None:
        groups = {group: hashlib.sha256(f"{seed}|group {group}".encode()).digest() for group in set(source.groups)}
        keys = [groups[group] + key for group, key in zip(source.groups, keys, strict=True)]
    return sorted(range(len(source)), key=keys.__getitem__)


def split_into_shards(source: Source, order: list[int], options: Options) -> list[list[int]]:
    """The image indices of each shard: about `shard_mb`, and equal in number within one sample."""
    pixels = math.prod(options.shape) * np.dtype(options.dtype).itemsize
    headers = 1024 * (1 + (source.labels is not None) + (source.numbers is not None))
    sample = {"npy": 1.0, "png": 0.6, "jpg": 0.25}[options.format] * pixels + headers
    shards = max(1, min(len(order), round(len(order) * sample / (options.shard_mb * 1e6))))
    return [part.tolist() for part in np.array_split(np.array(order), shards)]


def sha256_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
