"""BatchNorm's running statistics of a G whose weights are an average: estimated anew, from images that it makes."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from distgan.generators.conditions import spread
from distgan.generators.pretrained import PretrainedGenerator
from distgan.rng import rng

CHUNK = 256
"""Latents that go through G together, and are normalized together."""
SEED = 0
"""Of the latents, the classes and the conditions."""


def batchnorm_layers(G: PretrainedGenerator) -> list[_BatchNorm]:
    """Those of G that keep running statistics."""
    return [m for m in G.network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def estimate_statistics(G: PretrainedGenerator, images: int) -> None:
    """Replace BatchNorm's running statistics in G by the means over chunks of `images` generated images, of which each
    chunk is normalized by its own statistics, as minibatches are in training.

    The running statistics that an average of weights comes with are those of the last G, whose features have other
    means and variances. Classes are drawn with equal shares, conditions from the range of the training set. The same
    on every call; other layers stay in evaluation mode. (Izmailov et al. 2018, "Averaging weights leads to wider optima
    and better generalization", arXiv 1803.05407, section 3.2, does so for averages of classifiers, with training data.)
    """
    layers = batchnorm_layers(G)
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all chunks
        layer.train()
    device = next(G.network.parameters()).device
    z = G.draw(images, SEED)
    classes = rng(SEED, "classes of BatchNorm").integers(len(G.classes), size=images) if G.classes else None
    labels = G.labels(classes, spread(G.spec.conditions, images, SEED))
    for first in range(0, images, CHUNK):
        part = slice(first, first + CHUNK)
        G.network(z[part].to(device), None if labels is None else labels[part].to(device))
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
