"""CAT (arXiv 2605.26449): GAT's networks, with a pyramid of scales, which D judges one by one."""

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
    "B": TransformerSize(768, 12, 12),
    "M": TransformerSize(768, 24, 12),
    "H": TransformerSize(1280, 32, 16),
}
STAGES = 4
"""Those of the paper."""
SCALE_STD = 0.02


def build(
    spec: SampleSpec,
    *,
    z_dim: int,
    size: str = "B",
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    d_size: str = "B",
    d_width: int | None = None,
    d_depth: int | None = None,
    d_heads: int | None = None,
    patch: int = 2,
    stages: int | None = None,
    shift: bool = True,
    d_rope: bool = True,
    qk_norm: bool = True,
    embedding: int = 2048,
    features: int = 0,
    checkpoint_blocks: int = 0,
) -> tuple[nn.Module, nn.Module]:
    """G of `size` and D of `d_size`, for images whose sides are multiples of `patch`. Raises UsageError.

    `width` (of a token), `depth` (blocks) and `heads` (of attention) replace those of the size, `d_width`, `d_depth`
    and `d_heads` those of D. G has `stages` outputs, the last of which D sees at full size, each other at half of the
    next. None: four, as in the paper, or as many as `scale_count` finds for smaller images. `shift`: whether w also
    shifts the tokens in G (with it, numbers of parameters are the published ones). `d_rope`: whether D has rotary
    positions beside its tables, as in GAT. `embedding`, `features` and `checkpoint_blocks` are those of gat.
    """
    g_size = resize(named_size(SIZES, "", size), "", width, depth, heads)
    d_shape = resize(named_size(SIZES, "d_", d_size), "d_", d_width, d_depth, d_heads)
    check_positive(patch=patch, embedding=embedding)
    check_flag(shift=shift, d_rope=d_rope, qk_norm=qk_norm)
    check_not_negative(features=features, checkpoint_blocks=checkpoint_blocks)
    grid = patch_grid("cat", spec, patch)
    scales = scale_count(grid) if stages is None else stages
    check_scales(scales, grid, g_size.depth)
    common: dict[str, Any] = dict(patch=patch, stages=scales, qk_norm=qk_norm, checkpoint_blocks=checkpoint_blocks)
    G = Generator(spec, z_dim, g_size, grid, shift=shift, **common)
    return G, Discriminator(spec, d_shape, grid, rope=d_rope, embedding=embedding, features=features, **common)


def scale_count(grid: Size, most: int = STAGES) -> int:
    """Scales of a pyramid of at most `most`: the grid of patches is halved while both sides are even and above 2.

    32x32 latents in patches of 2 have four, of 16x16, 8x8, 4x4 and 2x2 patches; 8x8 pixels have two in patches of 2,
    three in patches of 1; 28x28 pixels in patches of 2 have two, of 14x14 and 7x7.
    """
    count = 1
    while count < most and all(side % 2**count == 0 and side >> count >= 2 for side in grid):
        count += 1
    return count


def check_scales(stages: int, grid: Size, depth: int) -> None:
    """Raises UsageError."""
    check_stages(stages, depth)
    if (possible := scale_count(grid, stages)) < stages:
        raise UsageError(
            f"model.options.stages: {stages} scales of {grid} patches, each a half of the next, do not end at 2x2 or "
            f"more; there are {possible}"
        )


def shrink(images: Tensor, factor: int) -> Tensor:
    """[..., H, W] -> [..., H / factor, W / factor] by bilinear interpolation; `factor` is a power of 2.

    The mean of the 2x2 pixels in the middle of each factor x factor, as F.interpolate computes it without antialiasing;
    its own backward adds in a random order on a GPU.
    """
    if factor == 1:
        return images
    first = factor // 2 - 1
    rows = images[..., first::factor, :] + images[..., first + 1 :: factor, :]
    return (rows[..., first::factor] + rows[..., first + 1 :: factor]) / 4


class Discriminator(TokenDiscriminator):
    """Images [N, C, H, W], or stages [N, K, C, H, W], and labels -> logits [N, K], one for each scale.

    The last of the K images is seen at full size, each other at half of the next. Patches and blocks are shared; each
    scale has a table of positions, a learned embedding and a class token, and its tokens attend to each other only.
    With `features` D returns a dict: "logits" [N, K], and "features" [N, 1 + T, features] of the tokens at full size,
    class token first.
    """

    def __init__(
        self, spec: SampleSpec, size: TransformerSize, grid: Size, *, stages: int, rope: bool, **options: Any
    ) -> None:
        kind = {"channels": spec.channels, "class_tokens": stages, "noise_levels": ()}
        super().__init__(spec, size, grid, stages=stages, **kind, **options)
        grids = [Size(grid.height >> k, grid.width >> k) for k in reversed(range(stages))]
        self.lengths = [1 + each.height * each.width for each in grids]
        """Tokens of each scale, class token included."""
        self.scales = nn.Parameter(torch.randn(stages, size.width) * SCALE_STD)
        tables = torch.cat([sincos_table(each, size.width) for each in grids])
        self.register_buffer("positions", tables, persistent=False)
        turns = [rope_table(each, size.width // size.heads, class_tokens=1) for each in grids]
        self.register_buffer("rotation", torch.cat(turns, 1) if rope else None, persistent=False)

    def tokens(self, x: Tensor) -> Tensor:
        """[N, C, H, W] or [N, K, C, H, W] -> [N, sum of `lengths`, width], the smallest scale first."""
        images = [x] * self.stages if x.dim() == 4 else list(x.unbind(1))
        pyramid = [shrink(image, 2 ** (self.stages - 1 - k)) for k, image in enumerate(images)]
        patches = torch.cat([patchify(image, self.patch) for image in pyramid], 1)
        x = self.from_patches(patches) + self.positions
        scales = x.split([length - 1 for length in self.lengths], 1)
        class_tokens = self.class_tokens.expand(len(x), -1, -1, -1).unbind(1)
        parts = zip(class_tokens, scales, self.scales, strict=True)
        return torch.cat([torch.cat([token, patch], 1) + scale for token, patch, scale in parts], 1)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        x = self.apply_blocks(self.tokens(x), self.lengths)
        scales = x.split(self.lengths, 1)
        logits = self.head(torch.cat([scale[:, :1] for scale in scales], 1), labels)
        return self.output(logits, scales[-1])
