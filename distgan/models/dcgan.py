"""DCGAN (Radford et al. 2016, arXiv 1511.06434): G and D for square images of 8 to 256 pixels."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.models.layers import check_choice, check_positive, fan_in, init_normal, spectral_norm
from distgan.samples import SampleSpec


def build(
    spec: SampleSpec,
    *,
    z_dim: int,
    width: int = 64,
    norm: str = "batch",
    d_norm: str | None = None,
    init: str = "dcgan",
) -> tuple[nn.Module, nn.Module]:
    """G and D, both with `width` features at half of the full resolution.

    Sizes are b * 2^n up to 256, with the base b = 4 (as in the paper), 5, 6 or 7 and n >= 1. `norm` is batch (as in the
    paper), group or none. `d_norm` is that of D: one of these, or spectral; None is the same as `norm`. `init` is dcgan
    (the paper's) or he, N(0, 2 / fan_in). Raises UsageError.
    """
    sizes = sorted(b * 2**n for b in (4, 5, 6, 7) for n in range(1, 7) if b * 2**n <= 256)
    if spec.height not in sizes:
        near = [*[s for s in sizes if s < spec.height][-1:], *[s for s in sizes if s > spec.height][:1]]
        raise UsageError(
            f"model.name: dcgan does not support {spec.height}x{spec.height} images; "
            f"`distgan shards make --size {' or '.join(map(str, near))}` resizes them"
        )
    if norm == "spectral":
        raise UsageError("model.options.norm: spectral is a norm of D only; set model.options.d_norm to spectral")
    check_choice("norm", norm, NORMS, "norm")
    check_choice("d_norm", norm if d_norm is None else d_norm, [*NORMS, "spectral"], "norm")
    check_choice("init", init, INITS, "initialization")
    check_positive(width=width)
    spectral = d_norm == "spectral"
    G = Generator(spec.height, spec.channels, spec.num_classes, z_dim, width, norm)
    D = Discriminator(spec.height, spec.channels, spec.num_classes, width, "none" if spectral else d_norm or norm)
    G, D = G.apply(INITS[init]), D.apply(INITS[init])
    return G, spectral_norm(D) if spectral else D


def features_per_resolution(size: int, width: int) -> list[int]:
    """Features at the base resolution b, at 2b, ... size/2: doubled at each halving, up to 16 times `width`."""
    doublings = int(math.log2(size / 4))
    return [width * min(16, 2**k) for k in reversed(range(doublings))]


def base_resolution(size: int) -> int:
    """4, 5, 6 or 7: what is left of `size` after halving."""
    return size >> int(math.log2(size / 4))


class Generator(nn.Module):
    """z [N, z_dim] -> images [N, channels, size, size] in [-1, 1].

    A label is a one-hot vector concatenated to z (Mirza & Osindero 2014). With an embedding as long as z, trained on
    the handwritten digits, G ignored z and collapsed to one image per class.
    """

    def __init__(self, size: int, channels: int, num_classes: int, z_dim: int, width: int, norm: str) -> None:
        super().__init__()
        self.num_classes = num_classes
        bias = norm == "none"
        features = features_per_resolution(size, width)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(z_dim + num_classes, features[0], base_resolution(size), 1, 0, bias=bias),
            NORMS[norm](features[0]),
            nn.ReLU(inplace=True),
        ]
        for before, after in pairwise(features):
            layers += [
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=bias),
                NORMS[norm](after),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(features[-1], channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None:
            z = torch.cat([z, F.one_hot(labels, self.num_classes)], dim=1)
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """images [N, channels, size, size] -> logits [N]; labels by projection (Miyato & Koyama 2018)."""

    def __init__(self, size: int, channels: int, num_classes: int, width: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        features = features_per_resolution(size, width)[::-1]
        layers: list[nn.Module] = [
            nn.Conv2d(channels, features[0], 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for before, after in pairwise(features):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=bias),
                NORMS[norm](after),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(features[-1], 1, base_resolution(size), bias=False)
        self.embed = nn.Embedding(num_classes, features[-1]) if num_classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        weight = self.head.weight  # read once: under spectral norm each reading is a power iteration
        h = self.layers(images).to(weight.dtype)  # [N, features, b, b]
        with torch.autocast(images.device.type, enabled=False):  # float32 logits: half precision would saturate
            logits = (h * weight).sum((1, 2, 3))  # a convolution would use TF32 on GPUs
            if self.embed is not None:
                logits = logits + (self.embed(labels) * h.sum((2, 3))).sum(1)
        return logits


def init_dcgan(module: nn.Module) -> None:
    """Weights N(0, 0.02), scales of norms N(1, 0.02) (section 4 of the paper and its reference code)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Discriminator) and module.embed is not None:
        nn.init.normal_(module.embed.weight, 0.0, 0.02)


def init_he(module: nn.Module) -> None:
    """Weights N(0, 2 / fan_in) (He et al. 2015, arXiv 1502.01852), biases 0; norms as torch makes them."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        init_normal(module, variance=2.0)
    elif isinstance(module, Discriminator) and module.embed is not None:  # a product with as many features as the head
        nn.init.normal_(module.embed.weight, 0.0, math.sqrt(2 / fan_in(module.head)))


NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda features: nn.GroupNorm(math.gcd(8, features), features),
    "none": lambda features: nn.Identity(),
}

INITS = {
    "dcgan": init_dcgan,
    "he": init_he,
}
