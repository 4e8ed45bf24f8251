"""DCGAN: shapes, ranges, initialization from the seed alone, norms of D, float32 logits."""

from typing import Any

import pytest
import torch
from torch import nn

from distgan import models
from distgan.errors import UsageError
from distgan.models.layers import fan_in
from distgan.samples import SampleSpec


def build(**changes):
    values: dict[str, Any] = dict(size=32, channels=3, num_classes=0, z_dim=8, options={"width": 4}, seed=0)
    values |= changes
    size = values.pop("size")
    spec = SampleSpec(size, size, values.pop("channels"), values.pop("num_classes"))
    return models.build("dcgan", spec, **values)


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


@pytest.mark.parametrize("d_norm", [None, "group", "spectral"])
def test_logits_are_float32_under_autocast(d_norm):
    G, D = build(options={"width": 4, "d_norm": d_norm})
    with torch.autocast("cpu", torch.bfloat16):
        logits = D(G(torch.randn(2, 8)))
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 50}, "does not support 50x50 images; `distgan shards make --size 48x48 or 56x56` resizes them"),
        ({"size": 4}, "does not support 4x4"),
        ({"options": {"norm": "layer"}}, "unknown norm 'layer'; choose from batch, group, none"),
        ({"options": {"widht": 4}}, "model.options.widht: unknown option of dcgan; choose from width, norm"),
        ({"options": {"width": 0}}, "not a positive integer"),
        ({"options": {"norm": "spectral"}}, "spectral is a norm of D only; set model.options.d_norm to spectral"),
        ({"options": {"d_norm": "layer"}}, "unknown norm 'layer'; choose from batch, group, none, spectral"),
        ({"options": {"init": "xavier"}}, "unknown initialization 'xavier'; choose from dcgan, he"),
    ],
)
def test_unsupported_networks_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        build(**changes)


def test_z_outweighs_the_label_at_initialization():
    """If both weigh the same, G collapses to one image per class."""
    G, _ = models.build("dcgan", SampleSpec(16, 16, 1, 10), z_dim=100, options={"width": 8}, seed=0)
    z, labels = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 10
    G.eval()
    with torch.no_grad():
        over_z = G(z, torch.zeros_like(labels)).var(0).mean()
        over_labels = G(z[:1].expand(64, -1), labels).var(0).mean()
    assert 0 < 10 * over_labels < over_z


def test_d_norm_is_the_norm_of_d_alone():
    G, D = build(options={"width": 4, "norm": "batch", "d_norm": "group"})
    assert {type(m) for m in G.modules()} & {nn.BatchNorm2d, nn.GroupNorm} == {nn.BatchNorm2d}
    assert {type(m) for m in D.modules()} & {nn.BatchNorm2d, nn.GroupNorm} == {nn.GroupNorm}
    for network, same in zip(build(), build(options={"width": 4, "d_norm": "batch"}), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))


def test_each_output_of_a_transposed_convolution_sums_as_many_inputs_as_its_fan_in():
    for layer, input in (
        (nn.ConvTranspose2d(6, 1, 4, 2, 1, bias=False), torch.ones(1, 6, 8, 8)),
        (nn.ConvTranspose2d(6, 1, 4, 1, 0, bias=False), torch.ones(1, 6, 1, 1)),
    ):
        nn.init.ones_(layer.weight)
        output = layer(input)
        assert output[0, 0, output.shape[2] // 2, output.shape[3] // 2] == fan_in(layer)


def test_he_initialization_keeps_the_variance_in_both_networks():
    G, D = build(num_classes=8, z_dim=64, options={"width": 32, "norm": "none", "init": "he"})
    for layer in [m for network in (G, D) for m in network.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]:
        assert abs(layer.weight.var() * fan_in(layer) / 2 - 1) < 0.1
        assert layer.bias is None or layer.bias.abs().max() == 0
    embed = D.get_parameter("embed.weight")
    assert embed.shape[1] == 128 and abs(embed.var() * 128 * 4 * 4 / 2 - 1) < 0.2
    with torch.no_grad():
        before_tanh = G.get_submodule("layers.0")(torch.randn(16, 72, 1, 1))
        assert 1 < before_tanh.var() < 3


def test_spectral_norm_sets_the_largest_singular_value_of_every_weight_to_one():
    _, D = build(num_classes=4, options={"width": 8, "d_norm": "spectral", "init": "he"})
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 3])
    with torch.no_grad():
        for _ in range(20):
            D(images, labels)
    D.eval()
    layers = [m for m in D.modules() if isinstance(m, (nn.Conv2d, nn.Embedding))]
    assert len(layers) == 5
    for layer in layers:
        assert abs(torch.linalg.svdvals(layer.weight.flatten(1))[0] - 1) < 0.02
    logits = D(images, labels)
    with torch.no_grad():
        for parameter in D.parameters():
            parameter.mul_(10)
    torch.testing.assert_close(D(images, labels), logits)
