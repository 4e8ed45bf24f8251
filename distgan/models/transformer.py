"""Layers and blocks of transformers for G and D: RMS norms, equalized layers, attention, SwiGLU, modulation.

As in GAT (Hyun et al. 2025, arXiv 2509.24935). Linear layers start Xavier-uniform with biases 0. Under autocast their
products are in half precision; norms and the stream of residuals stay in float32.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distgan.models.equalized import EqualizedLinear
from distgan.models.tokens import rotate

EPS = 1e-6
"""Of the norms of tokens."""
MODULATION_GAIN = 0.1
"""Of the layers that map w to scales and gates: blocks start near the identity."""
SLOW = 0.01
"""Of the learning rate of the layers that map z to w."""
LAYER_SCALE = 0.1
"""The first weight of the branches of D's blocks."""


def linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    """A linear layer with Xavier-uniform weights, times `gain`, and biases 0."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) over the last axis (1910.07467), times a weight if `affine`; float32 under autocast.

    An eps of None is the rounding of the type, 1.2e-7 in float32.
    """

    def __init__(self, width: int, affine: bool = True, eps: float | None = EPS) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width)) if affine else None
        self.shape = (width,)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.dtype == torch.float64 else x.float()
        return F.rms_norm(x, self.shape, self.weight, self.eps)


class SlowLinear(EqualizedLinear):
    """An equalized layer as in GAT's code: Xavier-uniform, which its gain does not repeat, and a hundredth as fast."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, SLOW)
        self.weight_gain = SLOW

    def init_weight(self) -> None:
        nn.init.xavier_uniform_(self.weight, 1 / SLOW)


def mapping_layers(inputs: int, width: int) -> nn.Sequential:
    """[N, inputs] -> [N, width]: two equalized layers with SiLU between."""
    return nn.Sequential(SlowLinear(inputs, width), nn.SiLU(), SlowLinear(width, width))


class Attention(nn.Module):
    """Self-attention of tokens [N, T, width], with rotary positions, and RMS norms of queries and keys (2302.05442)."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads, eps=None) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads, eps=None) if qk_norm else nn.Identity()
        self.output = linear(width, width)
        self.fused = True
        """Whether by torch's kernels, which have no second derivative."""

    def forward(self, x: Tensor, rotation: Tensor | None, lengths: Sequence[int] | None = None) -> Tensor:
        """With `lengths`, T is that many sequences of these lengths, whose tokens do not see each other."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [N, heads, T, features]
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if lengths is None:
            attended = self.attend(q, k, v)
        else:
            parts = zip(*(each.split(lengths, 2) for each in (q, k, v)), strict=True)
            attended = torch.cat([self.attend(*part) for part in parts], 2)
        return self.output(attended.transpose(1, 2).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k' / sqrt(features)) v, of [N, heads, T, features] each."""
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v)
        return (q * q.shape[-1] ** -0.5 @ k.transpose(2, 3)).softmax(3).to(v.dtype) @ v


def twice_differentiable(network: nn.Module) -> nn.Module:
    """Let attention be computed by formulae that have a second derivative, as exact penalties need; in place.

    torch's kernels have the first derivative only, and take less memory: T^2 numbers for each head less.
    """
    for module in network.modules():
        if isinstance(module, Attention):
            module.fused = False
    return network


class SwiGLU(nn.Module):
    """W3 (SiLU(W1 x) * W2 x), of floor(8 width / 3) hidden features (Shazeer 2020, 2002.05202)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 8 * width // 3
        self.gate_and_value = linear(width, 2 * hidden)
        self.output = linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.gate_and_value(x).chunk(2, -1)
        return self.output(F.silu(gate) * value)


class Modulation(nn.Module):
    """w [N, width] -> `count` vectors [N, 1, width] of a layer: scales, gates, shifts."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.layer = linear(width, count * width, MODULATION_GAIN)

    def forward(self, w: Tensor) -> tuple[Tensor, ...]:
        return self.layer(F.silu(w))[:, None].chunk(self.count, -1)


def modulate(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """(1 + scale) x + shift"""
    x = x * (1 + scale)
    return x if shift is None else x + shift


class ModulatedBlock(nn.Module):
    """A block of G: x + g1 Attention((1 + s1) RMS(x) + b1), then x + g2 SwiGLU((1 + s2) RMS(x) + b2).

    (s1, g1, s2, g2), and with `shift` (b1, b2), are a linear map of SiLU(w); else b1 = b2 = 0.
    """

    def __init__(self, width: int, heads: int, qk_norm: bool, shift: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(width, affine=False)
        self.attention = Attention(width, heads, qk_norm)
        self.feed_forward = SwiGLU(width)
        self.modulation = Modulation(width, 6 if shift else 4)

    def forward(self, x: Tensor, w: Tensor, rotation: Tensor) -> Tensor:
        scale1, gate1, scale2, gate2, *shifts = self.modulation(w)
        shift1, shift2 = shifts or (None, None)
        x = x + gate1 * self.attention(modulate(self.norm(x), scale1, shift1), rotation)
        return x + gate2 * self.feed_forward(modulate(self.norm(x), scale2, shift2))


class Block(nn.Module):
    """A block of D: x + l1 Attention(RMS(x)), then x + l2 SwiGLU(RMS(x)), with vectors l (LayerScale, 2103.17239)."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = Attention(width, heads, qk_norm)
        self.scale1 = nn.Parameter(torch.full((width,), LAYER_SCALE))
        self.norm2 = RMSNorm(width)
        self.feed_forward = SwiGLU(width)
        self.scale2 = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x: Tensor, rotation: Tensor | None, lengths: Sequence[int] | None = None) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x), rotation, lengths)
        return x + self.scale2 * self.feed_forward(self.norm2(x))


def apply_block(block: nn.Module, recompute: bool, x: Tensor, *arguments: object) -> Tensor:
    """block(x, ...); with `recompute` its activations are not kept, and computed again in backward (1604.06174)."""
    if recompute and torch.is_grad_enabled():
        # no block draws random numbers, whose state would have to come from the device
        return checkpoint(block, x, *arguments, use_reentrant=False, preserve_rng_state=False)
    return block(x, *arguments)
