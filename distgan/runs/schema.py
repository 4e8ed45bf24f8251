"""What is read from a run's checkpoints, as typed structs."""

from math import isfinite
from typing import Annotated, Any

from msgspec import Meta, Struct
from msgspec.structs import asdict

from distgan.data.manifest import conditions_of
from distgan.data.schema import MAX_CLASSES, Channels, ConditionRow, Count, Sha256, Size
from distgan.samples import LIMITS, DType, LatentSpec, SampleSpec

MOST_TEXT = 2000
"""Characters of a text."""
Text = Annotated[str, Meta(max_length=MOST_TEXT)]
"""For people to read."""
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
    g_penalty_means: dict[str, float] = {}
    """The running means of what penalties of G measure, by their names."""
    networks: dict[str, Sha256] = {}
    """The weights of the frozen networks, by the key of the configuration that names them."""
    init_from: dict[str, Sha256] = {}
    """The files that the run began with, by network: `distgan.runs.weights`."""
    init_from_path: str | None = None
    """Where the configuration says they are."""
    origins: list[Text] = []
    """The provenance of the weights that the run began with, where they are another project's."""


class ModelMetadata(Struct, frozen=True):
    name: str
    latent: Annotated[int, Meta(ge=1, le=2**31)]
    options: dict[str, Any]


class ConfigMetadata(Struct, frozen=True):
    model: ModelMetadata


class LatentMetadata(Struct, frozen=True):
    """Of a generator of latents: `distgan.samples.LatentSpec`."""

    vae: Sha256
    scale: Annotated[float, Meta(gt=0)]
    shift: float
    height: Size
    width: Size
    channels: Channels
    flips: bool = False


class SourceMetadata(Struct, frozen=True):
    """Of weights that `distgan convert` wrote: the file that they are from."""

    name: Text
    sha256: Sha256
    format: Text


class WeightsMetadata(Struct, frozen=True):
    """What a generator is built from: the metadata of a .safetensors file of a checkpoint."""

    config: ConfigMetadata
    channels: Channels
    classes: Annotated[list[str], Meta(max_length=MAX_CLASSES)]
    height: Size | None = None
    width: Size | None = None
    size: Size | None = None
    """Height and width in files of version 0.1."""
    dtype: DType = "uint8"
    range: tuple[float, float] = LIMITS["uint8"]
    conditions: list[ConditionRow] = []
    latents: LatentMetadata | None = None
    images: Count | None = None
    ema_width: Annotated[float, Meta(gt=0)] | None = None
    """Of an average by a power function, its width: `distgan.gan.power_ema`."""
    licence: Text | None = None
    """Of the weights, where they are another project's."""
    source: SourceMetadata | None = None
    origins: list[Text] = []
    """Of a run that began with weights of other projects: their provenance."""
    ema: bool | None = None
    """Whether it is an EMA of G, in a file that is not named so."""

    def is_ema(self, name: str) -> bool:
        """Whether the weights are an average of G's, in a file of this name without suffix."""
        return bool(self.ema) or self.ema_width is not None or name == "ema"

    @property
    def provenance(self) -> str:
        """Where weights of another project are from, or those that a run began with, and their licence, in a line.

        Empty for those of a run of its own.
        """
        parts = [] if self.source is None else [f"weights of {self.source.name} ({self.source.format})"]
        parts += [] if self.licence is None else [f"licence: {self.licence}"]
        parts += [f"fine-tuned from {origin.removeprefix('fine-tuned from ')}" for origin in self.origins]
        return " ".join("; ".join(parts).split())

    @property
    def spec(self) -> SampleSpec:
        """What the generator makes. Raises ValueError for a file that does not say how large."""
        height = self.height or self.size
        width = self.width or self.size
        if height is None or width is None:
            raise ValueError("neither height and width nor size")
        if not (isfinite(self.range[0]) and isfinite(self.range[1]) and self.range[0] < self.range[1]):
            raise ValueError(f"range {self.range}")
        labels = len(self.classes), conditions_of(self.conditions)
        latents = None if self.latents is None else LatentSpec(**asdict(self.latents))
        return SampleSpec(height, width, self.channels, *labels, self.dtype, self.range, latents)
