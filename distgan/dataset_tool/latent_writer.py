"""The dataset of latents that `shards encode` writes: its plan and its manifest."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from distgan.data.index_file import IMAGE_COLUMNS
from distgan.data.manifest import spec_of_fields
from distgan.data.schema import ConditionRow, Fields, ImageField, LatentField, Manifest
from distgan.data.shardset import ShardSet
from distgan.dataset_tool.parts import DatasetWriter
from distgan.dataset_tool.plan import Encoded, Plan, sha256_json
from distgan.dataset_tool.shard_info import ShardInfo
from distgan.errors import UsageError
from distgan.samples import LIMITS

if TYPE_CHECKING:
    from distgan.frozen.vae import Autoencoder


@dataclass(frozen=True)
class EncodeOptions:
    """How images become latents: options of `shards encode`, recorded in the manifest in this order."""

    keep_images: bool = False
    """Write the images, as RGB, beside their latents."""
    flips: bool = False
    """Write a second encoding of each image, flipped horizontally."""
    batch: int = 16
    """Images that are encoded at once."""


class LatentWriter(DatasetWriter):
    """The files that are written into the folder `dest` by the plan of a dataset of latents."""

    def __init__(self, dest: Path, plan: Plan, encoded: Encoded) -> None:
        super().__init__(dest, plan)
        self.encoded = encoded
        self.spec = spec_of_fields(encoded.fields)
        """Without labels."""

    def is_described_by(self, manifest: Manifest) -> bool:
        """Also of the same autoencoder."""
        return super().is_described_by(manifest) and manifest.fields == self.encoded.fields

    def column_names(self) -> list[str]:
        """Of the index."""
        return super().column_names() + (list(IMAGE_COLUMNS) if self.encoded.fields.image is not None else [])

    def fields(self, infos: list[ShardInfo]) -> Fields:
        """What a sample consists of."""
        return self.encoded.fields

    def conditions(self, columns: dict[str, np.ndarray]) -> list[ConditionRow]:
        """Those of the dataset that was encoded."""
        return self.encoded.conditions


def open_writer(dest: Path, shards: ShardSet, address: str, vae: "Autoencoder", options: EncodeOptions) -> LatentWriter:
    """Of the latents of the dataset `shards` at `address`. Raises UsageError if it cannot be encoded."""
    encoded = Encoded(fields_of(shards, address, vae, options), shards.manifest.conditions)
    name = address if "://" in address else os.path.normpath(address)
    manifest = shards.manifest
    plan = Plan(
        options=asdict(options),
        source={"name": name, "images": manifest.samples, "manifest": shards.digest},
        fingerprint=sha256_json(shards.digest),
        sources=manifest.sources is not None,
        classes=[row.name for row in manifest.classes] or None,
        numbers=[row.name for row in manifest.conditions],
        shards=len(manifest.shards),
        encoded=encoded,
    )
    return LatentWriter(dest, plan, encoded)


def fields_of(shards: ShardSet, address: str, vae: "Autoencoder", options: EncodeOptions) -> Fields:
    """The manifest's. Raises UsageError unless the dataset has 8-bit images whose sides the autoencoder divides."""
    spec = shards.spec
    if spec.latents is not None:
        raise UsageError(f"SRC: {address} holds latents already; give the dataset of the images")
    if not spec.is_8bit:
        fix = "a VAE encodes 8-bit RGB or grey; make the dataset with --dtype uint8 --channels 3"
        raise UsageError(f"SRC: {address} has images {spec.unconditional()}; {fix}")
    if spec.height % vae.factor or spec.width % vae.factor:
        fix = f"the VAE takes multiples of {vae.factor}; make the dataset with another --size"
        raise UsageError(f"SRC: {address} has images of {spec.height}x{spec.width}; {fix}")
    height = spec.height // vae.factor
    width = spec.width // vae.factor
    scaling = vae.scale, vae.shift, options.flips
    latents = LatentField(height, width, vae.channels, *scaling, vae.sha256, spec.height, spec.width, 3)
    if not options.keep_images:
        return Fields(latents=latents)
    image = shards.manifest.fields.image
    assert image is not None, "a dataset without latents has images"
    return Fields(ImageField(spec.height, spec.width, 3, "uint8", LIMITS["uint8"], image.encoding), latents)
