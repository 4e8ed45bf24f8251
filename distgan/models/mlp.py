"""A multilayer perceptron: G and D for points of two dimensions and for tiny images."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from distgan.models.labels import embed_labels, init_embedding, label_columns
from distgan.models.layers import check_choice, check_positive, fan_in, init_normal
from distgan.samples import SampleSpec


def build(
    spec: SampleSpec,
    *,
    z_dim: int,
    width: int = 128,
    layers: int = 3,
    init: str = "he",
) -> tuple[nn.Module, nn.Module]:
    """G and D of `layers` hidden layers of `width` features, for any size.

    A point of two dimensions is an image of 2 channels and 1x1 pixels. `init` is he, N(0, 2 / fan_in), or torch, the
    default of nn.Linear. Raises UsageError.
    """
    check_positive(width=width, layers=layers)
    check_choice("init", init, INITS, "initialization")
    hidden = [width] * layers
    G = Generator(spec, [z_dim + spec.label_width, *hidden])
    D = Discriminator(spec, [math.prod(spec.shape), *hidden])
    return G.apply(INITS[init]), D.apply(INITS[init])


def hidden_layers(features: list[int]) -> nn.Sequential:
    """[N, features[0]] -> [N, features[-1]]"""
    pairs = pairwise(features)
    return nn.Sequential(*[m for pair in pairs for m in (nn.Linear(*pair), nn.LeakyReLU(0.2, inplace=True))])


class Generator(nn.Module):
    """z [N, z_dim] -> images [N, *spec.shape]; a label, its class as a one-hot vector, is concatenated to z.

    The output is linear, not squashed by tanh: points may lie anywhere.
    """

    def __init__(self, spec: SampleSpec, features: list[int]) -> None:
        super().__init__()
        self.spec = spec
        self.layers = hidden_layers(features)
        self.output = nn.Linear(features[-1], math.prod(spec.shape))

    @property
    def z_weights(self) -> Tensor:
        """The part of the first layer's weights that z meets; labels meet the rest."""
        weight = self.layers[0].weight  # [width, z_dim + label_width]
        assert isinstance(weight, Tensor)
        return weight[:, : weight.shape[1] - self.spec.label_width]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is not None:
            z = torch.cat([z, label_columns(labels, self.spec)], dim=1)
        return self.output(self.layers(z)).unflatten(1, self.spec.shape)


class Discriminator(nn.Module):
    """images [N, *spec.shape] -> logits [N]; labels by projection (Miyato & Koyama 2018)."""

    def __init__(self, spec: SampleSpec, features: list[int]) -> None:
        super().__init__()
        self.layers = hidden_layers(features)
        self.head = nn.Linear(features[-1], 1)
        self.embed = embed_labels(spec, features[-1])

    @property
    def layers_from_image(self) -> list[nn.Module]:
        """The hidden layers in their order."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        h = self.layers(images.flatten(1)).to(self.head.weight.dtype)  # [N, width]
        with torch.autocast(images.device.type, enabled=False):  # float32 logits, as in dcgan
            logits = (h * self.head.weight).sum(1) + self.head.bias
            if self.embed is not None:
                logits = logits + (self.embed(labels) * h).sum(1)
        return logits


def init_he(module: nn.Module) -> None:
    """Weights N(0, 2 / fan_in) (He et al. 2015, arXiv 1502.01852), biases 0."""
    if isinstance(module, nn.Linear):
        init_normal(module, variance=2.0)
    elif isinstance(module, Discriminator) and module.embed is not None:
        init_embedding(module.embed, (2 / fan_in(module.head)) ** 0.5)


INITS = {
    "he": init_he,
    "torch": lambda module: None,
}
