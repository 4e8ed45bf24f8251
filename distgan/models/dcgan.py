"""DCGAN (Radford et al. 2016, arXiv 1511.06434): G and D for images of 8 to 1,024 pixels."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.models.labels import embed_labels, init_embedding, label_columns
from distgan.models.layers import check_choice, check_positive, fan_in, init_normal, resolutions, spectral_norm
from distgan.samples import SampleSpec
from distgan.sizes import DCGAN_HALVINGS, Size


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

    Sizes are (a, b) * 2^n up to 1,024 with n >= 1, the shorter side of the base (a, b) being 4 (as in the paper), 5, 6
    or 7 pixels. `norm` is batch (as in the paper), group or none. `d_norm` is that of D: one of these, or spectral;
    None is the same as `norm`. `init` is dcgan (the paper's) or he, N(0, 2 / fan_in). Raises UsageError.
    """
    base, *above = resolutions("dcgan", spec, DCGAN_HALVINGS)
    if norm == "spectral":
        raise UsageError("model.options.norm: spectral is a norm of D only; set model.options.d_norm to spectral")
    check_choice("norm", norm, NORMS, "norm")
    check_choice("d_norm", norm if d_norm is None else d_norm, [*NORMS, "spectral"], "norm")
    check_choice("init", init, INITS, "initialization")
    check_positive(width=width)
    spectral = d_norm == "spectral"
    features = features_per_resolution(len(above), width)
    G = Generator(spec, base, features, z_dim, norm)
    D = Discriminator(spec, base, features[::-1], "none" if spectral else d_norm or norm)
    G, D = G.apply(INITS[init]), D.apply(INITS[init])
    return G, spectral_norm(D) if spectral else D


def features_per_resolution(doublings: int, width: int) -> list[int]:
    """Features at the base, at twice the base, ... half of the size: double at each halving, up to 16 times `width`."""
    return [width * min(16, 2**k) for k in reversed(range(doublings))]


class Generator(nn.Module):
    """z [N, z_dim] -> images [N, *spec.shape] in [-1, 1].

    A label, its class as a one-hot vector, is concatenated to z (Mirza & Osindero 2014). With an embedding as long as
    z, trained on the handwritten digits, G ignored z and collapsed to one image per class.
    """

    def __init__(self, spec: SampleSpec, base: Size, features: list[int], z_dim: int, norm: str) -> None:
        super().__init__()
        self.spec = spec
        bias = norm == "none"
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(z_dim + spec.label_width, features[0], base, 1, 0, bias=bias),
            NORMS[norm](features[0]),
            nn.ReLU(inplace=True),
        ]
        for before, after in pairwise(features):
            layers += [
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=bias),
                NORMS[norm](after),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(features[-1], spec.channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    @property
    def z_weights(self) -> Tensor:
        """The part of the first layer's weights that z meets; labels meet the rest."""
        weight = self.layers[0].weight  # [z_dim + label_width, features, *base]
        assert isinstance(weight, Tensor)
        return weight[: len(weight) - self.spec.label_width]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None:
            z = torch.cat([z, label_columns(labels, self.spec)], dim=1)
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """images [N, *spec.shape] -> logits [N]; labels by projection (Miyato & Koyama 2018)."""

    def __init__(self, spec: SampleSpec, base: Size, features: list[int], norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        layers: list[nn.Module] = [
            nn.Conv2d(spec.channels, features[0], 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for before, after in pairwise(features):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=bias),
                NORMS[norm](after),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(features[-1], 1, base, bias=False)
        self.embed = embed_labels(spec, features[-1])

    @property
    def layers_from_image(self) -> list[nn.Module]:
        """The convolutions in their order, each with its norm; without the head."""
        starts = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Conv2d)]
        return [self.layers[start:end] for start, end in pairwise([*starts, len(self.layers)])]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        weight = self.head.weight  # read once: under spectral norm each reading is a power iteration
        h = self.layers(images).to(weight.dtype)  # [N, features, *base]
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
        init_embedding(module.embed, 0.02)


def init_he(module: nn.Module) -> None:
    """Weights N(0, 2 / fan_in) (He et al. 2015, arXiv 1502.01852), biases 0; norms as torch makes them."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        init_normal(module, variance=2.0)
    elif isinstance(module, Discriminator) and module.embed is not None:  # a product with as many features as the head
        init_embedding(module.embed, math.sqrt(2 / fan_in(module.head)))


NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda features: nn.GroupNorm(math.gcd(8, features), features),
    "none": lambda features: nn.Identity(),
}

INITS = {
    "dcgan": init_dcgan,
    "he": init_he,
}
