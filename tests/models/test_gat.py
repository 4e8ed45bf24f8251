"""GAT: accumulated outputs, stages and noise levels in D, published numbers of weights; and what cat shares with it."""

import copy
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from distgan import models
from distgan.errors import UsageError
from distgan.models.gat import exponential_levels
from distgan.models.tokens import patchify, unpatchify
from distgan.models.transformer import twice_differentiable
from distgan.samples import Condition, LatentSpec, SampleSpec

TINY: dict[str, Any] = {"width": 16, "depth": 4, "heads": 2, "stages": 4, "embedding": 8}
D_OF_CAT: dict[str, Any] = {"d_width": 16, "d_depth": 2, "d_heads": 2}
SPEC = SampleSpec(8, 12, 3, 3)
MIXED = replace(SPEC, num_classes=2, conditions=(Condition("energy"), Condition("tagged", "flag")))
NONE = SPEC.unconditional()
LATENTS = SampleSpec(32, 32, 4, 1000)


def perturb(*networks: nn.Module) -> None:
    """Away from the initialization, where gates are near 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [p for network in networks for p in network.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype), alpha=0.2)


def build(name: str = "gat", spec: SampleSpec = SPEC, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    defaults = TINY if name == "gat" else TINY | D_OF_CAT | {"stages": 2}
    return models.build(name, spec, z_dim=6, options=defaults | options, seed=seed)


def inputs(spec: SampleSpec = SPEC, n: int = 3) -> tuple[Tensor, Tensor, Tensor | None]:
    """z, images, labels"""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 6, generator=generator)
    images = torch.randn(n, *spec.shape, generator=generator)
    if not spec.conditions:
        return z, images, torch.arange(n) % spec.num_classes if spec.num_classes else None
    return z, images, torch.tensor([[1, 0, 0.5, 1], [0, 1, -1, 0], [1, 0, 1.5, 0]])[:n]


def test_outputs_accumulate():
    """A head after each depth / K blocks adds to the image; z and the label's vector have a mean square of 1."""
    G, _ = build(stages=2)
    perturb(G)
    z, _, labels = inputs()
    vectors = G.embed.weight[labels]
    unit = [x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt() for x in (vectors, z)]
    w = G.map(torch.cat(unit, 1))
    torch.testing.assert_close(G.mapping(z, labels), w)
    h = G.positions[None].expand(3, -1, -1)
    expected = []
    for first in (0, 2):
        for block in G.blocks[first : first + 2]:
            h = block(h, w, G.rotation)
        expected.append(unpatchify(G.heads[first // 2](h, w), G.grid, 2))
    output = G(z, labels)
    torch.testing.assert_close(output["stages"][:, 0], expected[0])
    torch.testing.assert_close(output["stages"][:, 1], expected[0] + expected[1])
    assert torch.equal(output["images"], output["stages"][:, 1]) and output["images"].shape == (3, 3, 8, 12)
    assert torch.equal(G.eval()(z, labels)["stages"], output["stages"])
    assert torch.equal(G.synthesis(G.mapping(z, labels))["images"], output["images"])


@pytest.mark.parametrize(
    ("depth", "stages", "ends"), [(12, 4, [3, 6, 9, 12]), (28, 4, [7, 14, 21, 28]), (5, 2, [2, 5])]
)
def test_depths_of_outputs(depth, stages, ends):
    with torch.device("meta"):
        assert build(depth=depth, stages=stages)[0].stage_ends == ends


def test_logits():
    """Stages on the channel axis, patches with positions, the class token in front, whose logit it is."""
    _, D = build()
    perturb(D)
    _, images, labels = inputs()
    stages = torch.stack([images, images + 1, images - 1, images * 2], 1)
    x = patchify(torch.cat(list(stages.unbind(1)), 1), 2) @ D.from_patches.weight.T + D.from_patches.bias + D.positions
    x = torch.cat([D.class_tokens.repeat(3, 1, 1), x], 1)
    for block in D.blocks:
        x = block(x, D.rotation)
    torch.testing.assert_close(D(stages, labels), D.head(x[:, :1], labels)[:, 0])
    torch.testing.assert_close(D(images, labels), D(images[:, None].repeat(1, 4, 1, 1, 1), labels))


@pytest.mark.parametrize("name", ["gat", "cat"])
def test_features(name):
    """Of the class token and the patches, beside the same logits."""
    _, D = build(name, features=5)
    _, images, labels = inputs()
    images.requires_grad_()
    output, logits = D(images, labels), build(name)[1](images, labels)
    assert output["features"].shape == (3, 1 + 4 * 6, 5)
    assert output["logits"].shape == logits.shape == ((3,) if name == "gat" else (3, 2))
    (gradient,) = torch.autograd.grad(output["features"][0].sum(), images)
    assert gradient[0].any() and not gradient[1:].any()


def test_noise_levels():
    published = (0.885, 0.76, 0.51, 0.01)
    assert exponential_levels(4) == pytest.approx(published) and exponential_levels(1) == (0.01,)
    assert build()[1].noise_levels == pytest.approx(published)
    assert build(noise_levels=False)[1].noise_levels == ()
    assert build(stages=2, noise_levels=[0.5, 0])[1].noise_levels == (0.5, 0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "M"}, "model.options.size: unknown size 'M'; choose from S, B, L, XL"),
        ({"d_size": "M"}, "model.options.d_size: unknown size 'M'"),
        ({"width": 20}, "model.options.width: 20 must be a multiple of 8, four times heads"),
        ({"d_width": 24, "d_heads": 4}, "model.options.d_width: 24 must be a multiple of 16, four times d_heads"),
        ({"depth": 3}, "model.options.stages: 4 outputs need at least as many blocks; G has 3 (depth)"),
        ({"stages": 0}, "model.options.stages: 0 is not a positive integer"),
        ({"patch": 2.0}, "model.options.patch: 2.0 is not a positive integer"),
        ({"qk_norm": 1}, "model.options.qk_norm: 1 is neither true nor false"),
        ({"features": -1}, "model.options.features: -1 is not an integer of at least 0"),
        ({"noise_levels": [0.5]}, "model.options.noise_levels: [0.5] must be true, false, or 4 numbers from 0 to 1"),
        ({"noise_levels": [0.5, 0.4, 0.3, -1]}, "must be true, false, or 4 numbers"),
        ({"noise_levels": [0, 0.4, 0.3, 0]}, "must not increase: the last stage is the image"),
        ({"noise_levels": "x"}, "must be true, false, or 4 numbers"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        build(**options)


@pytest.mark.parametrize("name", ["gat", "cat"])
def test_refused_sizes(name):
    with pytest.raises(UsageError, match=f"{name} does not support 9x12 .*make --size 8x12 or 10x12` resizes"):
        build(name, SampleSpec(9, 12, 3))
    latents = LatentSpec("0", 1.0, 0.0, 200, 256, 3)
    with pytest.raises(UsageError, match="does not support 25x32 .*make --size 192x256 or 208x256` resizes"):
        build(name, SampleSpec(25, 32, 4, latents=latents))


@pytest.mark.parametrize("name", ["gat", "cat"])
@pytest.mark.parametrize("spec", [NONE, SPEC, MIXED], ids=["none", "classes", "mixed"])
def test_all_weights_learn_from_any_labels(name, spec):
    G, D = build(name, spec)
    z, images, labels = inputs(spec)
    (D(G(z, labels)["stages"], labels).sum() - 2 * D(images, labels).sum()).backward()
    for network in (G, D):
        for key, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), key
    if labels is not None:
        others = labels.roll(1, 0)
        assert not torch.equal(G(z, labels)["images"], G(z, others)["images"])
        assert not torch.equal(D(images, labels), D(images, others))


@pytest.mark.parametrize("name", ["gat", "cat"])
@torch.no_grad()
def test_half_precision(name):
    """Outputs are float32 and near those of float32."""
    G, D = build(name)
    perturb(G, D)
    z, images, labels = inputs()
    expected = G(z, labels)["stages"], D(images, labels)
    with torch.autocast("cpu", torch.bfloat16):
        actual = G(z, labels)["stages"], D(images, labels)
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == torch.float32
        assert 1e-5 < float((a - b).norm() / b.norm()) < 0.03
    w = G.mapping(z, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(G.mapping(z, labels), w)


def count_calls(network: Any) -> list[int]:
    """How often each of the blocks is called, from now on."""
    calls = [0] * len(network.blocks)

    def count(i: int) -> None:
        calls[i] += 1

    for i, block in enumerate(network.blocks):
        block.register_forward_pre_hook(lambda *_, i=i: count(i))
    return calls


@pytest.mark.parametrize("name", ["gat", "cat"])
def test_recomputed_activations(name):
    """Of the first blocks of both networks; gradients, those of a penalty too, stay the same."""
    z, images, labels = inputs()
    images.requires_grad_()
    gradients = []
    for blocks in (0, 1, 99):
        G, D = build(name, checkpoint_blocks=blocks)
        perturb(G, D)
        twice_differentiable(D)
        calls = count_calls(G), count_calls(D)
        (slope,) = torch.autograd.grad(D(images, labels).sum(), images, create_graph=True)
        (D(G(z, labels)["stages"], labels).sum() + slope.square().sum()).backward()
        gradients.append([parameter.grad for network in (G, D) for parameter in network.parameters()])
        for of_network, forwards in zip(calls, (1, 2), strict=True):
            assert [count > forwards for count in of_network] == [i < blocks for i in range(len(of_network))]
    for plain, *others in zip(*gradients, strict=True):
        assert all(torch.equal(plain, other) for other in others)


@pytest.mark.parametrize("name", ["gat", "cat"])
def test_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(1)
    first = build(name)
    torch.manual_seed(2)
    again, other = build(name), build(name, seed=1)
    for a, b, c in zip(first, again, other, strict=True):
        assert all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())
        assert not torch.equal(next(a.parameters()), next(c.parameters()))
        assert all(torch.equal(x, y) for x, y in zip(a.buffers(), c.buffers(), strict=True))  # tables
        assert not {key for key, _ in a.named_buffers()} & set(a.state_dict())


@pytest.mark.parametrize("name", ["gat", "cat"])
def test_initial_embeddings(name):
    """N(0, 0.02^2): labels in both networks, class tokens, scales."""
    G, D = build(name, replace(SPEC, num_classes=500), d_width=64, embedding=32)
    tokens = [D.class_tokens] if name == "gat" else [D.class_tokens, D.scales]
    for parameter in [G.embed.weight, D.head.embed.weight, *tokens]:
        assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.3)


def test_tables_follow_the_type():
    G, _ = build()
    double = copy.deepcopy(G).double()
    z, _, labels = inputs()
    torch.testing.assert_close(double(z.double(), labels)["images"].float(), G(z, labels)["images"])


@pytest.mark.parametrize(
    ("size", "of_g", "of_d", "with_projector"),
    [("S", 29.3, 32.6, 39.1), ("B", 116.6, 97.1, 104.5), ("L", 408.5, 314.9, 322.8), ("XL", 602.0, 459.3, 467.4)],
)
def test_numbers_of_weights(size, of_g, of_d, with_projector):
    """Millions, of GAT's code for ImageNet at 256 pixels."""
    with torch.device("meta"):
        G, D = models.build("gat", LATENTS, z_dim=64, options={"size": size}, seed=0)
        _, projected = models.build("gat", LATENTS, z_dim=64, options={"size": size, "features": 768}, seed=0)
    counts = [models.count_parameters(network) / 1e6 for network in (G, D, projected)]
    assert counts == pytest.approx([of_g, of_d, with_projector], rel=0.003)
    assert G.width == D.width


def test_d_of_another_size():
    with FakeTensorMode():
        networks: tuple[Any, Any] = models.build(
            "gat", LATENTS, z_dim=64, options={"size": "S", "d_size": "B", "d_depth": 2}, seed=0
        )
        G, D = networks
        assert (G.width, D.width, len(D.blocks)) == (384, 768, 2)
        G, D = build(d_width=32)
        assert (D.width, len(D.blocks), D.blocks[0].attention.heads) == (32, 4, 2)


def test_a_g_is_exported_for_any_number_of_images():
    G, _ = models.build("gat", SampleSpec(8, 8, 3, 3), z_dim=8, options={"width": 16, "depth": 4, "heads": 2}, seed=0)
    count = torch.export.Dim("count", min=2, max=64)
    example = (torch.randn(4, 8), torch.arange(4) % 3)
    exported = torch.export.export(G.eval(), example, dynamic_shapes=({0: count}, {0: count})).module()
    z, labels = torch.randn(7, 8), torch.arange(7) % 3
    torch.testing.assert_close(exported(z, labels)["images"], G(z, labels)["images"])
