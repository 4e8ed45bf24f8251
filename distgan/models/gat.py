"""GAT (Hyun et al. 2025, arXiv 2509.24935): transformers for G and D, of latents or of small images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.models.layers import check_positive
from distgan.models.tokens import patch_grid, patchify, rope_table, sincos_table
from distgan.models.transformer_discriminator import TokenDiscriminator
from distgan.models.transformer_generator import Generator
from distgan.models.transformer_options import (
    TransformerSize,
    check_flag,
    check_not_negative,
    check_stages,
    named_size,
    resize,
)
from distgan.samples import SampleSpec
from distgan.sizes import Size

SIZES = {
    "S": TransformerSize(384, 12, 6),
    "B": TransformerSize(768, 12, 12),
    "L": TransformerSize(1024, 24, 16),
    "XL": TransformerSize(1152, 28, 16),
}


def build(
    spec: SampleSpec,
    *,
    z_dim: int,
    size: str = "B",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    d_size: str | None = None,
    d_width: int | None = None,
    d_depth: int | None = None,
    d_heads: int | None = None,
    patch: int = 2,
    stages: int = 4,
    noise_levels: bool | Sequence[float] = True,
    qk_norm: bool = True,
    embedding: int = 2048,
    features: int = 0,
    checkpoint_blocks: int = 0,
) -> tuple[nn.Module, nn.Module]:
    """G and D of `size`, for images whose sides are multiples of `patch`. Raises UsageError.

    `width` (of a token), `depth` (blocks) and `heads` (of attention) replace those of the size; D has those of G, or of
    `d_size`, unless `d_width`, `d_depth` or `d_heads` says otherwise. G has `stages` outputs, all of which D sees.
    `noise_levels` are the standard deviations of the noise on each, from the first stage to the last; true: those of
    `exponential_levels`; false: no noise. `embedding` is the width of D's embedding of labels. With `features`, D
    returns as many for each token. The first `checkpoint_blocks` blocks of both networks are recomputed in backward.
    """
    g_size = resize(named_size(SIZES, "", size), "", width, depth, heads)
    d_base = g_size if d_size is None else named_size(SIZES, "d_", d_size)
    d_shape = resize(d_base, "d_", d_width, d_depth, d_heads)
    check_positive(patch=patch, embedding=embedding)
    check_stages(stages, g_size.depth)
    check_flag(qk_norm=qk_norm)
    check_not_negative(features=features, checkpoint_blocks=checkpoint_blocks)
    grid = patch_grid("gat", spec, patch)
    common: dict[str, Any] = dict(patch=patch, stages=stages, qk_norm=qk_norm, checkpoint_blocks=checkpoint_blocks)
    of_d: dict[str, Any] = dict(noise_levels=check_levels(noise_levels, stages), embedding=embedding, features=features)
    G = Generator(spec, z_dim, g_size, grid, shift=False, **common)
    return G, Discriminator(spec, d_shape, grid, **of_d, **common)


def exponential_levels(stages: int) -> tuple[float, ...]:
    """t_i = 1 - 0.125^(1 - i / (K - 1)) + 0.01, the noise levels of GAT's code: .885, .760, .510, .010 of four stages.

    The last stage, and the only one of one, has 0.01.
    """
    return tuple(1.01 - 0.125 ** (1 - i / (stages - 1)) if stages > 1 else 0.01 for i in range(stages))


def check_levels(option: Any, stages: int) -> tuple[float, ...]:
    """The levels that the option `noise_levels` stands for. Raises UsageError."""
    if isinstance(option, bool):
        return exponential_levels(stages) if option else ()
    numbers = isinstance(option, Sequence) and all(type(level) in (int, float) for level in option)
    if not numbers or len(option) != stages or not 1 >= max(option) or not min(option) >= 0:
        raise UsageError(
            f"model.options.noise_levels: {option!r} must be true, false, or {stages} numbers from 0 to 1, one for "
            "each of the stages"
        )
    if any(after > before for before, after in zip(option, option[1:], strict=False)):
        raise UsageError(f"model.options.noise_levels: {option!r} must not increase: the last stage is the image")
    return tuple(float(level) for level in option)


class Discriminator(TokenDiscriminator):
    """Images [N, C, H, W], or their stages or noise levels [N, K, C, H, W], and labels -> logits [N].

    The K images are concatenated on the channel axis, an image alone K times, and seen as patches, with a class token
    in front; the logit is that of the class token. With `features` D returns a dict: "logits" [N], and "features"
    [N, 1 + T, features] of all tokens, class token first.
    """

    def __init__(self, spec: SampleSpec, size: TransformerSize, grid: Size, *, stages: int, **options: Any) -> None:
        super().__init__(spec, size, grid, channels=stages * spec.channels, class_tokens=1, stages=stages, **options)
        self.register_buffer("positions", sincos_table(grid, size.width), persistent=False)
        self.register_buffer("rotation", rope_table(grid, size.width // size.heads, class_tokens=1), persistent=False)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        if x.dim() == 4:
            x = x[:, None].expand(-1, self.stages, -1, -1, -1)
        x = self.from_patches(patchify(x.flatten(1, 2), self.patch)) + self.positions
        x = self.apply_blocks(torch.cat([self.class_tokens.expand(len(x), -1, -1), x], 1))
        return self.output(self.head(x[:, :1], labels).squeeze(1), x)
