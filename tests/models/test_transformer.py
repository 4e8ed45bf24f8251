"""Layers and blocks of transformers against their formulae, written out; derivatives, recomputation, half precision."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distgan.models.tokens import rope_table, rotate
from distgan.models.transformer import (
    Attention,
    Block,
    ModulatedBlock,
    RMSNorm,
    SlowLinear,
    SwiGLU,
    apply_block,
    mapping_layers,
    twice_differentiable,
)
from distgan.models.transformer_heads import LogitHead, OutputHead, projector
from distgan.samples import Condition, SampleSpec
from distgan.sizes import Size

WIDTH = 16
HEADS = 2
GRID = Size(2, 3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perturbed(module: nn.Module) -> Any:
    """In float64, away from the initialization."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64), alpha=0.3)
    return module


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def rms(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def affine(layer: nn.Linear, x: Tensor) -> Tensor:
    return x @ layer.weight.T + layer.bias


def turn(x: Tensor, row: float, column: float) -> Tensor:
    """A vector of one head by explicit rotations: the first half of its pairs by the row, the others by the column."""
    half = len(x) // 2
    matrix = torch.zeros(len(x), len(x), dtype=torch.float64)
    for start, position in ((0, row), (half, column)):
        for i in range(half // 2):
            angle = position * 10_000 ** (-2 * i / half)
            j = start + 2 * i
            matrix[j, j] = matrix[j + 1, j + 1] = math.cos(angle)
            matrix[j, j + 1] = -math.sin(angle)
            matrix[j + 1, j] = math.sin(angle)
    return matrix @ x


def attention_by_hand(module: Attention, x: Tensor, positions: Sequence[tuple[int, int] | None]) -> Tensor:
    """Of tokens [N, T, width] at (row, column), or None for class tokens; head by head and token by token."""
    d = x.shape[2] // module.heads
    q, k, v = affine(module.qkv, x).split(x.shape[2], 2)
    attended = torch.zeros_like(x)
    for n in range(len(x)):
        for head in range(module.heads):
            columns = slice(head * d, (head + 1) * d)
            turned = []
            for vectors, norm in ((q[n, :, columns], module.q_norm), (k[n, :, columns], module.k_norm)):
                if isinstance(norm, RMSNorm) and norm.weight is not None:
                    vectors = rms(vectors, torch.finfo(torch.float64).eps) * norm.weight
                turned.append([turn(a, *(at or (0, 0))) for a, at in zip(vectors, positions, strict=True)])
            for t, query in enumerate(turned[0]):
                weights = torch.stack([(query @ key / d**0.5).exp() for key in turned[1]])
                attended[n, t, columns] = weights @ v[n, :, columns] / weights.sum()
    return affine(module.output, attended)


def swiglu_by_hand(module: SwiGLU, x: Tensor) -> Tensor:
    first, second = affine(module.gate_and_value, x).tensor_split(2, -1)
    return affine(module.output, silu(first) * second)


def positions(grid: Size) -> list[tuple[int, int] | None]:
    return [(row, column) for row in range(grid.height) for column in range(grid.width)]


def rotation(grid: Size, class_tokens: int = 0) -> Tensor:
    """In float64 from float32: 1e-7 off."""
    return rope_table(grid, WIDTH // HEADS, class_tokens).double()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_rotary_positions():
    x = random(1, 1, 1 + 6, 8)
    turned = rotate(x, rotation(GRID, class_tokens=1))
    expected = [turn(vector, *(at or (0, 0))) for vector, at in zip(x[0, 0], [None, *positions(GRID)], strict=True)]
    assert_close(turned[0, 0], torch.stack(expected))
    assert torch.equal(turned[0, 0, 0], x[0, 0, 0])


def test_norm():
    norm: Any = perturbed(RMSNorm(WIDTH))
    x = random(3, WIDTH)
    assert_close(norm(x), rms(x) * norm.weight, 1e-12)
    small = torch.full((1, 4), 1e-3, dtype=torch.float64)
    assert_close(RMSNorm(4, affine=False)(small), small / (2e-6) ** 0.5, 1e-12)


def test_equalized_layers():
    torch.manual_seed(0)
    first, _, second = layers = mapping_layers(200, 300).double()
    assert isinstance(first, SlowLinear) and isinstance(second, SlowLinear)
    assert first.weight.detach().abs().max() == pytest.approx(100 * (6 / 500) ** 0.5, rel=1e-3)  # Xavier, times 100
    perturbed(layers)
    z = random(2, 200)
    h = silu(z @ first.weight.T / 100 + first.bias / 100)
    assert_close(layers(z), h @ second.weight.T / 100 + second.bias / 100, 1e-12)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("shift", [False, True])
def test_block_of_g(shift, qk_norm):
    block = perturbed(ModulatedBlock(WIDTH, HEADS, qk_norm, shift))
    x, w = random(2, 6, WIDTH), random(2, WIDTH, seed=1)
    vectors = affine(block.modulation.layer, silu(w)).unflatten(1, (-1, 1, WIDTH)).unbind(1)
    s1, g1, s2, g2 = vectors[:4]
    b1, b2 = vectors[4:] if shift else (0, 0)
    h = x + g1 * attention_by_hand(block.attention, (1 + s1) * rms(x) + b1, positions(GRID))
    expected = h + g2 * swiglu_by_hand(block.feed_forward, (1 + s2) * rms(h) + b2)
    assert_close(block(x, w, rotation(GRID)), expected)


def test_block_of_d():
    block = perturbed(Block(WIDTH, HEADS, qk_norm=True))
    x = random(2, 7, WIDTH)

    def branch(norm: Any, y: Tensor) -> Tensor:
        return rms(y) * norm.weight

    h = x + block.scale1 * attention_by_hand(block.attention, branch(block.norm1, x), [None, *positions(GRID)])
    expected = h + block.scale2 * swiglu_by_hand(block.feed_forward, branch(block.norm2, h))
    assert_close(block(x, rotation(GRID, class_tokens=1)), expected)


def test_sequences_of_given_lengths_do_not_see_each_other():
    attention = perturbed(Attention(WIDTH, HEADS, qk_norm=True))
    x = random(2, 5, WIDTH)
    expected = torch.cat([attention_by_hand(attention, part, [None] * part.shape[1]) for part in x.split((2, 3), 1)], 1)
    assert_close(attention(x, None, (2, 3)), expected)


@pytest.mark.parametrize("shift", [False, True])
def test_output_head(shift):
    head = perturbed(OutputHead(WIDTH, 12, shift))
    x, w = random(2, 6, WIDTH), random(2, WIDTH, seed=1)
    scale, *shifts = affine(head.modulation.layer, silu(w)).unflatten(1, (-1, 1, WIDTH)).unbind(1)
    assert len(shifts) == shift
    assert_close(head(x, w), affine(head.output, (1 + scale) * rms(x) + sum(shifts)), 1e-12)


def test_logits():
    head = perturbed(LogitHead(SampleSpec(4, 6, 3, 5), WIDTH, 8))
    x, labels = random(2, 3, WIDTH), torch.tensor([4, 1])
    vectors = head.map(head.embed.weight[labels])
    expected = torch.stack([affine(head.output, rms(x[:, k]) * head.norm.weight) for k in range(3)], 1)
    assert_close(head(x, labels), torch.einsum("nkf,nf->nk", expected, vectors), 1e-12)
    head = perturbed(LogitHead(SampleSpec(4, 6, 3), WIDTH, 8))
    assert_close(head(x, None), affine(head.output, rms(x) * head.norm.weight)[:, :, 0], 1e-12)


def test_logits_of_numbers():
    head = perturbed(LogitHead(SampleSpec(4, 6, 3, 2, (Condition("energy"),)), WIDTH, 8))
    x, labels = random(2, 1, WIDTH), torch.tensor([[1, 0, 0.5], [0, 1, -1]], dtype=torch.float64)
    changed = labels + torch.tensor([[0, 0, 0], [0, 0, 0.5]], dtype=torch.float64)
    difference = (head(x, labels) - head(x, changed)).abs()
    assert difference[0] == 0 and difference[1] > 1e-3


def test_projector():
    layers = perturbed(projector(WIDTH, 5))
    x = random(2, 7, WIDTH)
    assert isinstance(layers[0], nn.Linear) and layers[0].out_features == 2048
    h = silu(affine(layers[2], silu(affine(layers[0], x))))
    assert_close(layers(x), affine(layers[4], h), 1e-9)


def test_initialization():
    """Xavier-uniform with biases 0, and a tenth of it where scales and gates come from."""
    torch.manual_seed(0)
    block = ModulatedBlock(64, 4, qk_norm=True, shift=False)
    gains = {block.attention.qkv: 1.0, block.attention.output: 1.0, block.feed_forward.output: 1.0}
    for layer, gain in {**gains, block.feed_forward.gate_and_value: 1.0, block.modulation.layer: 0.1}.items():
        limit = gain * (6 / sum(layer.weight.shape)) ** 0.5
        assert layer.weight.detach().abs().max() == pytest.approx(limit, rel=0.01) and not layer.bias.any()
    assert (Block(64, 4, qk_norm=True).scale1 == 0.1).all()


def block_of_d() -> Any:
    return twice_differentiable(perturbed(Block(WIDTH, HEADS, qk_norm=True)))


def test_second_derivatives():
    block = block_of_d()
    x = random(1, 4, WIDTH).requires_grad_()
    angles = rotation(Size(1, 3), class_tokens=1)
    torch.autograd.gradcheck(lambda x: block(x, angles, (1, 3)), x)
    torch.autograd.gradgradcheck(lambda x: block(x, angles, (1, 3)), x)


def test_kernels_and_formulae_agree():
    fused = perturbed(Block(WIDTH, HEADS, qk_norm=True))
    x = random(2, 7, WIDTH).requires_grad_()
    angles = rotation(GRID, class_tokens=1)
    plain: Any = twice_differentiable(copy.deepcopy(fused))
    assert fused.attention.fused and not plain.attention.fused
    gradients = [torch.autograd.grad(block(x, angles).pow(3).sum(), x)[0] for block in (fused, plain)]
    assert_close(gradients[0], gradients[1], 1e-10)


@pytest.mark.parametrize("penalize", [False, True])
def test_recomputed_activations(penalize):
    """The same gradients, first and second, from a second forward pass in backward."""
    block = block_of_d()
    calls = []
    block.register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for recompute in (False, True):
        calls.clear()
        x = random(2, 7, WIDTH).requires_grad_()
        total = apply_block(block, recompute, x, rotation(GRID, class_tokens=1)).pow(3).sum()
        assert len(calls) == 1
        if penalize:
            total = torch.autograd.grad(total, x, create_graph=True)[0].square().sum()
        gradients.append(torch.autograd.grad(total, list(block.parameters())))
        assert (len(calls) > 1) == recompute
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@torch.no_grad()
def test_the_stream_of_residuals_is_float32_under_autocast():
    torch.manual_seed(0)
    block = Block(WIDTH, HEADS, qk_norm=True)
    x = random(4, 7, WIDTH).float()
    angles = rope_table(GRID, WIDTH // HEADS, class_tokens=1)
    expected = block(x, angles)
    seen = {}
    for name, module in block.named_modules():
        module.register_forward_hook(lambda _, inputs, output, name=name: seen.update({name: output.dtype}))
    with torch.autocast("cpu", torch.bfloat16):
        actual = block(x, angles)
    assert actual.dtype == torch.float32 and seen["norm1"] == seen["attention.q_norm"] == torch.float32
    assert seen["attention.qkv"] == seen["feed_forward.output"] == torch.bfloat16
    error = float((actual - expected).norm() / (expected - x).norm())
    assert 1e-4 < error < 0.02
