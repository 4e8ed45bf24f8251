"""DCGAN: shapes, ranges, initialization from the seed alone, float32 logits."""

from typing import Any

import pytest
import torch

from distgan import UsageError, models


def build(**changes):
    values: dict[str, Any] = dict(size=32, channels=3, num_classes=0, z_dim=8, options={"width": 4}, seed=0)
    return models.build("dcgan", **(values | changes))


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256, 10, 28, 48])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
def test_shapes_and_range(size, channels, norm):
    G, D = build(size=size, channels=channels, options={"width": 2, "norm": norm})
    images = G(torch.randn(2, 8))
    assert images.shape == (2, channels, size, size) and images.abs().max() <= 1
    assert D(images).shape == (2,)


def test_labels_change_both_networks():
    G, D = build(num_classes=4)
    z, images = torch.randn(2, 8), torch.rand(2, 3, 32, 32)
    a, b = torch.tensor([0, 1]), torch.tensor([2, 3])
    assert not torch.equal(G(z, a), G(z, b)) and not torch.equal(D(images, a), D(images, b))


def test_the_64_pixel_network_has_the_papers_size():
    G, D = build(size=64, z_dim=100, options={"width": 64})
    assert sum(p.numel() for p in G.parameters()) == 3_576_704
    assert sum(p.numel() for p in D.parameters()) == 2_765_568
    convolution = G.get_parameter("layers.3.weight")
    assert abs(convolution.std().item() - 0.02) < 1e-3
    assert abs(D.get_parameter("layers.3.weight").mean().item() - 1) < 0.02  # a norm's scale, N(1, 0.02)


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    first = build()[0].state_dict()
    torch.manual_seed(2)
    assert all(torch.equal(first[name], value) for name, value in build()[0].state_dict().items())
    assert not torch.equal(first["layers.0.weight"], build(seed=1)[0].get_parameter("layers.0.weight"))


def test_logits_are_float32_under_autocast():
    G, D = build()
    with torch.autocast("cpu", torch.bfloat16):
        logits = D(G(torch.randn(2, 8)))
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 50}, "does not support 50x50 images; `distgan shards make --size 48 or 56` resizes them"),
        ({"size": 4}, "does not support 4x4"),
        ({"options": {"norm": "layer"}}, "unknown norm 'layer'; choose from batch, group, none"),
        ({"options": {"widht": 4}}, "model.options.widht: unknown option of dcgan; choose from width, norm"),
        ({"options": {"width": 0}}, "not a positive integer"),
    ],
)
def test_unsupported_networks_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        build(**changes)


def test_z_outweighs_the_label_at_initialization():
    """If both weigh the same, G collapses to one image per class."""
    G, _ = models.build("dcgan", size=16, channels=1, num_classes=10, z_dim=100, options={"width": 8}, seed=0)
    z, labels = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10
    G.eval()
    with torch.no_grad():
        over_z = G(z, torch.zeros_like(labels)).var(0).mean()
        over_labels = G(z[:1].expand(64, -1), labels).var(0).mean()
    assert 0 < 10 * over_labels < over_z
