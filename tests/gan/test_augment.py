"""Augmentations: second derivatives, the identity at p = 0, known values, the papers' distributions and matrices."""

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from distgan.gan.augment import AUGMENTATIONS, Pipeline
from distgan.gan.warp import bilinear, rotation, sources, translate

NAMES = list(AUGMENTATIONS)
EVERYTHING = Pipeline([(name, 1.0) for name in NAMES])
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
ON, OFF = 0.25, 0.75  # as the number that says whether, at p = 0.5
SWITCHES = {"ada_blit": [0, 2, 4], "ada_geometry": [0, 2, 4, 6, 8], "ada_color": [0, 2, 4, 6, 8]}
"""The columns that say whether; column 0 in the others."""


def pictures(n: int, channels: int = 3, size: int = 8, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, channels, size, size, dtype=dtype, generator=torch.Generator().manual_seed(n)) * 2 - 1


def numbers(n: int, columns: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(n, columns, dtype=dtype, generator=torch.Generator().manual_seed(seed)).clamp(1e-6, 1 - 1e-6)


def applied(name: str, images: Tensor, settings: dict[int, float]) -> Tensor:
    """`images` with only those transformations drawn whose columns are in `settings`."""
    u = torch.full((len(images), AUGMENTATIONS[name].columns), OFF, dtype=images.dtype)
    for column, value in settings.items():
        u[:, column] = value
    return AUGMENTATIONS[name].apply(images, u, 0.5)


def quantile(normal: float) -> float:
    """The uniform number that gives a normal one."""
    return 0.5 * (1 + math.erf(normal / math.sqrt(2)))


def ramps(n: int, size: int) -> Tensor:
    """Images whose channels are x and y, in pixels from the centre: after resampling, where each pixel came from."""
    r = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    return torch.stack([r.expand(size, size), r[:, None].expand(size, size)]).expand(n, 2, size, size).contiguous()


def assert_distributed(values: Tensor, quantiles: Tensor, tolerance: float = 0.03) -> None:
    """Kolmogorov and Smirnov's distance; `quantiles` are the distribution function at the `values`."""
    order = quantiles[values.argsort()]
    expected = (torch.arange(len(order), dtype=order.dtype) + 0.5) / len(order)
    assert (order - expected).abs().max() < tolerance


def normal_cdf(values: Tensor, deviation: float) -> Tensor:
    return torch.special.ndtr(values / deviation)


# Of every augmentation.


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("part", [*AUGMENTATIONS.values(), EVERYTHING], ids=[*NAMES, "pipeline"])
def test_every_augmentation_has_second_derivatives(part, channels):
    images = pictures(2, channels, dtype=torch.float64).requires_grad_()
    u = numbers(2, part.columns, dtype=torch.float64)
    apply = part if isinstance(part, Pipeline) else part.apply
    assert gradcheck(lambda x: apply(x, u, 1.0), images, fast_mode=True)
    # Cubed, as D is not linear: the penalty's gradient passes through both derivatives of the augmentation.
    assert gradgradcheck(lambda x: apply(x, u, 1.0) ** 3, images, fast_mode=True)


def test_a_penalty_through_the_pipeline_has_the_gradient_of_finite_differences():
    u, image = numbers(1, EVERYTHING.columns, 5, torch.float64), pictures(1, dtype=torch.float64)

    def penalty(x: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad((EVERYTHING(x, u, 1.0) ** 3).sum(), x, create_graph=True)
        return gradient.square().sum()

    x = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(penalty(x), x)
    direction = pictures(1, dtype=torch.float64).flip(3)
    ahead, behind = (penalty((image + step * direction).requires_grad_()) for step in (1e-5, -1e-5))
    assert (gradient * direction).sum().item() == pytest.approx(((ahead - behind) / 2e-5).item(), rel=1e-6)
    assert gradient.abs().max() > 0.1


@pytest.mark.parametrize(
    ("part", "backend"),
    [
        pytest.param(EVERYTHING, "aot_eager", id="traced"),
        *[pytest.param(part, "inductor", id=name, marks=pytest.mark.slow) for name, part in AUGMENTATIONS.items()],
    ],
)
def test_compiled_once_for_every_p_it_has_the_same_values_and_derivatives(part, backend):
    apply = part if isinstance(part, Pipeline) else part.apply

    def derivatives(images: Tensor, u: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = apply(images, u, p)
        (first,) = torch.autograd.grad(values.pow(3).sum(), images, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), images)
        return values.detach(), first.detach(), second

    images, u = pictures(8, dtype=torch.float64).requires_grad_(), numbers(8, part.columns)
    torch._dynamo.reset()  # what other parts were compiled to would count as a recompilation
    with torch._dynamo.config.patch(trace_autograd_ops=True, error_on_recompile=True):
        compiled = torch.compile(derivatives, fullgraph=True, dynamic=False, backend=backend)
        for p in (torch.tensor(0.0), torch.tensor(0.3), torch.tensor(1.0)):
            for ours, theirs in zip(compiled(images, u, p), derivatives(images, u, p), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [*NAMES, "pipeline"])
def test_at_p_0_images_stay_bitwise_the_same(name, dtype):
    apply, columns = (
        (EVERYTHING, EVERYTHING.columns)
        if name == "pipeline"
        else (AUGMENTATIONS[name].apply, AUGMENTATIONS[name].columns)
    )
    images = pictures(16, size=9).to(dtype)
    images[0, 0] = -0.0  # equal to 0.0, but not bitwise
    for p in (0.0, torch.tensor(0.0)):
        out = apply(images, numbers(16, columns), p)
        assert out.dtype == dtype
        bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
        assert torch.equal(out.view(bits), images.view(bits))


@pytest.mark.parametrize("name", NAMES)
def test_the_share_of_changed_images_is_p(name):
    n, p = 2000, 0.4
    images, part = pictures(n), AUGMENTATIONS[name]
    changed = (part.apply(images, numbers(n, part.columns), p) != images).flatten(1).any(1).double().mean().item()
    unmoved = {"translation": 1 / 9, "ada_blit": 1 / 4}.get(name, 0)  # offset (0, 0)
    left = {
        "translation": 1 - p * (1 - unmoved),
        "ada_blit": (1 - p / 2) * (1 - p * 3 / 4) * (1 - p * (1 - unmoved)),  # half of the flips, 1/4 of turns: none
        "ada_geometry": (1 - p) ** 4,  # both rotations together: p
        "ada_color": (1 - p) ** 4 * (1 - p / 2),
    }.get(name, 1 - p)
    assert changed == pytest.approx(1 - left, abs=0.035)  # three standard deviations


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_an_images_result_does_not_depend_on_its_batch(name, channels):
    part, images = AUGMENTATIONS[name], pictures(33, channels, 16)
    u = numbers(33, part.columns)
    whole = part.apply(images, u, 0.7)
    for rows in (slice(0, 1), slice(1, 8), slice(8, 33)):
        assert torch.equal(part.apply(images[rows], u[rows], 0.7), whole[rows])


@pytest.mark.parametrize("name", [*NAMES, "pipeline"])
def test_p_may_be_a_tensor_and_images_channels_last_or_bf16_or_under_autocast(name):
    part = AUGMENTATIONS.get(name)
    apply, columns = (part.apply, part.columns) if part else (EVERYTHING, EVERYTHING.columns)
    images, u = pictures(32, size=16), numbers(32, columns)
    expected = apply(images, u, 0.6)
    assert expected.is_contiguous() and expected.shape == images.shape and not torch.equal(expected, images)
    assert torch.equal(apply(images, u, torch.tensor(0.6)), expected)
    last = apply(images.contiguous(memory_format=torch.channels_last), u, 0.6)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(apply(images, u, 0.6), expected)
    half = images.bfloat16()
    rounded = apply(half, u, 0.6)
    assert rounded.dtype == torch.bfloat16
    parts = len(NAMES) if name == "pipeline" else 1  # each rounds its result, and contrast enlarges what is before it
    torch.testing.assert_close(rounded.float(), apply(half.float(), u, 0.6), rtol=2**-7 * parts, atol=2**-7 * parts)


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket._qualified_op_name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("device", DEVICES)
def test_no_operator_waits_for_the_device_or_is_nondeterministic(device):
    images, u = pictures(4).to(device).requires_grad_(), numbers(4, EVERYTHING.columns).to(device)
    p = torch.tensor(0.5, device=device)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        with Operators() as seen:
            if device == "cuda":
                torch.cuda.set_sync_debug_mode("error")
            (gradient,) = torch.autograd.grad((EVERYTHING(images, u, p) ** 2).sum(), images, create_graph=True)
            gradient.square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(before)
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    waiting = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "index", "_index_put_impl_"}
    raising = {"grid_sampler_2d", "reflection_pad2d", "reflection_pad2d_backward", "upsample_bilinear2d", "put_"}
    assert not seen.names & (waiting | raising)
    assert {"scatter_add", "scatter_add_"} & seen.names  # the derivative of taking pixels, allowed


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_gives_what_the_cpu_gives(name):
    part, images = AUGMENTATIONS[name], pictures(64, size=32)
    u = numbers(64, part.columns)
    torch.testing.assert_close(
        part.apply(images.cuda(), u.cuda(), 0.8).cpu(), part.apply(images, u, 0.8), rtol=0, atol=1e-3
    )


def test_the_pipeline_applies_its_entries_in_order_each_with_its_own_numbers_and_factor():
    pipeline = Pipeline([("ada_cutout", 1.0), ("color", 0.5), ("ada_blit", 1.0)])
    assert pipeline.columns == 3 + 4 + 7
    images, u = pictures(64), numbers(64, 14)
    expected = AUGMENTATIONS["ada_cutout"].apply(images, u[:, :3], 0.8)
    expected = AUGMENTATIONS["color"].apply(expected, u[:, 3:7], 0.4)
    expected = AUGMENTATIONS["ada_blit"].apply(expected, u[:, 7:], 0.8)
    assert torch.equal(pipeline(images, u, 0.8), expected)
    assert torch.equal(Pipeline([])(images, u[:, :0], 0.8), images)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_rounded_to_0_or_1_give_finite_images(name):
    columns = AUGMENTATIONS[name].columns
    for value in (0.0, 1.0):
        u = torch.full((2, columns), value)
        u[:, SWITCHES.get(name, [0])] = 0.0
        assert AUGMENTATIONS[name].apply(pictures(2), u, 1.0).isfinite().all()


def test_a_number_rounded_to_1_draws_the_last_of_the_choices():
    images = pictures(2)
    assert torch.equal(applied("ada_blit", images, {0: ON, 1: 1.0}), images.flip(3))
    assert torch.equal(applied("ada_color", images[:, :1], {4: ON, 5: 1.0}), -images[:, :1])
    moved = applied("translation", images, {0: ON, 1: 1.0, 2: 1.0})
    assert torch.equal(moved[:, :, 1:, 1:], images[:, :, :-1, :-1])


# DiffAugment.


def test_color_has_known_values():
    images = pictures(2, dtype=torch.float64)
    torch.testing.assert_close(applied("color", images, {0: ON, 1: 0.9, 2: 0.5, 3: 0.5}), images + 0.4)
    grey = images.mean(1, keepdim=True).expand_as(images)
    torch.testing.assert_close(applied("color", images, {0: ON, 1: 0.5, 2: 0.0, 3: 0.5}), grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(applied("color", images, {0: ON, 1: 0.5, 2: 0.5, 3: 0.0}), mean + (images - mean) / 2)
    flat = applied("color", images, {0: ON, 1: 0.5, 2: 0.1, 3: 0.9})  # neither saturation nor contrast moves the mean
    torch.testing.assert_close(flat.mean((1, 2, 3)), images.mean((1, 2, 3)))


def test_color_follows_the_papers_distributions():
    n, part = 4000, AUGMENTATIONS["color"]
    u = numbers(n, 4, dtype=torch.float64)
    image = torch.tensor([[1.0, 1.0], [-1.0, 0.0], [-1.0, -1.0]], dtype=torch.float64)  # two colours: [C, 2]
    out = part.apply(image.repeat_interleave(32, 1).view(1, 3, 8, 8).expand(n, 3, 8, 8), u, 1.0).flatten(2)[
        ..., [0, 63]
    ]
    brightness = out.mean((1, 2)) - image.mean()
    contrast = (out.mean(1)[:, 0] - out.mean(1)[:, 1]) / (image.mean(0)[0] - image.mean(0)[1])
    saturation = (out[:, 0, 0] - out[:, 2, 0]) / 2 / contrast
    assert_distributed(brightness, brightness + 0.5)
    assert_distributed(contrast, contrast - 0.5)
    assert_distributed(saturation, saturation / 2)


def test_translation_moves_whole_pixels_and_fills_with_zeros():
    images, offset = pictures(3), torch.tensor([[2.0, 0.0], [-1.0, 3.0], [0.0, 0.0]])
    moved = translate(images, offset)
    assert torch.equal(moved[0, :, :, 2:], images[0, :, :, :-2]) and not moved[0, :, :, :2].any()  # right
    assert torch.equal(moved[1, :, 3:, :-1], images[1, :, :-3, 1:])  # left and down
    assert not moved[1, :, :3].any() and not moved[1, :, :, -1].any()
    assert torch.equal(moved[2], images[2])


@pytest.mark.parametrize(("size", "most"), [(32, 4), (8, 1), (28, 4)])
def test_translation_is_uniform_over_an_eighth_of_the_size(size, most):
    n, middle = 3000, size // 2
    images = torch.zeros(n, 1, size, size)
    images[:, :, middle, middle] = 1
    places = AUGMENTATIONS["translation"].apply(images, numbers(n, 3), 1.0).flatten(1).argmax(1)
    for offsets in (places // size - middle, places % size - middle):
        values, counts = offsets.unique(return_counts=True)
        assert values.tolist() == list(range(-most, most + 1))
        assert (counts / n - 1 / len(values)).abs().max() < 0.025


@pytest.mark.parametrize("size", [8, 9, 10, 32])
@pytest.mark.parametrize("name", ["cutout", "ada_cutout"])
def test_cutout_fills_half_the_width_anywhere_in_the_image(name, size):
    n, half = 4000, (size + 1) // 2
    out = AUGMENTATIONS[name].apply(torch.ones(n, 1, size, size), numbers(n, 3), 1.0)[:, 0]
    height, width = ((out == 0).any(axis).sum(1) for axis in (2, 1))
    assert torch.equal((out == 0).flatten(1).sum(1), height * width)  # a rectangle
    inside = out[:, 0, :].all(1) & out[:, -1, :].all(1) & out[:, :, 0].all(1) & out[:, :, -1].all(1)
    allowed = {half} if name == "cutout" or size % 2 == 0 else {half - 1, half}  # of 9: 4.5 pixels wide
    assert set(height[inside].tolist()) | set(width[inside].tolist()) <= allowed and inside.any()
    assert height.max() == width.max() == half and height.min() <= half // 2 + 1  # cut by the border, half remains
    centre_column = (out == 0).any(1)[:, size // 2].double().mean().item()
    assert centre_column == pytest.approx(half / size, abs=0.06)
    in_corner = (out[:, 0, 0] == 0).double().mean().item()
    assert in_corner == pytest.approx(1 / 16, abs=0.06)


# ADA.


def test_blit_flips_turns_and_moves_exactly():
    images = pictures(2, size=9)
    assert torch.equal(applied("ada_blit", images, {0: ON, 1: 0.9}), images.flip(3))
    for turns in range(4):
        turned = applied("ada_blit", images, {2: ON, 3: (turns + 0.5) / 4})
        assert torch.equal(turned, images.rot90(turns, (2, 3)))
        both = applied("ada_blit", images, {0: ON, 1: 0.9, 2: ON, 3: (turns + 0.5) / 4})
        assert torch.equal(both, images.flip(3).rot90(turns, (2, 3)))
    images = pictures(2, size=32)
    moved = applied("ada_blit", images, {4: ON, 5: 0.5 + 3 / 8, 6: 0.5 - 2 / 8})  # right by 3, up by 2
    assert torch.equal(moved[:, :, :-2, 3:], images[:, :, 2:, :-3])
    assert torch.equal(moved[:, :, :-2, :3], images[:, :, 2:, 1:4].flip(3))  # reflected about the border's centre


def test_blit_keeps_the_pixels_and_follows_the_papers_distributions():
    n, size = 4000, 17
    images, part = ramps(n, size), AUGMENTATIONS["ada_blit"]
    u = numbers(n, 7, dtype=torch.float64)
    u[:, 4] = 1.0
    out = part.apply(images, u, 0.999)
    assert torch.equal(out.flatten(2).sort(2).values, images.flatten(2).sort(2).values)
    right = out[:, :, 8, 9]  # where the pixel right of the centre came from; the centre stays
    assert all(abs((right == torch.tensor(way)).all(1).double().mean() - 0.25) < 0.025 for way in ([1, 0], [-1, 0]))
    handedness = right[:, 0] * out[:, 1, 9, 8] - right[:, 1] * out[:, 0, 9, 8]
    assert handedness.mean().abs() < 0.05  # flipped as often as not
    u = numbers(n, 7, dtype=torch.float64)
    u[:, 0], u[:, 2] = 1.0, 1.0
    offset = -part.apply(images, u, 0.999)[:, :, 8, 8]
    assert torch.equal(offset, offset.round())
    for axis in (0, 1):  # U(-2.125, 2.125), rounded
        values, counts = offset[:, axis].unique(return_counts=True)
        expected = torch.tensor([0.625, 1, 1, 1, 0.625], dtype=torch.float64) / 4.25
        assert values.tolist() == [-2, -1, 0, 1, 2] and (counts / n - expected).abs().max() < 0.025


def affine(images: Tensor, matrix: list[float], offset: tuple[float, float] = (0.0, 0.0)) -> Tensor:
    """Images resampled by one inverse map [a, b, c, d] and one translation."""
    n = len(images)
    inverse = torch.tensor(matrix, dtype=images.dtype).view(1, 2, 2).expand(n, 2, 2)
    return bilinear(
        images, *sources(inverse, torch.tensor([offset], dtype=images.dtype).expand(n, 2), *images.shape[2:])
    )


def test_the_resampler_equals_torch_where_no_pixel_is_interpolated():
    images = pictures(3, size=11)
    for turns in range(-3, 4):
        matrix = rotation(torch.full((3,), turns * math.pi / 2))
        turned = bilinear(images, *sources(matrix, torch.zeros(3, 2), 11, 11))
        torch.testing.assert_close(turned, images.rot90(turns, (2, 3)), rtol=0, atol=1e-5)
    assert torch.equal(affine(images, [1, 0, 0, 1]), images)
    torch.testing.assert_close(affine(images, [-1, 0, 0, 1]), images.flip(3))


def test_the_resampler_is_linear_between_pixels():
    ramp = ramps(1, 16)
    inner = slice(2, -2)
    shifted = affine(ramp, [1, 0, 0, 1], (0.5, -0.25))
    torch.testing.assert_close(shifted[0, 0, inner, inner], ramp[0, 0, inner, inner] - 0.5)
    torch.testing.assert_close(shifted[0, 1, inner, inner], ramp[0, 1, inner, inner] + 0.25)
    torch.testing.assert_close(affine(ramp, [0.5, 0, 0, 0.5]), ramp / 2)  # scaled by 2
    torch.testing.assert_close(affine(ramp, [2, 0, 0, 2])[:, :, 4:-4, 4:-4], 2 * ramp[:, :, 4:-4, 4:-4])


def test_outside_is_reflected_as_numpy_does_however_far():
    images = pictures(1, size=8)
    padded = torch.nn.functional.pad(images, (7, 7, 7, 7), mode="reflect")
    torch.testing.assert_close(affine(images, [1, 0, 0, 1], (5.0, -6.0)), padded[:, :, 13:21, 2:10])
    period = 2 * 7
    torch.testing.assert_close(affine(images, [1, 0, 0, 1], (3.0 * period, -2.0 * period)), images)


def test_geometry_is_the_papers_product_of_matrices():
    n, size = 50, 65
    u = numbers(n, 11, 3, torch.float64)
    u[:, 9:] = 0.4 + u[:, 9:] / 5  # not so far that the corners below come from outside
    scale, stretch = (torch.exp2(0.2 * torch.special.ndtri(u[:, k])) for k in (1, 5))
    before, after = (math.pi * (2 * u[:, k] - 1) for k in (3, 7))
    x, y = (torch.special.ndtri(u[:, k]) * 0.125 * size for k in (9, 10))
    one, zero = torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack(entries, 1).view(n, 3, 3)

    def turn(angle: Tensor) -> Tensor:  # counter-clockwise, as y points down
        return matrix(angle.cos(), angle.sin(), zero, -angle.sin(), angle.cos(), zero, zero, zero, one)

    G = matrix(scale, zero, zero, zero, scale, zero, zero, zero, one)
    G = turn(before) @ G
    G = matrix(stretch, zero, zero, zero, 1 / stretch, zero, zero, zero, one) @ G
    G = turn(after) @ G
    G = matrix(one, zero, x, zero, one, y, zero, zero, one) @ G
    square = slice(size // 2 - 4, size // 2 + 5)
    out = ramps(n, size)[:, :, square, square]
    homogeneous = torch.cat([out, torch.ones_like(out[:, :1])], 1).flatten(2)
    expected = (torch.linalg.inv(G) @ homogeneous)[:, :2].view_as(out)
    assert expected.abs().max() < size / 2  # so that none is reflected
    came_from = AUGMENTATIONS["ada_geometry"].apply(ramps(n, size), u, 1.0)[:, :, square, square]
    torch.testing.assert_close(came_from, expected)


def inverse_maps(u: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """(linear parts [N, 2, 2], places of the centre [N, 2]) of ada_geometry's maps, seen from what it does to ramps."""
    size = 17
    out = AUGMENTATIONS["ada_geometry"].apply(ramps(len(u), size), u, p)
    centre = out[:, :, 8, 8]
    return torch.stack([out[:, :, 8, 9] - centre, out[:, :, 9, 8] - centre], 2), centre


def test_geometry_follows_the_papers_distributions():
    n = 2000
    u = numbers(n, 11, 1, torch.float64)
    u[:, 8] = 1.0
    linear, centre = inverse_maps(u, 0.9999)
    assert centre.abs().max() < 1e-9
    log_scale = -torch.linalg.det(linear).log2() / 2
    assert_distributed(log_scale, normal_cdf(log_scale, 0.2))
    singular = torch.linalg.svdvals(linear)
    log_stretch = (singular[:, 0] / singular[:, 1]).log2() / 2
    assert_distributed(log_stretch, 2 * normal_cdf(log_stretch, 0.2) - 1)
    u[:, [0, 4]] = 1.0  # rotations only
    linear, _ = inverse_maps(u, 0.9999)
    angle = torch.atan2(linear[:, 1, 0], linear[:, 0, 0])
    assert_distributed(angle, angle / (2 * math.pi) + 0.5)
    linear, _ = inverse_maps(u, 0.5)  # either rotation or both: p
    assert (linear[:, 0, 1].abs() > 1e-9).double().mean().item() == pytest.approx(0.5, abs=0.035)
    u = numbers(n, 11, 2, torch.float64)
    u[:, [0, 2, 4, 6]] = 1.0  # translation only
    _, centre = inverse_maps(u, 0.9999)
    for axis in (0, 1):
        assert_distributed(-centre[:, axis], normal_cdf(-centre[:, axis], 0.125 * 17))


def test_ada_color_has_known_values():
    images = pictures(2, dtype=torch.float64)
    grey = images[:, :1].expand_as(images)
    torch.testing.assert_close(applied("ada_color", images, {0: ON, 1: quantile(1.5)}), images + 0.3)
    torch.testing.assert_close(applied("ada_color", images, {2: ON, 3: quantile(2)}), images * 2)
    flip = {4: ON, 5: 0.9}
    luma = images.mean(1, keepdim=True)
    flipped = applied("ada_color", images, flip)
    torch.testing.assert_close(flipped, images - 2 * luma)
    torch.testing.assert_close(applied("ada_color", flipped, flip), images)
    torch.testing.assert_close(applied("ada_color", images, {4: ON, 5: 0.1}), images)
    half_turn = {6: ON, 7: 1.0}
    torch.testing.assert_close(applied("ada_color", images, half_turn), 2 * luma - images)
    torch.testing.assert_close(applied("ada_color", grey, half_turn), grey)
    third = applied("ada_color", images, {6: ON, 7: 0.5 + 1 / 3})  # a third of a turn takes red to green to blue
    torch.testing.assert_close(third, images.roll(1, 1))
    torch.testing.assert_close(applied("ada_color", images, {8: ON, 9: quantile(1)}), luma + 2 * (images - luma))


def test_ada_color_is_the_papers_product_of_matrices():
    n = 50
    u = numbers(n, 10, 3, torch.float64)
    normals, eye = torch.special.ndtri(u), torch.eye(4, dtype=torch.float64).expand(n, 4, 4)
    v = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64) / math.sqrt(3)
    luma = torch.outer(v, v)
    brightness, contrast = eye.clone(), eye.clone()
    brightness[:, :3, 3] = 0.2 * normals[:, 1:2]
    contrast[:, range(3), range(3)] = torch.exp2(0.5 * normals[:, 3:4])
    flip = eye - 2 * luma * (u[:, 5] >= 0.5).view(n, 1, 1)
    cross = torch.zeros(4, 4, dtype=torch.float64)
    cross[:3, :3] = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]).double() / math.sqrt(3)
    hue = torch.linalg.matrix_exp(cross * (math.pi * (2 * u[:, 7] - 1)).view(n, 1, 1))
    saturation = luma + (eye - luma) * torch.exp2(normals[:, 9]).view(n, 1, 1)
    saturation[:, 3, 3] = 1
    C = saturation @ hue @ flip @ contrast @ brightness
    images = pictures(n, dtype=torch.float64)
    homogeneous = torch.cat([images, torch.ones_like(images[:, :1])], 1).flatten(2)
    expected = (C @ homogeneous)[:, :3].view_as(images)
    torch.testing.assert_close(AUGMENTATIONS["ada_color"].apply(images, u, 1.0), expected)


def test_ada_color_of_grey_is_the_same_in_one_channel_as_in_three():
    grey, u = pictures(64, 1, dtype=torch.float64), numbers(64, 10, dtype=torch.float64)
    apply = AUGMENTATIONS["ada_color"].apply
    torch.testing.assert_close(apply(grey.expand(64, 3, 8, 8), u, 0.7), apply(grey, u, 0.7).expand(64, 3, 8, 8))


def test_ada_color_follows_the_papers_distributions():
    n = 4000
    palette = torch.cat([torch.zeros(3, 1), torch.eye(3)], 1).double()  # black, red, green, blue: [C, 4]
    images = palette.repeat_interleave(16, 1).view(1, 3, 8, 8).expand(n, 3, 8, 8)
    out = AUGMENTATIONS["ada_color"].apply(images, numbers(n, 10, dtype=torch.float64), 0.9999).flatten(2)[..., ::16]
    offset, linear = out[..., 0], out[..., 1:] - out[..., :1]
    luma_gain = linear.sum((1, 2)) / 3
    assert (luma_gain < 0).double().mean().item() == pytest.approx(0.5, abs=0.025)
    assert_distributed(luma_gain.abs().log2(), normal_cdf(luma_gain.abs().log2(), 0.5))
    brightness = offset.mean(1) / luma_gain
    assert_distributed(brightness, normal_cdf(brightness, 0.2))
    first = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64) / math.sqrt(2)  # two axes across the luma axis
    second = torch.tensor([1.0, 1.0, -2.0], dtype=torch.float64) / math.sqrt(6)
    along, across = linear @ first @ first, linear @ first @ second
    saturation = torch.hypot(along, across).log2() - luma_gain.abs().log2()
    assert_distributed(saturation, normal_cdf(saturation, 1.0))
    hue = torch.atan2(across, along)
    assert_distributed(hue, hue / (2 * math.pi) + 0.5)
