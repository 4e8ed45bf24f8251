"""What an evaluation measures: the extractor, the metrics, how many images, and the bins of its card."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distgan.evaluation.inception import Resize


@dataclass(frozen=True)
class Settings:
    """The settings of an Evaluator, which checks them."""

    extractor: str = "classifier"
    """An entry of EXTRACTORS, or a classifier's file."""
    extractor_weights: str | None = None
    """File, folder or hf:// address of the weights of inception or dinov2."""
    resize: Resize | None = None
    """How images reach the input size of inception: tensorflow or clean. None: tensorflow."""
    metrics: Sequence[str] = ()
    """Entries of METRICS; (): fid, precision_recall, and modes where the extractor gives classes."""
    samples: int | None = None
    """Generated images; None: 26,000 for StackedMNIST, else as many as the dataset has, up to 50,000."""
    seed: int = 0
    """Of the latents, or of which images of a set are taken."""
    reference_images: int | None = None
    """Real images to compare with, drawn at random; None: all."""
    skip_bad: int = 0
    """Corrupt images of a dataset to replace by others; one more ends the evaluation."""
    cache: Path | None = None
    """Folder of extractors and statistics; None: ~/.cache/distgan."""
    by: str | None = None
    """A condition of the dataset, or `class`: the card tells the metrics of each bin of images by it too."""
    bins: int | None = None
    """How many bins of a condition, with about as many images in each; None: 5."""
    balanced: bool = False
    """As many generated images of each class of the dataset, in place of its frequencies."""
