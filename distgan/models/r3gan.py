"""R3GAN (Huang et al. 2024, arXiv 2501.05441): residual G and D without normalization, for 8 to 1,024 pixels."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.models.labels import LabelEmbedding, embed_labels, init_embedding
from distgan.models.layers import check_positive, init_normal, resolutions
from distgan.models.resample import downsample2x, upsample2x
from distgan.samples import SampleSpec
from distgan.sizes import R3GAN_HALVINGS, Size

WIDTHS = (768, 768, 768, 768, 384, 192, 96, 48, 24)
"""Features at 4x4, 8x8, ... 256x256 pixels (Table 9), and at 512 and 1,024 by the same rule; of bases other than 4x4,
the same at each doubling."""


def build(
    spec: SampleSpec,
    *,
    z_dim: int,
    widths: Sequence[int] | None = None,
    group_width: int = 16,
    blocks: int = 2,
    expansion: int = 2,
) -> tuple[nn.Module, nn.Module]:
    """G and D, both with `widths` features at the base, at twice the base, ... the size; None: the first of `WIDTHS`.

    Sizes are (a, b) * 2^n up to 1,024 with n >= 1, the shorter side of the base (a, b) being 4 (as in the paper), 5, 6
    or 7 pixels.

    Each resolution has `blocks` residual blocks, whose 3x3 convolution works on `expansion` times the features, in
    groups of `group_width`. The ImageNet networks of the paper have widths of 1536 and groups of 32: with these its
    numbers of parameters are met, and its 96 groups. Raises UsageError.

    Under autocast, the blocks at the base resolution, all before them in G and all after them in D stay in float32.
    (The paper keeps the three lowest resolutions of its network for 256 pixels in float32, and one for 32 and for 64
    pixels.)
    """
    check_positive(group_width=group_width, blocks=blocks, expansion=expansion)
    sizes = resolutions("r3gan", spec, R3GAN_HALVINGS)
    widths = WIDTHS[: len(sizes)] if widths is None else widths
    check_widths(widths, sizes, group_width, expansion)

    def make_blocks(features: int) -> nn.Sequential:
        depth = blocks * len(sizes)
        return nn.Sequential(
            *[ResidualBlock(features, expansion * features, group_width, depth) for _ in range(blocks)]
        )

    G = Generator(spec, sizes[0], z_dim, widths, make_blocks)
    return G, Discriminator(spec, sizes[0], widths, make_blocks)


def check_widths(widths: Sequence[int], sizes: Sequence[Size], group_width: int, expansion: int) -> None:
    """Raises UsageError."""
    if not isinstance(widths, (list, tuple)) or len(widths) != len(sizes):
        raise UsageError(
            f"model.options.widths: {widths!r} must be {len(sizes)} numbers of features, "
            f"for {sizes[0]}, {sizes[1]}, ... {sizes[-1]} pixels"
        )
    for width in widths:
        check_positive(widths=width)
        if width * expansion % group_width:
            raise UsageError(
                f"model.options.widths: {expansion} (expansion) times {width} features "
                f"cannot be divided into groups of {group_width} (group_width)"
            )


class ResidualBlock(nn.Module):
    """x + W3 a(b2 + W2 a(b1 + W1 x)), a = LeakyReLU(0.2): 1x1, 3x3 in groups, 1x1 (section 3 and appendix D).

    W1 and W2 are N(0, g^2 / fan_in) with g^2 = 2 / 1.04 / sqrt(depth), `depth` the residual blocks of the network; W3
    is 0, so that at the start the block is the identity (as in Fixup, Zhang et al. 2019, arXiv 1901.09321).
    """

    def __init__(self, features: int, hidden: int, group_width: int, depth: int) -> None:
        super().__init__()
        first = nn.Conv2d(features, hidden, 1)
        second = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden // group_width)
        last = nn.Conv2d(hidden, features, 1, bias=False)
        for layer in (first, second):
            init_normal(layer, variance=2 / (1 + 0.2**2) / math.sqrt(depth))
        nn.init.zeros_(last.weight)
        act = nn.LeakyReLU(0.2, inplace=True)
        self.layers = nn.Sequential(first, act, second, act, last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def linear_map(before: int, after: int) -> nn.Module:
    """A 1x1 convolution without bias, with weights N(0, 1 / fan_in)."""
    layer = nn.Conv2d(before, after, 1, bias=False)
    init_normal(layer, variance=1.0)
    return layer


class Upsample(nn.Module):
    """[N, before, H, W] -> [N, after, 2H, 2W]: a linear map if the features change, then bilinear interpolation."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.map = nn.Identity() if before == after else linear_map(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return upsample2x(self.map(x))


class Downsample(nn.Module):
    """[N, before, 2H, 2W] -> [N, after, H, W]: the filter [1, 3, 3, 1], then a linear map if the features change."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.map = nn.Identity() if before == after else linear_map(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(downsample2x(x))


class Generator(nn.Module):
    """z [N, z_dim] -> images [N, *spec.shape]; the output is linear, without tanh.

    A label is embedded in as many dimensions as z has, and concatenated to z.
    """

    def __init__(
        self,
        spec: SampleSpec,
        base: Size,
        z_dim: int,
        widths: Sequence[int],
        make_blocks: Callable[[int], nn.Sequential],
    ) -> None:
        super().__init__()
        self.embed = embed_labels(spec, z_dim)
        if isinstance(self.embed, LabelEmbedding):  # a label that weighs as much as z lets G ignore z
            init_embedding(self.embed, max(spec.label_width, 10) ** -0.5)
        elif self.embed is not None:
            init_embedding(self.embed, spec.num_classes**-0.5)  # a linear layer's, on one-hot vectors
        self.linear = nn.Linear(z_dim if self.embed is None else 2 * z_dim, widths[0], bias=False)
        init_normal(self.linear, variance=1.0)
        self.basis = nn.Parameter(torch.randn(1, widths[0], *base))
        self.lowest = make_blocks(widths[0])
        self.stages = nn.Sequential(*[nn.Sequential(Upsample(a, b), make_blocks(b)) for a, b in pairwise(widths)])
        self.to_images = linear_map(widths[-1], spec.channels)

    @property
    def z_weights(self) -> Tensor:
        """The part of the first layer's weights that z meets; labels meet the rest."""
        weight = self.linear.weight  # [features, z_dim], with labels [features, 2 z_dim]
        return weight if self.embed is None else weight[:, : weight.shape[1] // 2]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        device_type = z.device.type
        with torch.autocast(device_type, enabled=False):
            if self.embed is not None:
                z = torch.cat([z, self.embed(labels)], dim=1)
            x = self.lowest(self.linear(z)[:, :, None, None] * self.basis)  # [N, widths[0], *base]
        if torch.is_autocast_enabled(device_type):  # else the sums of all residual blocks would stay in float32
            x = x.to(torch.get_autocast_dtype(device_type))
        return self.to_images(self.stages(x))


class Discriminator(nn.Module):
    """images [N, *spec.shape] -> logits [N].

    With labels, the logit is the product of a vector with the label's embedding (Miyato & Koyama 2018, without their
    unconditional term).
    """

    def __init__(
        self, spec: SampleSpec, base: Size, widths: Sequence[int], make_blocks: Callable[[int], nn.Sequential]
    ) -> None:
        super().__init__()
        self.from_images = linear_map(spec.channels, widths[-1])
        pairs = pairwise(reversed(widths))
        self.stages = nn.Sequential(*[nn.Sequential(make_blocks(a), Downsample(a, b)) for a, b in pairs])
        self.lowest = make_blocks(widths[0])
        self.depthwise = nn.Conv2d(widths[0], widths[0], base, groups=widths[0], bias=False)
        self.head = nn.Linear(widths[0], widths[0] if spec.conditional else 1, bias=False)
        for layer in (self.depthwise, self.head):
            init_normal(layer, variance=1.0)
        self.embed = embed_labels(spec, widths[0])
        if self.embed is not None:  # gain 1 / sqrt(features), on one-hot vectors
            init_embedding(self.embed, (widths[0] * spec.label_width) ** -0.5)

    @property
    def layers_from_image(self) -> list[nn.Module]:
        """The first convolution, the blocks of each resolution with what halves it, and those of the base."""
        return [self.from_images, *self.stages, self.lowest]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = self.stages(self.from_images(images))
        with torch.autocast(images.device.type, enabled=False):  # float32 logits
            x = self.lowest(x.to(self.head.weight.dtype))  # [N, widths[0], *base]
            h = (x * self.depthwise.weight[:, 0]).sum((2, 3))  # the convolution, without TF32
            weight = self.head.weight if self.embed is None else self.embed(labels) @ self.head.weight
            return (h * weight).sum(1)
