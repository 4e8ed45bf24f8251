"""Networks of the extractors: EfficientNet-Lite0, a classifier, and pooled pixels."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distgan.evaluation.classifier import Classifier
from distgan.samples import SampleSpec

CELLS = 8
"""Rows and columns of cells of pooled pixels, at most."""
MAX_POOLED = 1024
"""Features of pooled pixels, at most."""


class EfficientNetFeatures(nn.Module):
    """EfficientNet-Lite0 trained on ImageNet: 1280 features, no logits."""

    num_features = 1280
    side = 224

    def __init__(self, file: Path) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        return self.network.extract_features(self.resize(images)).mean((2, 3)), None

    def resize(self, images: Tensor) -> Tensor:
        """Images [N, 1 or 3, H, W] of values from 0 to 255 as the network takes them, float [N, 3, side, side]."""
        x = images.float().expand(-1, 3, -1, -1)
        x = F.interpolate(x, size=(self.side, self.side), mode="bicubic", antialias=True).clamp(0, 255)
        return (x - 127) / 128

    def maps(self, images: Tensor) -> list[Tensor]:
        """The last features of each resolution, [N, F, h, w] with h from 112 down to 7, of images as `resize` has."""
        network: Any = self.network
        x = network._swish(network._bn0(network._conv_stem(self.resize(images))))
        maps = [x]
        for block in network._blocks:
            x = block(x)
            if x.shape[2] < maps[-1].shape[2]:
                maps.append(x)
            else:
                maps[-1] = x
        return maps


class ClassifierFeatures(nn.Module):
    """A classifier on whole images, or on one channel at a time, whose features are then concatenated."""

    def __init__(self, classifier: Classifier, per_channel: bool) -> None:
        super().__init__()
        self.classifier = classifier
        self.per_channel = per_channel

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        units = images.shape[1] if self.per_channel else 1
        features, logits = self.classifier(images.reshape(len(images) * units, -1, *images.shape[2:]))
        return features.reshape(len(images), -1), logits.reshape(len(images), units, -1)


class PixelFeatures(nn.Module):
    """Pixels in [-1, 1], averaged over s x s cells in each channel, no logits: the features are C * s * s.

    s is the largest number up to 8 for which there are no more than 1,024 features; a side with fewer pixels than s has
    a cell for each. Cells are those of adaptive average pooling: where s does not divide a side, neighbours overlap by
    a pixel.
    """

    def __init__(self, spec: SampleSpec) -> None:
        super().__init__()
        self.cells = pooled_cells(spec)
        self.num_features = spec.channels * self.cells[0] * self.cells[1]

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        x = images.float() / 127.5 - 1 if images.dtype == torch.uint8 else images
        return F.adaptive_avg_pool2d(x, self.cells).flatten(1), None


def pooled_cells(spec: SampleSpec) -> tuple[int, int]:
    """Rows and columns of the cells that images are pooled to: see PixelFeatures."""
    sides = ((min(side, spec.height), min(side, spec.width)) for side in range(CELLS, 0, -1))
    return next((rows, columns) for rows, columns in sides if spec.channels * rows * columns <= MAX_POOLED)
