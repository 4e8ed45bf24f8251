"""R3GAN: the paper's numbers of parameters, its initialization, the precision of each stage."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from distgan import models
from distgan.errors import UsageError
from distgan.models.r3gan import ResidualBlock
from distgan.samples import SampleSpec


def build(**changes):
    options = {"widths": [32, 32, 24, 16], "group_width": 16}
    values: dict[str, Any] = dict(size=32, channels=3, num_classes=0, z_dim=8, options=options, seed=0)
    values |= changes
    size = values.pop("size")
    spec = SampleSpec(size, size, values.pop("channels"), values.pop("num_classes"))
    return models.build("r3gan", spec, **values)


@pytest.mark.parametrize(
    ("size", "classes", "options", "millions"),
    [
        (32, 0, {}, (20.73, 20.68)),  # StackedMNIST
        (32, 10, {}, (20.78, 21.28)),  # CIFAR-10, with labels
        (64, 0, {}, (22.43, 22.38)),  # FFHQ-64
        (256, 0, {}, (23.06, 23.01)),  # FFHQ-256
        (32, 1000, {"widths": [1536] * 4, "group_width": 32}, (82.91, 86.55)),  # ImageNet-32
        (64, 1000, {"widths": [1536] * 5, "group_width": 32}, (103.57, 107.21)),  # ImageNet-64
    ],
)
def test_the_numbers_of_parameters_are_the_papers(size, classes, options, millions):
    with torch.device("meta"):
        networks = build(size=size, num_classes=classes, z_dim=64, options=options)
    assert tuple(round(models.count_parameters(network) / 1e6, 2) for network in networks) == millions


def test_every_block_is_the_identity_at_initialization():
    G, D = build()
    blocks = [module for network in (G, D) for module in network.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 2 * 4 * 2
    for block in blocks:
        x = torch.randn(2, block.get_parameter("layers.0.weight").shape[1], 8, 8)
        assert torch.equal(block(x), x)
        nn.init.ones_(block.get_parameter("layers.4.weight"))
        assert not torch.allclose(block(x), x)


def test_both_networks_are_linear_at_initialization():
    G, D = build()
    for network, a, b in ((G, *torch.randn(2, 3, 8)), (D, *torch.randn(2, 3, 3, 32, 32))):
        torch.testing.assert_close(network(a + 2 * b), network(a) + 2 * network(b), rtol=1e-4, atol=1e-5)


def test_the_variance_of_the_weights():
    G, D = build(num_classes=10, options={"widths": [256, 256, 128], "blocks": 3}, size=16, z_dim=64)
    gain = 2 / 1.04 / math.sqrt(3 * 3)
    expected = {
        "lowest.0.layers.0.weight": gain / 256,
        "stages.1.1.2.layers.2.weight": gain / (16 * 9),
        "stages.1.0.map.weight": 1 / 256,
        "linear.weight": 1 / 128,
        "basis": 1,
        "embed.weight": 1 / 10,
    }
    expected_D = {
        "lowest.2.layers.0.weight": gain / 256,
        "depthwise.weight": 1 / 16,
        "head.weight": 1 / 256,
        "embed.weight": 1 / 256 / 10,
    }
    for network, variances in ((G, expected), (D, expected_D)):
        for name, variance in variances.items():
            assert abs(network.get_parameter(name).var() / variance - 1) < 0.12, name
        biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
        assert len(biases) == 2 * 9 and all(not bias.any() for bias in biases)


def test_z_outweighs_the_label_at_initialization():
    """If both weigh the same, G collapses to one image per class."""
    G, _ = build(num_classes=10, z_dim=64)
    z, labels = torch.randn(64, 64), torch.arange(64) % 10
    with torch.no_grad():
        over_z = G(z, torch.zeros_like(labels)).var(0).mean()
        over_labels = G(z[:1].expand(64, -1), labels).var(0).mean()
    assert 0 < 5 * over_labels < over_z


def test_the_lowest_resolution_is_float32_under_autocast_and_the_others_are_not():
    G, D = build()
    dtypes: dict[int, set] = {}
    for network in (G, D):
        for module in network.modules():
            if isinstance(module, ResidualBlock):
                module.register_forward_hook(lambda _, x, y: dtypes.setdefault(y.shape[2], set()).add(y.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        logits = D(G(torch.randn(2, 8)).float())
    assert logits.dtype == torch.float32
    low = {torch.bfloat16}
    assert dtypes == {4: {torch.float32}, 8: low, 16: low, 32: low}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 50}, "does not support 50x50 images; `distgan shards make --size 48x48 or 56x56` resizes them"),
        (
            {"options": {"widths": [32, 32]}},
            r"widths: \[32, 32\] must be 4 numbers of features, for 4x4, 8x8, ... 32x32",
        ),
        ({"options": {"widths": 64}}, "widths: 64 must be 4 numbers"),
        ({"options": {"widths": [32, 32, 32, 0]}}, "widths: 0 is not a positive integer"),
        ({"options": {"widths": [32, 32, 32, 20]}}, r"2 \(expansion\) times 20 features cannot be divided .* of 16"),
        ({"options": {"blocks": 0}}, "blocks: 0 is not a positive integer"),
    ],
)
def test_unsupported_networks_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        build(**changes)
