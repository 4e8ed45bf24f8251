"""The card of a search for nearest training images: each generated image with its neighbours, and the summary."""

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from distgan import __version__
from distgan.data.shardset import ShardSet
from distgan.environment import git_commit
from distgan.evaluation.card import format_generator
from distgan.evaluation.describe import describe_extractor
from distgan.evaluation.memorization import Memorization
from distgan.evaluation.nearest import NearestSearch


@dataclass(frozen=True)
class NearestCard:
    """What `distgan nearest` prints and writes."""

    summary: dict[str, float]
    """The fields of `Copying`."""
    counts: dict[str, int]
    """Numbers of images: generated, training, held_out."""
    held_out: str
    """Address of the held-out images, or that they are training images."""
    held_out_manifest: str | None
    """sha256 of their manifest."""
    extractor: dict[str, Any]
    """name, sha256, resize, accuracy on held-out images and the hash of the dataset it was trained on"""
    data: dict[str, Any]
    """The training images: path, sha256 of the manifest, and flip: whether mirrored images are searched too."""
    generator: dict[str, Any]
    """As on the card of an evaluation; of images of a dataset, its path and manifest"""
    seed: int
    """Of the latents, and of the choice of held-out images"""
    code: dict[str, Any]
    """version, commit, torch, device, processes"""
    time: str
    """UTC, ISO 8601"""
    seconds: float
    images: list[dict[str, Any]]
    """Of each generated image, closest first: image (its number), distance, and nearest: key, sample id and distance
    of its nearest training images, and mirrored where it is the mirrored image"""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    def line(self) -> str:
        """The summary in one line of text."""
        found = self.summary
        counts = self.counts
        parts = [
            format_generator(self.generator),
            f"{counts['generated']:,} generated, {counts['training']:,} training images"
            + (", also mirrored" if self.data["flip"] else ""),
            f"{counts['held_out']:,} held out ({self.held_out})",
            f"extractor {self.extractor['name']} {self.extractor['sha256'][:8]}",
            f"resize {self.extractor['resize']}",
            f"data {self.data['manifest'][:8]}",
            f"seed {self.seed}",
            f"distgan {self.code['version']} {(self.code['commit'] or 'unknown')[:8]}",
            self.time,
        ]
        values = (
            f"copied {found['copied']:.1%} ({found['copied_expected']:.1%} expected), "
            f"closer {found['closer']:.3f} (0.5 expected), z {found['copying_z']:.1f}; "
            f"median distance {found['median_generated']:.4g}, held out {found['median_held_out']:.4g}"
        )
        return f"{values} | {'; '.join(part for part in parts if part)}"


def make_card(
    found: Memorization, search: NearestSearch, generator: dict[str, Any], *, address: str, seed: int, start: float
) -> NearestCard:
    """The card of a search that began at `start`, of time.perf_counter; `address` is that of the training images."""
    processes = search.processes
    code = {"version": __version__, "commit": git_commit(), "torch": torch.__version__}
    return NearestCard(
        summary=found.copying._asdict(),
        counts={
            "generated": len(found.numbers),
            "training": search.images,
            "held_out": found.held_out["images"],
        },
        held_out=found.held_out["held_out"],
        held_out_manifest=found.held_out.get("manifest"),
        extractor=describe_extractor(search.extractor),
        data={"path": address, "manifest": search.dataset.digest, "flip": search.flip},
        generator=generator,
        seed=seed,
        code=code | {"device": processes.device.type, "processes": processes.world_size},
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(time.perf_counter() - start, 3),
        images=list_images(found, search.dataset),
    )


def list_images(found: Memorization, dataset: ShardSet) -> list[dict[str, Any]]:
    """`NearestCard.images`."""
    keys = keys_of(dataset, np.unique(found.nearest.ids))
    rows = []
    for number, *columns in zip(found.numbers.tolist(), *(each.tolist() for each in found.nearest), strict=True):
        nearest = [
            {"key": keys[id], "id": id, "distance": distance} | ({"mirrored": True} if mirrored else {})
            for distance, id, mirrored in zip(*columns, strict=True)
        ]
        rows.append({"image": number, "distance": columns[0][0], "nearest": nearest})
    return rows


def keys_of(dataset: ShardSet, ids: np.ndarray) -> dict[int, str]:
    """The keys of samples in their shards. Raises CorruptDataError."""
    ends = np.cumsum(dataset.counts)
    shards = np.searchsorted(ends, ids, side="right")
    keys: dict[int, str] = {}
    for shard in np.unique(shards).tolist():
        key_at = dataset.keys(shard)
        here = ids[shards == shard].tolist()
        keys |= {id: key_at(int(dataset.columns["offset"][id])) for id in here}
    return keys
