"""What the samples of a dataset are: shape, type and value range of the images, and what they are conditioned on."""

from dataclasses import dataclass, replace
from typing import Literal

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
class SampleSpec:
    """The samples of a dataset, which networks see as float32 in [-1, 1]."""

    height: int
    """In pixels."""
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
        if self.dtype == "uint8" and self.range == LIMITS["uint8"]:
            return shape
        return f"{shape} {self.dtype} in [{self.range[0]:g}, {self.range[1]:g}]"
