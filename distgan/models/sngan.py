"""SNGAN's residual networks (Miyato et al. 2018, arXiv 1802.05957, appendix B.4) for 32 to 224 pixels.

As the authors' Chainer code, with three small differences: D's last layer has a bias at 32 pixels too, BatchNorm's eps
is 1e-5 (theirs 2e-5), and torch's spectral norm updates u before v, half a step of the power iteration later.
"""

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.models.labels import embed_labels, init_constant, init_embedding
from distgan.models.layers import check_positive, resolutions, spectral_norm
from distgan.samples import SampleSpec
from distgan.sizes import SNGAN_HALVINGS, Size


class Shape(NamedTuple):
    """Features, in multiples of `width`."""

    width: int
    """The default."""
    G: tuple[int, ...]
    """At 4x4, 8x8, ... pixels, of images of other bases at each doubling."""
    D_down: tuple[int, ...]
    """Of the blocks of D that halve the resolution."""
    D_plain: tuple[int, ...]
    """Of those that follow."""


SHAPES = {
    3: Shape(128, G=(2, 2, 2, 2), D_down=(1, 1), D_plain=(1, 1)),
    4: Shape(64, G=(16, 8, 4, 2, 1), D_down=(1, 2, 4, 8, 16), D_plain=()),
    5: Shape(64, G=(16, 16, 8, 4, 2, 1), D_down=(1, 2, 4, 8, 16), D_plain=(16,)),
}
"""By halvings: the CIFAR-10 networks, and those for ImageNet of Miyato & Koyama 2018 (arXiv 1802.05637)."""


def build(spec: SampleSpec, *, z_dim: int, width: int | None = None) -> tuple[nn.Module, nn.Module]:
    """G with BatchNorm, and D with spectral norm in every layer and `width` features at half of the full resolution.

    None: the `width` of the papers, see `SHAPES`. With labels, BatchNorm is conditional and D has a projection, as in
    Miyato & Koyama. Sizes are (a, b) * 2^n with n = 3, 4 or 5 (in the papers 32, 64 and 128 pixels), the shorter side
    of the base (a, b) being 4, 5, 6 or 7 pixels and the longer side of the images at most 1,024. Raises UsageError.
    """
    reason = "the papers have networks for a shorter side of 32 to 224 pixels"
    sizes = resolutions("sngan", spec, SNGAN_HALVINGS, reason)
    shape = SHAPES[len(sizes) - 1]
    width = shape.width if width is None else width
    check_positive(width=width)
    G = Generator(spec, sizes[0], z_dim, [width * k for k in shape.G])
    D = Discriminator(spec, [width * k for k in shape.D_down], [width * k for k in shape.D_plain])
    return G, spectral_norm(D)


def init_xavier(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> None:
    """Weights uniform of variance 2 gain^2 / (fan_in + fan_out), biases 0 (Glorot & Bengio 2010); in place."""
    nn.init.xavier_uniform_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)


def convolution(before: int, after: int, kernel: int = 3, gain: float = math.sqrt(2)) -> nn.Conv2d:
    layer = nn.Conv2d(before, after, kernel, padding=kernel // 2)
    init_xavier(layer, gain)
    return layer


def shortcut(before: int, after: int) -> nn.Conv2d:
    return convolution(before, after, kernel=1, gain=1.0)


class ConditionalBatchNorm2d(nn.Module):
    """BatchNorm2d of [N, C, H, W] with a scale and a shift for each label (Dumoulin et al. 2017, arXiv 1610.07629).

    They start at 1 and 0. Without labels they are the same for all images.
    """

    def __init__(self, features: int, spec: SampleSpec) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(features, affine=not spec.conditional)
        self.scale = embed_labels(spec, features)
        self.shift = embed_labels(spec, features)
        if self.scale is not None and self.shift is not None:
            init_constant(self.scale, 1.0)
            init_constant(self.shift, 0.0)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.scale is None or self.shift is None:
            return x
        scale, shift = (embed(labels).to(x.dtype)[:, :, None, None] for embed in (self.scale, self.shift))
        return torch.addcmul(shift, x, scale)


class UpBlock(nn.Module):
    """[N, before, H, W] -> [N, after, 2H, 2W]: BatchNorm, ReLU, nearest upsampling, 3x3, BatchNorm, ReLU, 3x3."""

    def __init__(self, before: int, after: int, spec: SampleSpec) -> None:
        super().__init__()
        self.norm1 = ConditionalBatchNorm2d(before, spec)
        self.conv1 = convolution(before, after)
        self.norm2 = ConditionalBatchNorm2d(after, spec)
        self.conv2 = convolution(after, after)
        self.shortcut = shortcut(before, after)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        h = F.relu(self.norm1(x, labels))
        h = self.conv1(F.interpolate(h, scale_factor=2.0))
        h = self.conv2(F.relu(self.norm2(h, labels)))
        return h + F.interpolate(self.shortcut(x), scale_factor=2.0)  # the same as 1x1 after upsampling, at a quarter


def pool(x: Tensor) -> Tensor:
    """[N, C, 2H, 2W] -> [N, C, H, W]: means of 2x2 pixels; an odd last row or column by itself, not dropped.

    Compiled, `ceil_mode` of `avg_pool2d` would have a wrong derivative at that row, without an error (torch 2.15).
    """
    if x.shape[2] % 2:
        x = torch.cat([x, x[:, :, -1:]], dim=2)
    if x.shape[3] % 2:
        x = torch.cat([x, x[:, :, :, -1:]], dim=3)
    return F.avg_pool2d(x, 2)


class DownBlock(nn.Module):
    """[N, before, 2H, 2W] -> [N, after, H, W]: ReLU (not in the first block), 3x3, ReLU, 3x3, average pooling.

    The networks for 64 pixels halve once more than the base: there, a base of an odd side is rounded up.
    """

    def __init__(self, before: int, after: int, first: bool) -> None:
        super().__init__()
        self.first = first
        hidden = after if first else before
        self.conv1 = convolution(before, hidden)
        self.conv2 = convolution(hidden, after)
        self.shortcut = shortcut(before, after)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        return pool(h) + self.shortcut(pool(x))  # the same as 1x1 before pooling, at a quarter


class PlainBlock(nn.Module):
    """x + 3x3(ReLU(3x3(ReLU(x))))"""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = convolution(features, features)
        self.conv2 = convolution(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Generator(nn.Module):
    """z [N, z_dim], labels or None -> images [N, *spec.shape] in [-1, 1]."""

    def __init__(self, spec: SampleSpec, base: Size, z_dim: int, features: list[int]) -> None:
        super().__init__()
        self.base = base
        self.linear = nn.Linear(z_dim, features[0] * base.height * base.width)
        init_xavier(self.linear)
        self.blocks = nn.ModuleList([UpBlock(before, after, spec) for before, after in pairwise(features)])
        self.norm = nn.BatchNorm2d(features[-1])
        self.to_images = convolution(features[-1], spec.channels, gain=1.0)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.linear(z).unflatten(1, (-1, *self.base))
        for block in self.blocks:
            x = block(x, labels)
        return torch.tanh(self.to_images(F.relu(self.norm(x))))


class Discriminator(nn.Module):
    """images [N, *spec.shape] -> logits [N], from features summed over the pixels; labels by projection."""

    def __init__(self, spec: SampleSpec, down: list[int], plain: list[int]) -> None:
        super().__init__()
        blocks = [DownBlock(a, b, first=i == 0) for i, (a, b) in enumerate(pairwise([spec.channels, *down]))]
        self.blocks = nn.Sequential(*blocks, *[PlainBlock(features) for features in plain])
        features = [*down, *plain][-1]
        self.head = nn.Linear(features, 1)
        init_xavier(self.head)
        self.embed = embed_labels(spec, features)
        if isinstance(self.embed, nn.Embedding):
            nn.init.xavier_uniform_(self.embed.weight)
        elif self.embed is not None:
            init_embedding(self.embed, math.sqrt(2 / (spec.label_width + features)))  # the variance of Xavier's

    @property
    def layers_from_image(self) -> list[nn.Module]:
        """The residual blocks in their order."""
        return list(self.blocks)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        h = F.relu(self.blocks(images)).to(self.head.bias.dtype)
        with torch.autocast(images.device.type, enabled=False):  # float32 logits: half precision would saturate
            h = h.sum((2, 3))
            logits = (h * self.head.weight).sum(1) + self.head.bias  # a matrix product would use TF32 on GPUs
            if self.embed is not None:
                logits = logits + (self.embed(labels) * h).sum(1)
        return logits
