"""The discriminator of stylegan2: residual or plain blocks, and the standard deviation of a group of images."""

import math

import torch
from torch import Tensor, nn

from distgan.models.equalized import EqualizedConv2d, EqualizedLinear, scaled_leaky_relu
from distgan.models.stylegan2_layers import HALF_RESOLUTIONS, Mapping, full_precision, to_autocast
from distgan.samples import SampleSpec
from distgan.sizes import Size


def append_deviation(x: Tensor, group: int) -> Tensor:
    """x [N, C, H, W] -> [N, C + 1, H, W], with the standard deviation of each group of images as one more channel.

    Rows [k group, (k + 1) group) are a group, rows that are left over a smaller one. The deviation of each feature over
    the images, averaged over all features (Karras et al. 2018, 1710.10196, section 3).
    """
    deviations = []
    for images in x.split(group):
        deviation = (images.var(0, correction=0) + 1e-8).sqrt().mean()
        deviations.append(deviation.expand(len(images), 1, *x.shape[2:]))
    return torch.cat([x, torch.cat(deviations)], 1)


class Block(nn.Module):
    """[N, inputs, 2H, 2W] -> [N, outputs, H, W]: two convolutions; with `residual` averaged with a linear map of x."""

    def __init__(self, inputs: int, outputs: int, residual: bool, clamp: float | None) -> None:
        super().__init__()
        self.conv0 = EqualizedConv2d(inputs, inputs, 3)
        self.conv1 = EqualizedConv2d(inputs, outputs, 3, down=True)
        self.skip = EqualizedConv2d(inputs, outputs, 1, bias=False, down=True) if residual else None
        self.clamp = clamp

    def forward(self, x: Tensor) -> Tensor:
        y = scaled_leaky_relu(self.conv0(x), self.clamp)
        y = scaled_leaky_relu(self.conv1(y), self.clamp)
        return y if self.skip is None else (y + self.skip(x)) * math.sqrt(0.5)


class Discriminator(nn.Module):
    """images [N, *spec.shape] and labels -> logits [N], in float32 under autocast.

    Karras et al. 2020 (1912.04958), config F; plain, as for CIFAR-10 (2006.06676), without the skips. With labels the
    logit is the product with a vector that the label is mapped to, over the root of its length (a projection, Miyato &
    Koyama 2018, without their unconditional term).
    """

    def __init__(
        self,
        spec: SampleSpec,
        base: Size,
        channels: list[int],
        *,
        group: int,
        residual: bool,
        mapping_layers: int,
        clamp: float | None,
    ) -> None:
        """`channels` are those at the base, at twice the base, ..., at the images' size."""
        super().__init__()
        self.minibatch_group = group
        """Consecutive images of a minibatch whose standard deviation D sees; 0 or 1: it sees none."""
        self.clamp = clamp
        self.from_image = EqualizedConv2d(spec.channels, channels[-1], 1)
        pairs = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.blocks = nn.ModuleList([Block(a, b, residual, clamp) for a, b in pairs])
        width = channels[0]
        self.conv = EqualizedConv2d(width + (group > 1), width, 3)
        self.linear = EqualizedLinear(width * base.height * base.width, width)
        self.output = EqualizedLinear(width, width if spec.conditional else 1)
        self.map = Mapping(spec, 0, width, mapping_layers) if spec.conditional else None

    @property
    def layers_from_image(self) -> list[nn.Module]:
        """The layers from the image on, without the logits: from_image, the convolutions of each block, ..."""
        convolutions = [layer for block in self.blocks for layer in block.children()]
        return [self.from_image, *convolutions, self.conv, self.linear]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        x = scaled_leaky_relu(self.from_image(to_autocast(images)), self.clamp)
        for block in self.blocks[:HALF_RESOLUTIONS]:
            x = block(x)
        with full_precision(images):
            x = x.to(self.linear.weight.dtype)
            for block in self.blocks[HALF_RESOLUTIONS:]:
                x = block(x)
            return self.logits(x, labels)

    def logits(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """[N] of features [N, width, *base]."""
        if self.minibatch_group > 1:
            x = append_deviation(x, self.minibatch_group)
        x = scaled_leaky_relu(self.conv(x), self.clamp)
        x = self.output(scaled_leaky_relu(self.linear(x.flatten(1))))
        if self.map is None:
            return x.squeeze(1)
        return (x * self.map(None, labels)).sum(1) / math.sqrt(x.shape[1])
