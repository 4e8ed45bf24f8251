"""The shape of the samples of a dataset, and the classes they are conditioned on."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class SampleSpec:
    """The samples of a dataset: square images of 8-bit pixels, which networks see as float32 in [-1, 1]."""

    size: int
    """Height and width in pixels."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    num_classes: int = 0
    """Classes that G and D are conditioned on; 0: unconditional."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the tensor of one image."""
        return self.channels, self.size, self.size

    def unconditional(self) -> "SampleSpec":
        """The same images without their labels."""
        return replace(self, num_classes=0)

    def __str__(self) -> str:
        return f"{self.size}x{self.size}x{self.channels}"
