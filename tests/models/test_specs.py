"""Random sizes, channels and labels: shapes, ranges, gradients, and refusals that name sizes which are taken."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distgan import models
from distgan.errors import UsageError
from distgan.gan.outputs import images_of, shown_to_d
from distgan.samples import Condition, SampleSpec
from distgan.sizes import Size, halvings

OPTIONS: dict[str, dict[str, Any]] = {
    "cat": {"width": 8, "depth": 4, "heads": 1, "d_width": 8, "d_depth": 1, "d_heads": 1, "embedding": 8},
    "dcgan": {"width": 4, "norm": "group"},
    "gat": {"width": 8, "depth": 4, "heads": 1, "embedding": 8},
    "mlp": {"width": 8, "layers": 2},
    "r3gan": {"group_width": 8, "blocks": 1},
    "sngan": {"width": 8},
    "stylegan2": {"channel_base": 256, "channel_max": 8, "w_dim": 8, "mapping_layers": 2, "d_mapping_layers": 2},
}
SIDES = {
    "cat": st.integers(4, 24),  # from 4: between tokens, since attention to one alone has no gradient
    "dcgan": st.integers(4, 48),
    "gat": st.integers(4, 24),
    "mlp": st.integers(1, 16),
    "r3gan": st.integers(4, 48),
    "sngan": st.integers(16, 90),
    "stylegan2": st.integers(4, 48),
}


@st.composite
def specs(draw: st.DrawFn, network: str) -> SampleSpec:
    conditions = tuple(draw(st.lists(st.sampled_from([Condition("energy"), Condition("tagged", "flag")]), max_size=4)))
    channels = draw(st.sampled_from([1, 2, 3, 5, 64]))
    height = draw(SIDES[network])
    width = draw(SIDES[network])
    return SampleSpec(height, width, channels, draw(st.sampled_from([0, 1, 3])), conditions)


def build(network: str, spec: SampleSpec) -> tuple[nn.Module, nn.Module]:
    options = dict(OPTIONS[network])
    if network == "r3gan":
        options["widths"] = [8] * (max(halvings(Size(spec.height, spec.width)), 1) + 1)
    return models.build(network, spec, z_dim=4, options=options, seed=0)


def build_nearest(network: str, spec: SampleSpec) -> tuple[SampleSpec, nn.Module, nn.Module]:
    """For the images of `spec`, or of the first size that the refusal names."""
    try:
        return spec, *build(network, spec)
    except UsageError as error:
        message = str(error)
    assert f"model.name: {network} does not support {spec.height}x{spec.width} images" in message
    assert "\n" not in message
    named = re.search(r"`distgan shards make --size ([\dx or]+)` resizes them", message)
    assert named
    sizes = [map(int, size.split("x")) for size in named[1].split(" or ")]
    taken = [replace(spec, height=height, width=width) for height, width in sizes]
    built = [build(network, each) for each in taken]
    return taken[0], *built[0]


def draw_labels(spec: SampleSpec, n: int) -> Tensor | None:
    classes = torch.arange(n) % max(spec.num_classes, 1)
    if not spec.conditions:
        return classes if spec.num_classes else None
    generator = torch.Generator().manual_seed(1)
    columns = [F.one_hot(classes, spec.num_classes)] if spec.num_classes else []
    for condition in spec.conditions:
        values = torch.randn(n, 1, generator=generator)
        columns.append((values > 0).float().index_fill(0, torch.tensor(0), 1) if condition.kind == "flag" else values)
    return torch.cat(columns, 1)


@pytest.mark.parametrize("network", OPTIONS)
@settings(deadline=None, max_examples=8)
@given(st.data())
def test_any_images_and_labels(network, data):
    spec, G, D = build_nearest(network, data.draw(specs(network)))
    for parameter in [*G.parameters(), *D.parameters()]:
        if not parameter.any():  # behind which no gradient passes
            nn.init.normal_(parameter, 0.0, 0.1)
    generator = torch.Generator().manual_seed(0)
    labels = draw_labels(spec, 4)
    output = G(torch.randn(4, 4, generator=generator), labels)
    images = images_of(output)
    assert images.shape == (4, *spec.shape) and images.dtype == torch.float32
    if network in ("dcgan", "sngan"):
        assert images.abs().max() <= 1
    logits = D(shown_to_d(output), labels)
    assert logits.shape in ((4,), (4, *shown_to_d(output).shape[1:-3])) and logits.dtype == torch.float32
    signs = torch.tensor([[1.0], [-1], [1], [-1]])
    F.softplus(logits.view(4, -1) * signs).sum().backward()
    for name, parameter in [*G.named_parameters(), *D.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith("conv1.bias"), name  # before BatchNorm a bias has no gradient


@pytest.mark.parametrize(
    ("network", "height", "width", "count_of_g", "count_of_d"),
    [
        ("dcgan", 1024, 1024, 62_551_936, 61_569_920),  # features 1024, 1024, 1024, 1024, 512, 256, 128, 64
        ("dcgan", 768, 1024, 47_902_592, 44_823_424),  # of base 6x8: 1024, 1024, 1024, 512, 256, 128, 64
        ("r3gan", 512, 512, 23_162_368, 23_699_648),
        ("r3gan", 1024, 1024, 23_182_048, 23_719_328),  # a stage of 24 features more: 19,680
        ("r3gan", 640, 1024, 23_180_800, 23_718_080),
        ("sngan", 160, 1024, 41_320_772, 29_085_185),
        ("stylegan2", 1024, 1024, 30_439_285, 31_409_344),  # the published ones, a channel more, the labels' layers
        ("stylegan2", 768, 1024, 30_362_159, 39_768_320),
    ],
)
def test_large_images(network, height, width, count_of_g, count_of_d):
    spec = SampleSpec(height, width, 4, conditions=(Condition("energy"),))
    with FakeTensorMode():  # no memory, as on torch.device("meta"), which has no autocast
        G, D = models.build(network, spec, z_dim=64, options={}, seed=0)
        labels = torch.empty(2, 1)
        images = images_of(G(torch.empty(2, 64), labels))
        logits = D(images, labels)
    assert images.shape == (2, 4, height, width) and logits.shape == (2,)
    assert (models.count_parameters(G), models.count_parameters(D)) == (count_of_g, count_of_d)
