"""Augmentations of rectangles, and of images that are not RGB."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from distgan.gan.augment import AUGMENTATIONS, Pipeline

NAMES = list(AUGMENTATIONS)
EVERYTHING = Pipeline([(name, 1.0) for name in NAMES])
BY_CHANNEL = [name for name in NAMES if name != "mixed_color"]  # whose purpose it is to mix channels


def pictures(n: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.rand(n, channels, height, width, dtype=dtype, generator=generator) * 2 - 1


def numbers(n: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, columns, dtype=dtype, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)


def applied(name: str, images: Tensor, settings: dict[int, float]) -> Tensor:
    """`images` with only those transformations drawn whose columns are in `settings`, at p = 0.5."""
    u = torch.full((len(images), AUGMENTATIONS[name].columns), 0.75, dtype=images.dtype)
    for column, value in settings.items():
        u[:, column] = value
    return AUGMENTATIONS[name].apply(images, u, 0.5)


@pytest.mark.parametrize(
    "part",
    [*(AUGMENTATIONS[name] for name in BY_CHANNEL), Pipeline([(name, 1.0) for name in BY_CHANNEL])],
    ids=[*BY_CHANNEL, "pipeline"],
)
@settings(deadline=None, max_examples=10)
@given(st.integers(8, 40), st.integers(8, 40), st.sampled_from([2, 4, 5]))
def test_each_channel_is_changed_by_itself_and_as_a_grey_image(part, height, width, channels):
    apply = part if isinstance(part, Pipeline) else part.apply
    images, u = pictures(8, channels, height, width), numbers(8, part.columns)
    out = apply(images, u, 0.7)
    assert out.shape == images.shape and out.isfinite().all() and not torch.equal(out, images)
    for channel in range(channels):
        torch.testing.assert_close(
            out[:, channel : channel + 1], apply(images[:, channel : channel + 1], u, 0.7), rtol=0, atol=1e-5
        )
    assert torch.equal(apply(images, u, 0.0), images)
    assert torch.equal(apply(images[2:5], u[2:5], 0.7), out[2:5])


@pytest.mark.parametrize("part", [*AUGMENTATIONS.values(), EVERYTHING], ids=[*NAMES, "pipeline"])
def test_every_augmentation_has_second_derivatives(part):
    images = pictures(2, 4, 8, 12, torch.float64).requires_grad_()
    u = numbers(2, part.columns, torch.float64)
    apply = part if isinstance(part, Pipeline) else part.apply
    assert gradcheck(lambda x: apply(x, u, 1.0), images, fast_mode=True)
    assert gradgradcheck(lambda x: apply(x, u, 1.0) ** 3, images, fast_mode=True)


def test_compiled_a_rectangle_has_the_same_values_and_derivatives():
    def derivative(images: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        values = EVERYTHING(images, u, 0.7)
        (first,) = torch.autograd.grad(values.pow(3).sum(), images)
        return values.detach(), first

    images, u = pictures(8, 2, 8, 12, torch.float64).requires_grad_(), numbers(8, EVERYTHING.columns)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        compiled = torch.compile(derivative, fullgraph=True, dynamic=False, backend="aot_eager")
        for ours, theirs in zip(compiled(images, u), derivative(images, u), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_contrast_is_about_the_mean_of_each_channel():
    images = pictures(2, 5, 8, 12, torch.float64)
    half = applied("color", images, {0: 0.25, 1: 0.5, 2: 0.0, 3: 0.0})  # half of the contrast; saturation 0 is left out
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(half, mean + (images - mean) / 2)


def test_ada_color_flips_and_scales_each_channel_about_0():
    images = pictures(2, 5, 8, 12, torch.float64)
    assert torch.equal(applied("ada_color", images, {4: 0.25, 5: 0.9}), -images)
    double = 0.5 * (1 + math.erf(2 / math.sqrt(2)))  # the uniform number that gives a normal 2, a contrast of 2
    torch.testing.assert_close(applied("ada_color", images, {2: 0.25, 3: double}), 2 * images)
    for column in (6, 8):  # hue and saturation
        assert torch.equal(applied("ada_color", images, {column: 0.25, column + 1: 0.9}), images)


@pytest.mark.parametrize(("height", "width", "down", "right"), [(32, 16, 4, 2), (8, 28, 1, 4)])
def test_translation_is_up_to_an_eighth_of_each_side(height, width, down, right):
    images = torch.zeros(2000, 1, height, width)
    images[:, :, height // 2, width // 2] = 1
    moved = AUGMENTATIONS["translation"].apply(images, numbers(2000, 3), 1.0)
    places = moved.flatten(1).argmax(1)
    assert (places // width - height // 2).unique().tolist() == list(range(-down, down + 1))
    assert (places % width - width // 2).unique().tolist() == list(range(-right, right + 1))


@pytest.mark.parametrize("name", ["cutout", "ada_cutout"])
def test_cutout_is_half_of_each_side(name):
    height, width = 16, 40
    out = AUGMENTATIONS[name].apply(torch.ones(2000, 1, height, width), numbers(2000, 3), 1.0)[:, 0] == 0
    rows = out.any(2).sum(1)
    columns = out.any(1).sum(1)
    assert torch.equal(out.flatten(1).sum(1), rows * columns)  # a rectangle
    assert rows.max() == height // 2 and columns.max() == width // 2
    assert out[:, 0].any() and out[:, -1].any() and out[:, :, 0].any() and out[:, :, -1].any()


@pytest.mark.parametrize("name", ["translation", "cutout", "ada_cutout"])
def test_a_rectangle_on_its_side_is_changed_as_the_rectangle(name):
    images, u = pictures(16, 3, 12, 32), numbers(16, 3)
    expected = AUGMENTATIONS[name].apply(images, u, 1.0)
    turned = AUGMENTATIONS[name].apply(images.mT, u[:, [0, 2, 1]], 1.0)
    assert torch.equal(turned.mT, expected)


def test_blit_turns_a_rectangle_by_half_turns_and_moves_by_an_eighth_of_each_side():
    images = pictures(2, 3, 16, 32)
    assert torch.equal(applied("ada_blit", images, {2: 0.25, 3: 0.4}), images)
    assert torch.equal(applied("ada_blit", images, {2: 0.25, 3: 0.6}), images.rot90(2, (2, 3)))
    assert torch.equal(applied("ada_blit", images, {0: 0.25, 1: 0.9}), images.flip(3))
    moved = applied("ada_blit", images, {4: 0.25, 5: 0.9999, 6: 0.0001})  # right by 4, up by 2
    assert torch.equal(moved[:, :, :-2, 4:], images[:, :, 2:, :-4])


def test_geometry_of_a_rectangle_is_in_pixels():
    images = pictures(2, 3, 17, 33, torch.float64)
    turned = applied("ada_geometry", images, {2: 0.1, 3: 0.75})  # by 90 degrees
    centre = images[:, :, :, 8:25]
    torch.testing.assert_close(turned[:, :, :, 8:25], centre.rot90(1, (2, 3)))


@pytest.mark.parametrize(("height", "width"), [(16, 32), (32, 16)])
def test_geometry_moves_a_rectangle_by_shares_of_each_side(height, width):
    images = pictures(2, 3, height, width, torch.float64)
    one = 0.5 * (1 + math.erf(1 / math.sqrt(2)))  # the uniform number that gives a normal 1, an eighth of a side
    moved = applied("ada_geometry", images, {8: 0.25, 9: one, 10: one})
    down = height // 8
    right = width // 8
    torch.testing.assert_close(moved[:, :, down:, right:], images[:, :, :-down, :-right])
