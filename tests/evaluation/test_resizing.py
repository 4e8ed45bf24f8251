"""Pillow's bicubic resize by products of matrices: its own pixels, of images that grow, shrink and are rectangles."""

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.evaluation.resizing import bicubic_weights, resize_float, resize_uint8
from helpers import noise

SHAPES = [(32, 32, 224), (64, 64, 299), (299, 299, 299), (300, 517, 224), (1, 5, 224), (40, 224, 224), (333, 31, 299)]
"""Height and width, and the side they are resized to."""


def by_pillow(image: np.ndarray, side: int) -> np.ndarray:
    """Across, then down: in one call Pillow 13 turns the order of tall rectangles around."""
    across = Image.fromarray(image).resize((side, len(image)), Image.Resampling.BICUBIC)
    return np.asarray(across.resize((side, side), Image.Resampling.BICUBIC))


def rectangles(height: int, width: int) -> np.ndarray:
    """Two images of noise: extremes overshoot, and are clipped."""
    return noise(2 * height * width, 1, seed=height).reshape(2, height, width, 3)


@pytest.mark.parametrize(("height", "width", "side"), SHAPES)
def test_8_bit_images_are_those_of_pillow(height, width, side):
    images = rectangles(height, width)
    expected = [by_pillow(image, side) for image in images]
    if height == width:
        whole = [Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC) for image in images]
        assert np.array_equal(np.stack(expected), np.stack([np.asarray(image) for image in whole]))
    found = resize_uint8(torch.from_numpy(images).permute(0, 3, 1, 2), side)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), np.stack(expected))


@pytest.mark.parametrize(("height", "width", "side"), SHAPES)
def test_float_images_are_those_of_pillow(height, width, side):
    """Clipped and not rounded."""
    images = rectangles(height, width)
    channels = [image[..., k].astype(np.float32) for image in images for k in range(3)]
    expected = np.stack([by_pillow(channel, side).clip(0, 255) for channel in channels]).reshape(2, 3, side, side)
    found = resize_float(torch.from_numpy(images).permute(0, 3, 1, 2), side)
    assert found.dtype == torch.float32
    assert np.abs(found.numpy() - expected).max() <= 2e-5  # a unit in the last place at 255 is 1.5e-5
    assert (found.numpy() == expected).mean() > 0.999


def test_a_constant_image_stays_constant():
    images = torch.full((1, 1, 30, 50), 200, dtype=torch.uint8)
    assert (resize_uint8(images, 224) == 200).all() and (resize_float(images, 299) == 200).all()
    assert bicubic_weights(50, 224).sum(1).numpy() == pytest.approx(1, abs=1e-15)
