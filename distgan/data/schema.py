"""What is read from files of others, as typed structs: a dataset's manifest.json and labels, checkpoints, weights.

`decode` is the one way in: a missing key, a wrong type, a number out of range or an unsafe file name is a ValueError.
"""

from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from distgan.samples import DType

FORMAT = "distgan-shards-2"
FORMAT_1 = "distgan-shards-1"
"""Of square images of 8 bits, without conditions; read for ever."""
MAX_CLASSES = 1_000_000
MAX_SIZE = 4096
"""Side of an image, in pixels."""

T = TypeVar("T")
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Sha256 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
ShardName = Annotated[str, Meta(pattern=r"(?s)^(?!/|(.*/)?\.\./)[^\0]+\.tar\Z")]
"""A path below the dataset's folder."""
MAX_CHANNELS = 64
Channels = Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]
Size = Annotated[int, Meta(ge=1, le=MAX_SIZE)]
Label = int | str
ClassNames = list[str] | dict[str, int]
"""classes.json: names by label, or labels by name."""


class File(Struct, frozen=True):
    bytes: Count
    sha256: Sha256


class Shard(Struct, frozen=True):
    name: ShardName
    samples: Positive
    bytes: Count
    sha256: Sha256


class ClassCount(Struct, frozen=True):
    name: str
    samples: Count


class ImageField(Struct, frozen=True):
    """The images of a dataset, all alike."""

    height: Size
    width: Size
    channels: Channels
    dtype: DType
    range: tuple[float, float]
    """The stored values that networks see as -1 and 1."""
    encoding: Literal["npy", "png", "jpg"]


class LatentField(Struct, frozen=True):
    """The moments of the latents of a dataset, float16: means, then standard deviations."""

    height: Size
    width: Size
    channels: Channels
    """Of the latents; the moments have twice as many."""
    scale: Annotated[float, Meta(gt=0)]
    """Networks see (latent - shift) * scale."""
    shift: float
    flips: bool
    """Whether each sample has a second encoding, of the image flipped horizontally."""
    vae: Sha256
    """Of the autoencoder's weights."""
    image_height: Size
    image_width: Size
    image_channels: Channels
    """Of the images that they are decoded to."""


class Fields(Struct, frozen=True, omit_defaults=True):
    """What a sample consists of, beside its label: an image, latents of one, or both."""

    image: ImageField | None = None
    latents: LatentField | None = None


class ConditionRow(Struct, frozen=True):
    """A number that every sample has: `distgan.samples.Condition`."""

    name: str
    kind: Literal["number", "flag"]
    mean: float
    std: Annotated[float, Meta(gt=0)]
    low: float
    high: float


class Manifest(Struct, kw_only=True, omit_defaults=True):
    """manifest.json, in the order of its keys; those that only `shards make` writes are None otherwise."""

    format: str = ""
    samples: Positive
    fields: Fields
    classes: list[ClassCount]
    """[] for a dataset without classes."""
    conditions: list[ConditionRow] = []
    """[] for a dataset without numbers."""
    mean: list[float] | None = None
    """Per channel, of the stored pixels, or of latents drawn from the stored moments."""
    std: list[float] | None = None
    shards: list[Shard]
    options: dict[str, Any] | None = None
    source: dict[str, Any] | None = None
    converted: dict[str, Count] | None = None
    """Images by conversion."""
    left_out: list[str] | None = None
    """Images that could not be used, with the reason."""
    made_by: str = ""
    sources: File | None = None
    """Of sources.txt."""
    index: File
    """Of index.npz."""


class LabelFile(Struct, frozen=True):
    """dataset.json of NVlabs' tools: a class or a list of numbers by image."""

    labels: list[tuple[str, Label | float | list[int | float]]] | None


def decode(data: bytes | str, kind: type[T]) -> T:
    """JSON as `kind`. Raises ValueError, whose message says what is wrong where in one line."""
    try:
        return msgspec.json.decode(data, type=kind)
    except RecursionError:
        raise ValueError("nested too deep") from None
