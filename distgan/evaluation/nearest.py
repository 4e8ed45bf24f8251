"""The nearest training images of given images, in the feature space of an extractor: exact, over all of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor

from distgan.data.shardset import ShardSet
from distgan.distributed.processes import Distributed
from distgan.evaluation.chunks import run_chunks
from distgan.evaluation.extractor import Extractor
from distgan.evaluation.features import extract
from distgan.evaluation.inputs import chunk_size, from_stored
from distgan.evaluation.stored import StoredImages
from distgan.samples import SampleSpec

NEIGHBOURS = 3
"""Training images that are found for each image."""
FEATURE_BYTES = 1 << 30
"""Features of training images that a process keeps for the next search, in bytes; of more, none are kept."""


class Queries(NamedTuple):
    """The images whose nearest training images are looked for, the same on all processes."""

    features: Tensor
    """float32 [M, d], on the CPU."""
    own: np.ndarray
    """uint64 [H, 2], of the last H images, which are training images themselves: hashes of the pixels, and of the
    pixels mirrored. Training images with these pixels do not count as their neighbours."""

    def before(self, others: "Queries") -> "Queries":
        """These, none of which is a training image, and then others."""
        assert not len(self.own), "training images come last"
        return Queries(torch.cat([self.features, others.features]), others.own)


class Nearest(NamedTuple):
    """The nearest training images of M images, closest first; of equally near ones the first in the dataset."""

    distances: np.ndarray
    """Euclidean, float64 [M, K]; inf where there are not so many training images."""
    ids: np.ndarray
    """Their sample ids, int64 [M, K]."""
    mirrored: np.ndarray
    """Whether it is the mirrored image that is so near, bool [M, K]."""


class Chunk(NamedTuple):
    """Training images that went through the network together."""

    ids: np.ndarray
    """int64 [N], ascending."""
    features: Tensor
    """float32 [1 or 2, N, d]: of the images and, where the search includes them, of the mirrored images."""
    hashes: np.ndarray
    """Of the pixels, uint64 [N]."""


@dataclass
class NearestSearch:
    """Finds the nearest training images; called on all processes, with the same result on any number of them.

    Each process streams its chunks of the dataset through the network and keeps the best few for each query, which are
    merged at the end. Their features stay in memory for the next search where they take up to `memory` bytes.
    """

    processes: Distributed
    dataset: ShardSet
    """The training images."""
    extractor: Extractor
    flip: bool = False
    """Whether the mirrored images are training images too."""
    skip_bad: int = 0
    """Corrupt images of a dataset to replace by others."""
    log: Callable[[str], None] | None = None
    memory: int = FEATURE_BYTES
    kept: list[Chunk] = field(default_factory=list)
    """This process's chunks, in order, after a first search."""
    searched: bool = False
    """Whether there was a first search; the same on all processes."""

    @property
    def images(self) -> int:
        """Training images, without the mirrored ones."""
        return len(self.dataset.columns["label"])

    @property
    def fits(self) -> bool:
        """Whether the features of a process take up to `memory` bytes; the same on all processes."""
        share = -(-self.images // self.processes.world_size)
        return share * self.extractor.num_features * 4 * (1 + self.flip) <= self.memory

    def nearest(self, queries: Queries, stop: Callable[[], bool]) -> Nearest:
        """Of each query. Raises CorruptDataError, and Stopped when `stop` says so on one of the processes."""
        closest = Closest(queries, min(NEIGHBOURS, self.images), self.processes.device)
        if self.searched and self.fits:
            chunks = -(-self.images // chunk_size(self.dataset.spec))
            kept = iter(self.kept)
            run_chunks(self.processes, chunks, lambda number: closest.add(next(kept)), stop)
            return closest.merge(self.processes)
        found: list[Chunk] = []

        def measure(ids: np.ndarray, stored: Tensor) -> None:
            versions = [stored, stored.flip(2)] if self.flip else [stored]
            features = torch.stack([features_of(self.extractor, each, self.dataset.spec) for each in versions])
            chunk = Chunk(ids, features, hash_images(stored.cpu().numpy()))
            closest.add(chunk)
            if self.fits:
                found.append(chunk._replace(features=features.cpu()))

        ids = np.arange(self.images)
        what = "features of the training images"
        StoredImages(self.processes, self.dataset, ids, self.skip_bad, what, self.log).each_chunk(measure, stop)
        self.kept = found
        self.searched = True
        return closest.merge(self.processes)


def features_of(extractor: Extractor, stored: Tensor, spec: SampleSpec) -> Tensor:
    """float32 [N, d] of stored pixels [N, H, W, C] of `spec`, on their device."""
    return extract(extractor, from_stored(stored, spec))[0].float()


def hash_images(stored: np.ndarray) -> np.ndarray:
    """uint64 [N], of the pixels [N, H, W, C]: equal images have equal ones."""
    return np.array([xxhash.xxh3_64_intdigest(image.tobytes()) for image in stored], np.uint64)


class Closest:
    """The nearest training images so far, of all queries."""

    def __init__(self, queries: Queries, count: int, device: torch.device) -> None:
        self.device = device if device.type == "cuda" else torch.device("cpu")  # Apple's GPUs have no float64
        self.features = queries.features.to(self.device).double()
        self.own = torch.from_numpy(queries.own.view(np.int64)).to(self.device)
        shape = len(self.features), count
        self.distances = torch.full(shape, torch.inf, dtype=torch.float64, device=self.device)
        self.ids = torch.full(shape, -1, device=self.device)
        self.mirrored = torch.zeros(shape, dtype=torch.bool, device=self.device)

    def add(self, chunk: Chunk) -> None:
        """Take in training images, whose numbers are above those so far."""
        # differences in float64, not products: products lose the digits of small distances
        exact: dict[str, Any] = {"compute_mode": "donot_use_mm_for_euclid_dist"}
        versions = [torch.cdist(self.features, each.to(self.device).double(), **exact) for each in chunk.features]
        mirrored = versions[-1] < versions[0]
        distances = torch.minimum(versions[0], versions[-1])
        if len(self.own):
            hashes = torch.from_numpy(chunk.hashes.view(np.int64)).to(self.device)
            distances[-len(self.own) :][(self.own[:, :, None] == hashes).any(1)] = torch.inf
        ids = torch.from_numpy(chunk.ids).to(self.device).expand_as(distances)
        # stable: of equal distances the first in the dataset
        distances, order = torch.cat([self.distances, distances], 1).sort(dim=1, stable=True)
        order = order[:, : self.ids.shape[1]]
        self.distances = distances[:, : self.ids.shape[1]]
        self.mirrored = torch.cat([self.mirrored, mirrored], 1).gather(1, order)
        self.ids = torch.cat([self.ids, ids], 1).gather(1, order)

    def merge(self, processes: Distributed) -> Nearest:
        """Those of all processes, which all call it."""
        own = [each.cpu().numpy() for each in (self.distances, self.ids, self.mirrored)]
        distances, ids, mirrored = (
            np.concatenate(each, 1) for each in zip(*processes.all_gather_object(own), strict=True)
        )
        order = np.lexsort((ids, distances))[:, : self.ids.shape[1]]
        return Nearest(*(np.take_along_axis(each, order, 1) for each in (distances, ids, mirrored)))
