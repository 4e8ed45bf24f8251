"""Grids of images, against torchvision's."""

import numpy as np
import pytest
import torch
import torchvision.utils
from PIL import Image

from distgan.images import grid, save_picture, to_uint8


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [2, 5, 16])
def test_a_grid_equals_torchvisions_pixel_for_pixel(tmp_path, count, channels):
    images = torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(count))
    columns = int(np.ceil(np.sqrt(count)))
    reference = torchvision.utils.make_grid(images, nrow=columns, normalize=True, value_range=(-1, 1))
    torchvision.utils.save_image(reference, tmp_path / "reference.png")
    save_picture(grid(to_uint8(images.numpy())), tmp_path / "ours.png")
    ours, theirs = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("ours", "reference"))
    assert np.array_equal(ours, theirs)


def test_one_image_and_given_columns():
    images = np.full((3, 4, 4, 1), 255, np.uint8)
    assert grid(images[:1]).shape == (8, 8, 3)
    assert grid(images, columns=3).shape == (8, 20, 3) and grid(images, columns=1).shape == (20, 8, 3)
