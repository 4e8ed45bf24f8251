"""DCGAN (Radford et al. 2016, arXiv 1511.06434): G and D for square images of 8, 16, ... 256 pixels."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan import UsageError


def build(
    *, size: int, channels: int, classes: int, latent: int, width: int = 64, norm: str = "batch"
) -> tuple[nn.Module, nn.Module]:
    """The generator and the discriminator, both with `width` feature maps at half of the full size.

    `norm` is batch (the paper's), group or none. Raises UsageError for a size that is not 4 * 2^k.
    """
    if size < 8 or size > 256 or size & (size - 1):
        raise UsageError(f"model dcgan: no network for {size}x{size} images; sizes are 8, 16, 32, 64, 128, 256")
    if not isinstance(norm, str) or norm not in NORMS:
        raise UsageError(f"model.options.norm: there is no {norm!r}; the norms are {', '.join(NORMS)}")
    if not isinstance(width, int) or width < 1:
        raise UsageError(f"model.options.width: {width!r} is not a positive whole number")
    G = Generator(size, channels, classes, latent, width, norm)
    D = Discriminator(size, channels, classes, width, norm)
    return G.apply(initialise), D.apply(initialise)


def maps(size: int, width: int) -> list[int]:
    """Feature maps at 4x4, 8x8, ... size/2: doubled at each halving of the image, up to 16 times `width`."""
    return [width * min(16, size // (2 * resolution)) for resolution in resolutions(size)]


def resolutions(size: int) -> list[int]:
    return [4 * 2**k for k in range(int(math.log2(size)) - 2)]


class Generator(nn.Module):
    """z [N, latent] -> images [N, channels, size, size] in [-1, 1].

    A label is a one-hot vector beside z (Mirza & Osindero 2014). An embedding there, as long as z, is what G listens to
    from the start: on the handwritten digits it then drew one image a class, whatever the z.
    """

    def __init__(self, size: int, channels: int, classes: int, latent: int, width: int, norm: str) -> None:
        super().__init__()
        self.classes = classes
        bias = norm == "none"
        at = maps(size, width)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(latent + classes, at[0], 4, 1, 0, bias=bias),
            NORMS[norm](at[0]),
            nn.ReLU(inplace=True),
        ]
        for before, after in zip(at, at[1:], strict=False):
            layers += [
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=bias),
                NORMS[norm](after),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.ConvTranspose2d(at[-1], channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None:
            z = torch.cat([z, F.one_hot(labels, self.classes)], dim=1)
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """images [N, channels, size, size] -> logits [N]; a label adds a projection (Miyato & Koyama 2018)."""

    def __init__(self, size: int, channels: int, classes: int, width: int, norm: str) -> None:
        super().__init__()
        bias = norm == "none"
        at = maps(size, width)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(channels, at[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for before, after in zip(at, at[1:], strict=False):
            layers += [
                nn.Conv2d(before, after, 4, 2, 1, bias=bias),
                NORMS[norm](after),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(at[-1], 1, 4, 1, 0, bias=False)
        self.embed = nn.Embedding(classes, at[-1]) if classes else None

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.layers(images).to(self.head.weight.dtype)  # [N, maps, 4, 4]
        with torch.autocast(images.device.type, enabled=False):  # logits in full precision: half would saturate
            logits = self.head(h).flatten()
            if self.embed is not None:
                logits = logits + (self.embed(labels) * h.sum((2, 3))).sum(1)
        return logits


def initialise(module: nn.Module) -> None:
    """Weights N(0, 0.02), norms' scales N(1, 0.02) (section 4 of the paper and its reference code)."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Discriminator) and module.embed is not None:
        nn.init.normal_(module.embed.weight, 0.0, 0.02)


NORMS = {
    "batch": nn.BatchNorm2d,
    "group": lambda maps: nn.GroupNorm(math.gcd(8, maps), maps),
    "none": lambda maps: nn.Identity(),
}
