"""Bilinear resampling by 2: the filter, its transpose, the borders, derivatives of second order."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distgan.models.resample import downsample2x, smooth, upsample2x

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


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("padding", [1, 2])
def test_the_filter_alone(padding, memory_format):
    images = torch.randn(2, 5, 7, 4, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory_format)
    images.requires_grad_()
    output = smooth(images, padding)
    expected = F.conv2d(images, FILTER.expand(5, 1, 4, 4), padding=padding, groups=5)
    torch.testing.assert_close(output, expected)
    assert output.is_contiguous(memory_format=memory_format)
    gradients = [torch.autograd.grad(each.pow(3).sum(), images)[0] for each in (output, expected)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(downsample2x(images[:, :, :6]), smooth(images[:, :, :6], 1)[:, :, ::2, ::2])


def test_inside_of_the_image_upsampling_is_torchs_bilinear_interpolation():
    images = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsample2x(images)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1])


@pytest.mark.parametrize("resample", [downsample2x, upsample2x])
def test_a_constant_image_stays_constant_inside(resample):
    output = resample(torch.ones(1, 1, 8, 8))
    assert (output[:, :, 1:-1, 1:-1] == 1).all() and (output[:, :, 0] < 1).all()


def smooth1(images: Tensor) -> Tensor:
    return smooth(images, 1)


def smooth2(images: Tensor) -> Tensor:
    return smooth(images, 2)


@pytest.mark.parametrize("resample", [downsample2x, upsample2x, smooth1, smooth2])
def test_derivatives_of_first_and_second_order(resample):
    images = torch.randn(1, 2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(resample, images)
    assert torch.autograd.gradgradcheck(resample, images)
    (gradient,) = torch.autograd.grad(resample(images).square().sum(), images, create_graph=True)
    assert gradient.grad_fn is not None and torch.autograd.gradgradcheck(lambda x: resample(x) ** 3, images)


def derivatives(images: Tensor) -> list[Tensor]:
    """Of all maps: values, and derivatives of first and second order of a cubic function of them."""
    results = []
    for resample in (downsample2x, upsample2x, smooth1, smooth2):
        values = resample(images)
        (first,) = torch.autograd.grad(values.pow(3).sum(), images, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), images)
        results += [values.detach(), first.detach(), second]
    return results


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 0.05)])
def test_compiled_values_and_derivatives_of_first_and_second_order(dtype, tolerance):
    images = torch.randn(2, 3, 4, 6, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(derivatives, fullgraph=True, dynamic=False)(images)
    for ours, theirs in zip(compiled, derivatives(images), strict=True):
        scale = float(theirs.abs().max())
        torch.testing.assert_close(ours / scale, theirs / scale, rtol=0, atol=tolerance)
