"""A dataset on disk: manifest.json (shards, counts, hashes), index.npz (where each image is), and the tars."""

import bisect
import functools
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from distgan.data.index_file import IMAGE_COLUMNS, INVALID_INDEX, NUMBERS, map_columns
from distgan.data.manifest import decode_manifest, encoding_of, images_of, spec_of
from distgan.data.schema import ClassCount, Manifest
from distgan.data.tar import members, split_key
from distgan.errors import CorruptDataError, UsageError
from distgan.files import sha256_file
from distgan.samples import SampleSpec, network_labels

SOURCES = "sources.txt"
"""Line i is the path of the image of sample id i in the folder or zip that it was made from."""


class Storage(Protocol):
    """Where the files of a dataset are: a folder, or a server with a local cache."""

    def path(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        """A local path of the dataset's file `name`. A download is checked against size and hash."""
        ...

    def names(self) -> set[str] | None:
        """Names of the shards that exist; None if they cannot be listed."""
        ...


class LocalStorage:
    """A dataset in a local folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        return self.root / name

    def names(self) -> set[str] | None:
        return {path.relative_to(self.root).as_posix() for path in self.root.rglob("*.tar")}


@dataclass(frozen=True)
class ShardSet:
    """An opened dataset. Sample ids count along the shards in the manifest's order."""

    storage: Storage
    manifest: Manifest
    digest: str
    """sha256 of manifest.json; identifies the dataset."""
    columns: dict[str, np.ndarray]
    """The columns of index.npz, [samples] each, memory-mapped. Offset and size are those of the bytes of the image, or
    of the latents, in its shard; for .npy, of the values alone."""
    counts: np.ndarray
    """Samples of each shard."""

    @functools.cached_property
    def spec(self) -> SampleSpec:
        """What its samples are."""
        return spec_of(self.manifest)

    @property
    def encoding(self) -> str:
        return encoding_of(self.manifest)

    @functools.cached_property
    def images(self) -> "ShardSet | None":
        """The images beside its latents, as a dataset of the same samples; None without latents or without images."""
        manifest = images_of(self.manifest)
        if manifest is None:
            return None
        of_images = {name.removeprefix("image_"): self.columns[name] for name in IMAGE_COLUMNS}
        columns = {name: column for name, column in self.columns.items() if name not in IMAGE_COLUMNS} | of_images
        digest = hashlib.sha256(f"images of {self.digest}".encode()).hexdigest()
        return replace(self, manifest=manifest, digest=digest, columns=columns)

    @property
    def classes(self) -> list[ClassCount]:
        """Names and numbers of samples, by label; [] for a dataset without labels."""
        return self.manifest.classes

    @functools.cached_property
    def class_ends(self) -> np.ndarray:
        """Samples of each class and of those before it, int64 [classes]: read at every minibatch."""
        return np.cumsum([each.samples for each in self.classes])

    def labels(self, ids: np.ndarray, spec: SampleSpec | None = None) -> np.ndarray:
        """What networks are given of samples `ids` [N]: int64 [N], the class, or -1 without classes.

        With conditions float32 [N, label_width]: a one-hot vector of the class, if there are classes, and the numbers.
        `spec` is that of networks trained on another dataset, which standardizes the numbers, of the same names, by its
        own mean and std.
        """
        spec = spec or self.spec
        classes = self.columns["label"][ids].astype(np.int64)
        if not spec.conditions:
            return network_labels(spec, classes, np.empty((len(ids), 0)))
        names = [one.name for one in self.spec.conditions]
        columns = [names.index(one.name) for one in spec.conditions]
        return network_labels(spec, classes, self.columns[NUMBERS][ids][:, columns])

    def draw_labels(self, uniform: np.ndarray, spec: SampleSpec | None = None) -> np.ndarray:
        """Labels at the frequencies of the dataset, as `labels` has them, for numbers [N] in [0, 1).

        Conditions are those of whole samples: what belongs together stays together.
        """
        if (spec or self.spec).conditions:
            return self.labels((uniform * self.manifest.samples).astype(np.int64), spec)
        return np.searchsorted(self.class_ends, uniform * self.class_ends[-1], side="right")

    def check_index(self) -> None:
        """Raises UsageError if index.npz is not the one in the manifest, or is invalid; reads all of it."""
        recorded = self.manifest.index
        path = self.storage.path("index.npz", recorded.bytes, recorded.sha256)
        if sha256_file(path) != recorded.sha256:
            raise UsageError(
                f"data.shards: {path} does not match the manifest; re-create it with `distgan shards index`"
            )
        self.check_bounds()

    def check_bounds(self) -> None:
        """Raises UsageError unless all samples are inside of their shards, and all labels are among the classes."""
        if self.images is not None:
            self.images.check_bounds()
        manifest = self.manifest
        image_bytes = np.dtype(self.spec.dtype).itemsize * math.prod(self.spec.stored_shape)
        starts = np.concatenate([[0], np.cumsum(self.counts)])
        lengths = np.array([shard.bytes for shard in manifest.shards])
        fault = None
        for first in range(0, len(lengths), 1000):
            shards = slice(first, first + 1000)
            samples = slice(starts[first], starts[first : first + 1001][-1])
            offsets, sizes, labels = (self.columns[name][samples] for name in ("offset", "size", "label"))
            ends = np.repeat(lengths[shards], self.counts[shards])
            if offsets.min() < 0 or (offsets > ends - sizes).any():
                fault = "an image is outside of its shard"
            elif self.encoding == "npy" and (sizes != image_bytes).any():
                fault = "an image does not have the size in the manifest"
            elif manifest.classes and (labels.min() < 0 or labels.max() >= len(manifest.classes)):
                fault = f"a label is not one of the {len(manifest.classes)} classes"
            elif manifest.conditions and not np.isfinite(self.columns[NUMBERS][samples]).all():
                fault = "a number of a condition is not finite"
            if fault:
                path = self.storage.path("index.npz", manifest.index.bytes, manifest.index.sha256)
                raise UsageError(f"data.shards: {path}: {fault}; re-create it with `distgan shards index`")

    def sources(self) -> list[str] | None:
        """The lines of sources.txt, [samples]; None if the dataset has no such file.

        Raises CorruptDataError if it is missing or is not the one in the manifest.
        """
        recorded = self.manifest.sources
        if recorded is None:
            return None
        path = self.storage.path(SOURCES, recorded.bytes, recorded.sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorruptDataError(f"{path}: {error.strerror}") from None
        if hashlib.sha256(data).hexdigest() != recorded.sha256:
            raise CorruptDataError(f"{path}: the sha256 does not match the manifest")
        lines = data.decode().split("\n")[:-1]
        if len(lines) != self.manifest.samples:
            raise CorruptDataError(f"{path}: {len(lines)} lines, {self.manifest.samples} samples in the manifest")
        return lines

    def missing(self) -> list[str]:
        """Names of the missing shards; [] for a server, whose shards cannot be listed."""
        existing = self.storage.names()
        if existing is None:
            return []
        return [shard.name for shard in self.manifest.shards if shard.name not in existing]

    def shard_path(self, shard: int) -> Path:
        recorded = self.manifest.shards[shard]
        return self.storage.path(recorded.name, recorded.bytes, recorded.sha256)

    def keys(self, shard: int) -> Callable[[int], str]:
        """A function from a byte offset in a shard to the key of the sample there; reads the shard's headers once."""
        in_order = list(members(self.shard_path(shard)))
        if not in_order:
            raise CorruptDataError(f"{self.shard_path(shard)}: no members")
        offsets = [member.offset for member in in_order]

        def key(offset: int) -> str:
            member = in_order[max(bisect.bisect_right(offsets, offset) - 1, 0)]
            return split_key(member.name)[0]

        return key


def open_shardset(storage: Storage, name: str) -> ShardSet:
    """Open the dataset in `storage`; `name` is for messages.

    Raises UsageError if there is none, or manifest and index are corrupt or do not match.
    """
    manifest_path = storage.path("manifest.json")
    try:
        data = manifest_path.read_bytes()
    except OSError:
        folder = manifest_path.parent
        fix = "index" if any(folder.glob("*.tar")) else "make"
        what = f"{name} has no manifest.json" if folder.is_dir() else f"there is nothing at {name}"
        raise UsageError(f"data.shards: {what}; create it with `distgan shards {fix}`") from None
    try:
        manifest = decode_manifest(data)
    except ValueError as error:
        raise UsageError(f"{name}: {error}; restore it, or re-create the dataset") from None
    try:
        path = storage.path("index.npz", manifest.index.bytes, manifest.index.sha256)
        columns = map_columns(path, manifest.samples, len(manifest.conditions), images_of(manifest) is not None)
        counts = np.array([shard.samples for shard in manifest.shards], dtype=np.int64)
    except UsageError:
        raise
    except INVALID_INDEX as error:
        raise UsageError(
            f"{name}: index.npz is missing or corrupt ({error}); re-create it with `distgan shards index`"
        ) from None
    return ShardSet(storage, manifest, hashlib.sha256(data).hexdigest(), columns, counts)
