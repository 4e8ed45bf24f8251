"""Bins of a dataset: its images by intervals of a condition, or by class."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distgan.data.index_file import NUMBERS
from distgan.data.shardset import ShardSet
from distgan.errors import UsageError
from distgan.evaluation.extractor import Extractor
from distgan.samples import SampleSpec

CLASS = "class"
DEFAULT_BINS = 5
ClassesFrom = Literal["labels", "classifier"]
"""What tells the class of a generated image: the label that it has or was made for, or the extractor."""


@dataclass(frozen=True)
class Bin:
    """The images of one bin."""

    place: int
    """Among the bins, from 0."""
    by: str
    """A condition, or `class`."""
    low: float
    high: float
    """Of the condition: low <= value < high, and in the last bin <= high; where both are equal, that value. Of the
    class: its number."""
    class_name: str | None
    ids: np.ndarray
    """int64, ascending."""

    @property
    def definition(self) -> dict[str, Any]:
        """What tells its images, in the keys of the cache."""
        return {"by": self.by, "low": self.low, "high": self.high, "images_of_bin": len(self.ids)}

    @property
    def edges(self) -> dict[str, Any]:
        """What a card says of it."""
        edges: dict[str, Any] = {"low": self.low, "high": self.high}
        return edges if self.class_name is None else edges | {CLASS: self.class_name}


def split_into_bins(dataset: ShardSet, by: str | None, count: int | None = None) -> list[Bin]:
    """The bins of a dataset by a condition, or one for each class; none without `by`.

    Of a condition with at most `count` (default: 5) different values there is a bin for each value; of another one
    `count`, with about as many images in each, between quantiles, or fewer where quantiles are equal. Raises UsageError
    for an unknown condition, and for a `count` of nothing or of classes.
    """
    if count is not None and by in (None, CLASS):
        how = "give the condition to make them by, as --by CONDITION" if by is None else "classes have a bin each"
        raise UsageError(f"bins: {how}")
    if by is None:
        return []
    if by == CLASS and dataset.classes:
        labels = dataset.columns["label"]
        names = [one.name for one in dataset.classes]
        return [Bin(k, by, k, k, name, np.flatnonzero(labels == k)) for k, name in enumerate(names)]
    names = [one.name for one in dataset.spec.conditions]
    if by == CLASS and CLASS not in names:
        raise UsageError("by: the real images have no classes; give a dataset with labels")
    if by not in names:
        choices = [CLASS] * bool(dataset.classes) + names
        known = f"choose from {', '.join(choices)}" if choices else "the dataset has no labels"
        raise UsageError(f"by: unknown condition {by!r}; {known}")
    values = dataset.columns[NUMBERS][:, names.index(by)].astype(np.float64)
    intervals, place_of = cut(values, count or DEFAULT_BINS)
    found = [np.flatnonzero(place_of == k) for k in range(len(intervals))]
    filled = [(edges, ids) for edges, ids in zip(intervals, found, strict=True) if len(ids)]
    return [Bin(k, by, *edges, None, ids) for k, (edges, ids) in enumerate(filled)]


def cut(values: np.ndarray, count: int) -> tuple[list[tuple[float, float]], np.ndarray]:
    """The intervals of float64 values [N], and which of them each value is in, int64 [N]; see `split_into_bins`."""
    distinct, place_of = np.unique(values, return_inverse=True)
    if len(distinct) <= count:
        return [(value, value) for value in distinct.tolist()], place_of
    edges = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))
    intervals = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    return intervals, np.searchsorted(edges[1:-1], values, side="right")


def choose_bin_metrics(metrics: Sequence[str], by: str | None) -> list[str]:
    """The metrics of a bin: how many classes there are tells nothing of the images of one. Raises UsageError."""
    chosen = [name for name in metrics if by != CLASS or name != "modes"]
    if not chosen:
        raise UsageError("metrics: modes tells nothing of the images of one class; give others with --by class")
    return chosen


def classes_from(labels: bool, extractor: Extractor, who: str) -> ClassesFrom:
    """What tells the class of a generated image: its label, if it has one, else the classifier.

    Raises UsageError, in which `who` are the images, if neither does.
    """
    if labels:
        return "labels"
    if "labels" in extractor.gives:
        return "classifier"
    raise UsageError(
        f"by: {who}, and {extractor.name} does not tell the classes of the dataset; give --extractor classifier"
    )


def check_conditioned_on(spec: SampleSpec | None, by: str, extractor: Extractor) -> ClassesFrom | None:
    """What tells the bin of an image of G, whose samples are `spec`; None: G is asked for images of each condition.

    Raises UsageError unless G is conditioned on what the bins are made by, or the classifier tells the classes.
    """
    names = [CLASS] * bool(spec and spec.num_classes) + [one.name for one in (spec.conditions if spec else ())]
    if by == CLASS:
        return classes_from(CLASS in names, extractor, "the generator is not conditioned on 'class'")
    if by not in names:
        choices = f"choose from {', '.join(names)}" if names else "it takes no labels"
        raise UsageError(f"by: the generator is not conditioned on {by!r}; {choices}")
    return None
