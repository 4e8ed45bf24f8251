"""What is read from a run's checkpoints, as typed structs."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from distgan.data.schema import MAX_CLASSES, Channels, Count, Sha256, Size

WeightsName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]+\.safetensors\Z")]


class CheckpointState(Struct, frozen=True):
    """state.json of a checkpoint."""

    images: Count
    config: dict[str, Any]
    manifest: str
    skipped: Count
    rollbacks: Count
    files: dict[WeightsName, Sha256]
    scaler: dict[str, Any] | None = None
    augment_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    augment_sign: float = 0.0


class ModelMetadata(Struct, frozen=True):
    name: str
    latent: Annotated[int, Meta(ge=1, le=2**31)]
    options: dict[str, Any]


class ConfigMetadata(Struct, frozen=True):
    model: ModelMetadata


class WeightsMetadata(Struct, frozen=True):
    """What a generator is built from: the metadata of a .safetensors file of a checkpoint."""

    config: ConfigMetadata
    size: Size
    channels: Channels
    classes: Annotated[list[str], Meta(max_length=MAX_CLASSES)]
    images: Count | None = None
