"""What an extractor of features is: a network, and what must be known of it to compare its numbers."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from distgan.data.shardset import ShardSet
from distgan.errors import UsageError

Given = Literal["features", "logits", "labels"]
"""What a metric needs of an extractor."""


@dataclass(frozen=True)
class Extractor:
    """A feature network, and what must be known of it to compare its numbers."""

    name: str
    sha256: str
    """Of the file of its weights; of `pixels`, which has none, of what it computes."""
    resize: str
    """How images reach its input size."""
    network: nn.Module
    """Images [N, C, H, W] as `distgan.evaluation.inputs` has them -> features float32 [N, num_features], logits float32
    [N, units, classes] or None. Units are parts of an image that are classified one by one: the channels of
    StackedMNIST, else the whole."""
    num_features: int
    gives: tuple[Given, ...]
    """`labels` if the classes of its logits are the dataset's."""
    accuracy: float | None = None
    """On held-out images of the dataset it was trained on, of one unit."""
    trained_on: str | None = None
    """Hash of that dataset's manifest."""
    sums_images: bool = False
    """Whether the cards of bins tell the sums of images too, in stored units."""
    any_size: bool = False
    """Whether it compares 8-bit images of any size, grey or RGB, since it resizes them to its own."""
    architecture: str | None = None
    """Of a network of which there are several sizes."""
    variant: str | None = None
    """What tells its features from others of the same weights, in the keys of the cache; None: nothing."""
    note: str | None = None
    """What people must know of the names of its values."""

    @property
    def identity(self) -> dict[str, str]:
        """What its features depend on, for the keys of the cache."""
        identity = {"extractor": self.sha256}
        return identity if self.variant is None else identity | {"variant": self.variant}


def check_8bit(name: str, dataset: ShardSet) -> None:
    """Raises UsageError for images that are no photographs of 8 bits."""
    if not dataset.spec.is_8bit:
        raise UsageError(
            f"extractor: {name} takes 8-bit grey or RGB images, the dataset has {dataset.spec}; the extractor pixels "
            "takes any"
        )
