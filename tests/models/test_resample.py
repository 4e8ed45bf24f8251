"""Bilinear resampling by 2: the filter, its transpose, the borders, derivatives of second order."""

import pytest
import torch
import torch.nn.functional as F

from distgan.models.resample import downsample2x, upsample2x

FILTER = torch.outer(*[torch.tensor([1.0, 3, 3, 1]) / 8] * 2)[None, None]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 5, 8, 8), (2, 5, 2, 6)])
def test_they_are_the_strided_convolutions_with_the_filter(shape, memory_format):
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory_format)
    weight = FILTER.expand(5, 1, 4, 4)
    down, up = downsample2x(images), upsample2x(images)
    torch.testing.assert_close(down, F.conv2d(images, weight, stride=2, padding=1, groups=5))
    torch.testing.assert_close(up, F.conv_transpose2d(images, 4 * weight, stride=2, padding=1, groups=5))
    assert down.is_contiguous(memory_format=memory_format) and up.is_contiguous(memory_format=memory_format)


def test_inside_of_the_image_upsampling_is_torchs_bilinear_interpolation():
    images = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample2x(images)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize("resample", [downsample2x, upsample2x])
def test_a_constant_image_stays_constant_inside(resample):
    output = resample(torch.ones(1, 1, 8, 8))
    assert (output[:, :, 1:-1, 1:-1] == 1).all() and (output[:, :, 0] < 1).all()


@pytest.mark.parametrize("resample", [downsample2x, upsample2x])
def test_derivatives_of_first_and_second_order(resample):
    images = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(resample, images)
    assert torch.autograd.gradgradcheck(resample, images)
    (gradient,) = torch.autograd.grad(resample(images).square().sum(), images, create_graph=True)
    assert gradient.grad_fn is not None and torch.autograd.gradgradcheck(lambda x: resample(x) ** 3, images)
