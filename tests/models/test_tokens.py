"""Patches of images and the table of their positions, against loops."""

import math

import pytest
import torch
from torch import Tensor

from distgan.models.tokens import patchify, sincos_table, unpatchify
from distgan.sizes import Size

WIDTH = 16
GRID = Size(2, 3)


def test_patches():
    images = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    for t, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        block = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert torch.equal(patches[:, t], block.flatten(1))  # channels, rows, columns
        assert torch.equal(block.permute(0, 2, 3, 1).flatten(1), from_images(images)[:, t])  # rows, columns, channels
    assert torch.equal(unpatchify(from_images(images), GRID, 2), images)


def from_images(images: Tensor) -> Tensor:
    """The tokens that `unpatchify` makes these images of."""
    return patchify(images, 2).unflatten(2, (3, 4)).transpose(2, 3).flatten(2)


def test_sincos_table():
    table = sincos_table(GRID, WIDTH)
    for t, (row, column) in enumerate((r, c) for r in range(2) for c in range(3)):
        for i in range(WIDTH // 4):
            frequency = 10_000 ** (-i / (WIDTH // 4))
            waves = [f(p * frequency) for p in (column, row) for f in (math.sin, math.cos)]
            assert table[t, i :: WIDTH // 4].tolist() == pytest.approx(waves, abs=1e-6)
