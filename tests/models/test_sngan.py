"""SNGAN: the sizes of its networks, spectral norm, conditional BatchNorm, and its conversion for several processes."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from distgan import models
from distgan.distributed.batchnorm import GlobalBatchNorm2d, convert
from distgan.errors import UsageError
from distgan.models.sngan import ConditionalBatchNorm2d
from distgan.samples import SampleSpec


def build(**changes):
    values: dict[str, Any] = dict(size=32, channels=3, num_classes=0, z_dim=8, options={"width": 8}, seed=0)
    values |= changes
    size = values.pop("size")
    spec = SampleSpec(size, size, values.pop("channels"), values.pop("num_classes"))
    return models.build("sngan", spec, **values)


def test_the_cifar_networks_have_the_papers_size():
    G, D = build(z_dim=128, options={})
    block = 2 * (256 * 256 * 9 + 256) + (256 * 256 + 256) + 2 * (2 * 256)
    linear, norm, to_images = 129 * 4 * 4 * 256, 2 * 256, 256 * 9 * 3 + 3
    assert models.count_parameters(G) == linear + 3 * block + norm + to_images == 4_276_739
    conv, first = 128 * 128 * 9 + 128, (3 * 9 * 128 + 128) + (3 * 128 + 128)
    assert models.count_parameters(D) == first + conv + 2 * conv + (128 * 128 + 128) + 4 * conv + 129 == 1_053_825


@pytest.mark.parametrize(
    ("size", "g_features", "d_features"),
    [
        (32, [2, 2, 2], [1, 1, 1, 1]),  # of 128
        (64, [8, 4, 2, 1], [1, 2, 4, 8, 16]),  # of 64
        (128, [16, 8, 4, 2, 1], [1, 2, 4, 8, 16, 16]),
    ],
)
def test_the_features_of_the_blocks_are_the_papers(size, g_features, d_features):
    G, D = build(size=size, options={"width": 1})
    hidden = [d_features[0], *d_features[:-1]]  # in D as many as before the block, but for the first
    for network, first, second in ((G, g_features, g_features), (D, hidden, d_features)):
        blocks = list(network.get_submodule("blocks").children())
        assert [block.get_submodule("conv1").out_channels for block in blocks] == first
        assert [block.get_submodule("conv2").out_channels for block in blocks] == second


def test_the_variance_of_the_weights():
    G, _ = build(options={"width": 32}, num_classes=3)
    for name, gain, fans in (
        ("blocks.0.conv1.weight", 2, 2 * 64 * 9),
        ("blocks.2.shortcut.weight", 1, 2 * 64),
        ("linear.weight", 1, 8 + 1024),
        ("to_images.weight", 1, (64 + 3) * 9),
    ):
        assert abs(G.get_parameter(name).var() * fans / (2 * gain) - 1) < 0.05, name


def test_spectral_norm_sets_the_largest_singular_value_of_every_weight_to_one():
    _, D = build(num_classes=4)
    with torch.no_grad():
        for _ in range(30):
            D(torch.randn(2, 3, 32, 32), torch.tensor([0, 3]))
    D.eval()
    layers = [m for m in D.modules() if isinstance(m, (nn.Conv2d, nn.Linear, nn.Embedding))]
    assert len(layers) == 3 + 3 + 2 + 2 + 2
    for layer in layers:
        assert abs(torch.linalg.svdvals(layer.weight.flatten(1))[0] - 1) < 0.02
    assert len([name for name, _ in D.named_buffers() if name.endswith("._u")]) == len(layers)


def test_each_forward_in_training_mode_is_one_power_iteration_and_none_in_eval_mode():
    _, D = build()
    images = torch.randn(2, 3, 32, 32)
    buffer = D.get_buffer("head.parametrizations.weight.0.parametrization._v")
    weight = D.get_parameter("head.parametrizations.weight.original")
    with torch.no_grad():
        weight.copy_(torch.randn_like(weight))
    before = buffer.clone()
    D.eval()(images)
    assert torch.equal(buffer, before)
    D.train()(images)
    assert not torch.equal(buffer, before)


def test_the_power_iteration_is_outside_autocast():
    _, D = build(num_classes=2)
    seen = []
    for name, module in D.named_modules():
        if name.endswith("parametrizations.weight.0.parametrization"):
            module.register_forward_pre_hook(lambda module, args: seen.append(torch.is_autocast_enabled("cpu")))
    with torch.autocast("cpu", torch.bfloat16):
        D(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert seen == [False] * 12  # each layer's weight is read once


def test_the_logit_sums_over_the_pixels():
    _, D = build(size=64, options={"width": 2})
    D.eval()
    D.blocks = nn.Identity()
    h = torch.rand(2, 32, 3, 3)
    logits = D(h)
    head = D.get_submodule("head")
    torch.testing.assert_close(logits, head(h.sum((2, 3))).flatten())


def test_conditional_batchnorm_scales_and_shifts_by_class():
    norm = ConditionalBatchNorm2d(3, SampleSpec(4, 4, 3, 2))
    x, labels = torch.randn(6, 3, 4, 4) * 5 + 2, torch.tensor([0, 1, 0, 1, 1, 1])
    plain = F.batch_norm(x, None, None, training=True)
    torch.testing.assert_close(norm(x, labels), plain)  # at initialization
    with torch.no_grad():
        norm.get_parameter("scale.weight")[1] = 3
        norm.get_parameter("shift.weight")[1, 2] = 7
    expected = plain.clone()
    expected[labels == 1] *= 3
    expected[labels == 1, 2] += 7
    torch.testing.assert_close(norm(x, labels), expected)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """A world of this process alone."""
    store = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("classes", [0, 3])
def test_the_conversion_of_batchnorm_finds_every_norm_and_changes_nothing(process_group, classes):
    G, _ = build(num_classes=classes)
    G = G.double()  # in float32 the rounding of a value near 0 moves a ReLU's gradient
    converted = convert(copy.deepcopy(G))
    assert sum(type(m) is GlobalBatchNorm2d for m in converted.modules()) == 7
    assert not any(type(m) is nn.BatchNorm2d for m in converted.modules())
    z = torch.randn(6, 8, dtype=torch.float64)
    labels = torch.arange(6) % 3 if classes else None
    results = []
    for network in (G, converted):
        images = network(z, labels)
        images.square().sum().backward()
        results.append({"images": images.detach(), **{name: p.grad for name, p in network.named_parameters()}})
        results[-1] |= dict(network.named_buffers())
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 50}, r"sngan does not support 50x50 images \(.*\); `distgan shards make --size 48x48 or 56x56`"),
        ({"size": 256}, r"256x256 images \(the papers .* 32 to 224 pixels\); `distgan shards make --size 224x224`"),
        ({"options": {"width": 0}}, "width: 0 is not a positive integer"),
        ({"options": {"norm": "none"}}, "unknown option of sngan; choose from width"),
    ],
)
def test_unsupported_networks_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        build(**changes)
