"""Images as tokens: patches, tables of their positions, and the images that can be cut into patches."""

import torch
from torch import Tensor

from distgan.errors import UsageError
from distgan.samples import SampleSpec
from distgan.sizes import Size

THETA = 10_000.0
"""The base of the wavelengths of both kinds of positions."""


def patchify(images: Tensor, patch: int) -> Tensor:
    """[N, C, H, W] -> [N, H W / patch^2, C patch^2]: patches row by row, in each the channels, rows and columns."""
    pixels = images.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # [N, C, rows, p, columns, p]
    return pixels.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, grid: Size, patch: int) -> Tensor:
    """[N, T, patch^2 C] -> [N, C, H, W] of `grid` patches: in each the rows, columns and channels (as in DiT)."""
    pixels = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (grid.height, grid.width))
    return pixels.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def coordinates(grid: Size) -> tuple[Tensor, Tensor]:
    """Row and column of each token, float64 [T]."""
    rows = torch.arange(grid.height, dtype=torch.float64).repeat_interleave(grid.width)
    columns = torch.arange(grid.width, dtype=torch.float64).repeat(grid.height)
    return rows, columns


def sincos_table(grid: Size, width: int) -> Tensor:
    """float32 [T, width]: sine and cosine of the columns, then those of the rows (the table of MAE, 2111.06377).

    Each of the four takes width / 4 frequencies THETA^(-i / (width / 4)). Computed in float64, then rounded, so that
    all devices have the same table.
    """
    quarter = width // 4
    frequencies = THETA ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    rows, columns = coordinates(grid)
    angles = [positions[:, None] * frequencies for positions in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1).float()


def rope_table(grid: Size, features: int, class_tokens: int = 0) -> Tensor:
    """float32 [2, class_tokens + T, features]: cosines and sines of 2-D rotary positions (RoPE, 2104.09864).

    The first half of a head's features turns with the row, the second with the column: a pair (2i, 2i + 1) of a half
    of d features by row * THETA^(-2i / d). Class tokens, which are in front, are not turned.
    """
    half = features // 2
    frequencies = THETA ** (-torch.arange(0, half, 2, dtype=torch.float64) / half)
    rows, columns = coordinates(grid)
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], 1).repeat_interleave(2, 1)
    angles = torch.cat([angles.new_zeros(class_tokens, features), angles])
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of features of x [N, heads, T, features] by the angles of a `rope_table`."""
    cosine, sine = rotation
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    quarter_turn = torch.stack([-second, first], -1).flatten(-2)
    return x * cosine + quarter_turn * sine


def patch_grid(model: str, spec: SampleSpec, patch: int) -> Size:
    """Rows and columns of patches. Raises UsageError with the nearest sizes for images that patches do not fill."""
    if spec.height % patch == spec.width % patch == 0:
        return Size(spec.height // patch, spec.width // patch)
    pixels = spec.pixels
    rows = pixels.height // spec.height * patch  # of a patch, in pixels also where it is one of latents
    columns = pixels.width // spec.width * patch
    below = Size(pixels.height // rows * rows, pixels.width // columns * columns)
    above = Size(-(-pixels.height // rows) * rows, -(-pixels.width // columns) * columns)
    near = " or ".join(str(size) for size in (below, above) if min(size))
    raise UsageError(
        f"model.name: {model} does not support {spec.height}x{spec.width} images (patches of {patch}x{patch} do not "
        f"fill them); `distgan shards make --size {near}` resizes them"
    )
