"""What the samples of a dataset are: shape, type and value range of the images, and what they are conditioned on."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

DType = Literal["uint8", "uint16", "float16", "float32"]
LIMITS: dict[DType, tuple[float, float]] = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}
"""The least and the greatest value of integer pixels."""


@dataclass(frozen=True)
class Condition:
    """A number that samples are conditioned on, alone or beside a class."""

    name: str
    kind: Literal["number", "flag"] = "number"
    """A flag is 0 or 1 in all samples: one of several labels at once."""
    mean: float = 0.0
    std: float = 1.0
    """Networks see a number as (value - mean) / std; a flag as it is, with mean 0 and std 1."""
    low: float = 0.0
    """The least value in the dataset."""
    high: float = 1.0
    """The greatest value in the dataset."""


@dataclass(frozen=True)
class LatentSpec:
    """The latents of an autoencoder, and the 8-bit images that it decodes them to."""

    vae: str
    """sha256 of the autoencoder's weights."""
    scale: float
    """Networks see (latent - shift) * scale."""
    shift: float
    height: int
    """Of the images, in pixels."""
    width: int
    channels: int
    flips: bool = False
    """Whether each sample has a second encoding, of the image flipped horizontally."""


@dataclass(frozen=True)
class SampleSpec:
    """The samples of a dataset, which networks see as float32: pixels in [-1, 1], or latents of about unit variance."""

    height: int
    """In pixels; of the tensors that networks see, as are width and channels."""
    width: int
    channels: int
    num_classes: int = 0
    """Classes that G and D are conditioned on; 0: none."""
    conditions: tuple[Condition, ...] = ()
    """Numbers that they are conditioned on."""
    dtype: DType = "uint8"
    """Of stored pixels."""
    range: tuple[float, float] = LIMITS["uint8"]
    """The stored values that networks see as -1 and 1."""
    latents: LatentSpec | None = None
    """Of samples that are latents of an autoencoder, stored as the moments of their distribution."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of a stored sample: (height, width, channels) of pixels; (encodings, 2 channels, height, width) of moments.

        Moments are the means, then the standard deviations; of two encodings the second is that of the flipped image.
        """
        if self.latents is None:
            return self.height, self.width, self.channels
        return 1 + self.latents.flips, 2 * self.channels, self.height, self.width

    @property
    def pixels(self) -> "SampleSpec":
        """The images that latents are decoded to, with the same labels; pixels themselves."""
        if self.latents is None:
            return self
        height, width, channels = self.latents.height, self.latents.width, self.latents.channels
        return SampleSpec(height, width, channels, self.num_classes, self.conditions)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the tensor of one image."""
        return self.channels, self.height, self.width

    @property
    def conditional(self) -> bool:
        """Whether G and D take labels."""
        return self.label_width > 0

    @property
    def label_width(self) -> int:
        """Columns of a label as numbers: a one-hot vector of its class, then its conditions.

        Networks get labels int64 [N] where there are classes alone, and otherwise float32 [N, label_width].
        """
        return self.num_classes + len(self.conditions)

    @property
    def is_8bit(self) -> bool:
        """Whether the pixels are those of ordinary picture files: 8 bits, 0 to 255, grey or RGB."""
        return self.dtype == "uint8" and self.range == LIMITS["uint8"] and self.channels in (1, 3)

    def unconditional(self) -> "SampleSpec":
        """The same images without their labels."""
        return replace(self, num_classes=0, conditions=())

    def same_images(self, other: "SampleSpec") -> bool:
        """Whether the images have the same shape, type and range."""
        return self.unconditional() == other.unconditional()

    def __str__(self) -> str:
        shape = f"{self.height}x{self.width}x{self.channels}"
        if self.latents is not None:
            return f"{shape} latents of {self.pixels.unconditional()}"
        if self.dtype == "uint8" and self.range == LIMITS["uint8"]:
            return shape
        return f"{shape} {self.dtype} in [{self.range[0]:g}, {self.range[1]:g}]"


def network_labels(spec: SampleSpec, classes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """What networks get of classes int64 [N] and of the values [N, K] of the conditions.

    The classes as they are, without conditions; else float32 [N, label_width]: a one-hot vector of the class, if there
    are classes, and the numbers, standardized.
    """
    if not spec.conditions:
        return classes
    means, stds = (np.array([getattr(one, name) for one in spec.conditions]) for name in ("mean", "std"))
    one_hot = classes[:, None] == np.arange(spec.num_classes)
    return np.concatenate([one_hot, (numbers - means) / stds], axis=1, dtype=np.float32)
