"""How far images are from others, with gradients: by the features of a network (LPIPS), or by their pixels."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from distgan.errors import UsageError
from distgan.evaluation.classifier import load_classifier
from distgan.evaluation.features import load_efficientnet
from distgan.frozen.precision import full_float32
from distgan.samples import SampleSpec

EPS = 1e-10
"""Added to the squared norm of a place's features."""
PIXELS = "pixels"
EFFICIENTNET = "efficientnet-lite0"
CHOICES = f"{PIXELS}, {EFFICIENTNET}, or the .safetensors file of a classifier of `distgan evaluate --train_extractor`"


class Distance(NamedTuple):
    """A distance of images, as the sum over maps of the squared differences in each place, averaged over places."""

    name: str
    maps: Callable[[Tensor], Sequence[Tensor]]
    """Images float32 [N, C, H, W] in [-1, 1] -> their maps [N, F, h, w], with gradients."""

    def features(self, images: Tensor) -> list[Tensor]:
        """The maps of images, in full float32."""
        with full_float32():
            return list(self.maps(images))

    def between(self, maps: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
        """The distances [N] of images from others, by the maps of both."""
        each = [(a - b).square().sum(1).mean((1, 2)) for a, b in zip(maps, others, strict=True)]
        return torch.stack(each).sum(0)


def normalized(maps: Sequence[Tensor]) -> list[Tensor]:
    """The features of each place over their norm: Zhang et al. 2018 (arXiv 1801.03924), equation 1, with weights 1."""
    return [each * (each.square().sum(1, keepdim=True) + EPS).rsqrt() for each in maps]


def pixel_maps(images: Tensor) -> list[Tensor]:
    """The images, scaled so that the distance is the mean squared error."""
    return [images / math.sqrt(images.shape[1])]


def open_distance(name: str, spec: SampleSpec, device: torch.device | str) -> Distance:
    """`pixels`, `efficientnet-lite0`, or a classifier's file, for images of `spec`.

    Raises UsageError, which names `extractor`, for another, and for one that does not take such images.
    """
    if name == PIXELS:
        return Distance(name, pixel_maps)
    if name == EFFICIENTNET:
        return open_efficientnet(spec, device)
    if Path(name).suffix == ".safetensors":
        return open_classifier(Path(name), spec, device)
    raise UsageError(f"extractor: {name!r} measures no distance of images; choose from {CHOICES}")


def open_efficientnet(spec: SampleSpec, device: torch.device | str) -> Distance:
    """By the maps of EfficientNet-Lite0, of images resized to 224x224. Raises UsageError."""
    if not spec.is_8bit:
        raise UsageError(f"extractor: {EFFICIENTNET} takes 8-bit grey or RGB images, not {spec}; take {PIXELS}")
    try:
        network = load_efficientnet()
    except ImportError as error:
        raise UsageError(
            f"extractor: {EFFICIENTNET} needs {error.name}; pip install 'distgan[features]', or take {PIXELS}"
        ) from None
    network.eval().requires_grad_(False).to(device)
    return Distance(EFFICIENTNET, lambda images: normalized(network.maps((images + 1) * 127.5)))


def open_classifier(path: Path, spec: SampleSpec, device: torch.device | str) -> Distance:
    """By the maps of a classifier. Raises UsageError."""
    network, info = load_classifier(path)
    if not info.spec.same_images(spec):
        raise UsageError(
            f"extractor: {path} takes images {info.spec}, and the generator makes {spec.unconditional()}; take "
            f"{PIXELS}, or a classifier of such images"
        )
    network.to(device)
    return Distance(f"classifier {path.name}", lambda images: normalized(network.maps(images)))
