"""The multilayer perceptron: points and tiny images, labels, initialization, float32 logits."""

from typing import Any

import pytest
import torch

from distgan import models
from distgan.errors import UsageError
from distgan.samples import SampleSpec


def build(**changes):
    values: dict[str, Any] = dict(size=1, channels=2, num_classes=0, z_dim=8, options={"width": 16}, seed=0)
    values |= changes
    size = values.pop("size")
    spec = SampleSpec(size, size, values.pop("channels"), values.pop("num_classes"))
    return models.build("mlp", spec, **values)


@pytest.mark.parametrize(("size", "channels"), [(1, 2), (1, 1), (5, 3), (8, 1)])
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("layers", [1, 4])
def test_shapes(size, channels, classes, layers):
    G, D = build(size=size, channels=channels, num_classes=classes, options={"width": 16, "layers": layers})
    labels = torch.tensor([0, 2]) if classes else None
    images = G(torch.randn(2, 8), labels)
    assert images.shape == (2, channels, size, size)
    assert D(images, labels).shape == (2,)
    assert sum(p.ndim == 2 for p in G.parameters()) == layers + 1


def test_points_are_not_squashed():
    G, _ = build()
    points = G(torch.randn(4096, 8))
    assert points.abs().max() > 1.5 and 0.5 < points.std() < 2


def test_labels_change_both_networks():
    G, D = build(num_classes=4)
    z, points = torch.randn(2, 8), torch.randn(2, 2, 1, 1)
    a, b = torch.tensor([0, 1]), torch.tensor([2, 3])
    assert not torch.equal(G(z, a), G(z, b)) and not torch.equal(D(points, a), D(points, b))


@pytest.mark.parametrize(("init", "expected"), [("he", 2 / 256), ("torch", 1 / (3 * 256))])
def test_the_variance_of_the_weights(init, expected):
    G, D = build(options={"width": 256, "init": init})
    for network in (G, D):
        assert abs(network.get_parameter("layers.2.weight").var() / expected - 1) < 0.05
        assert (network.get_parameter("layers.2.bias").abs().max() == 0) == (init == "he")


def test_logits_are_float32_under_autocast():
    G, D = build()
    with torch.autocast("cpu", torch.bfloat16):
        assert D(G(torch.randn(2, 8))).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, "model.options.layers: 0 is not a positive integer"),
        ({"width": 1.5}, "model.options.width: 1.5 is not a positive integer"),
        ({"init": "kaiming"}, "model.options.init: unknown initialization 'kaiming'; choose from he, torch"),
    ],
)
def test_unsupported_options_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        build(options=options)
