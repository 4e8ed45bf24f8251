"""StyleGAN2: numbers of parameters, layers against formulae, noise and styles as functions of z, what is refused."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan import models
from distgan.errors import UsageError
from distgan.gan.truncation import TruncatedGenerator
from distgan.models.equalized import EqualizedConv2d, EqualizedLinear, scaled_leaky_relu
from distgan.models.stylegan2 import MIXING, OTHER_Z
from distgan.models.stylegan2_discriminator import append_deviation
from distgan.models.stylegan2_layers import Mapping, ModulatedConv2d, StyledConv
from distgan.noise import keys_of, normal_noise, uniform_numbers
from distgan.samples import Condition, SampleSpec

TINY = {"channel_base": 64, "channel_max": 12, "w_dim": 10, "mapping_layers": 2, "d_mapping_layers": 2}
SPEC = SampleSpec(16, 24, 3, 3)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def perturb(network: nn.Module) -> nn.Module:
    """In float64, away from the initialization, where noise and biases are 0."""
    generator = torch.Generator().manual_seed(0)
    for parameter in network.double().parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def build(spec: SampleSpec = SPEC, **options: Any) -> tuple[Any, Any]:
    G, D = models.build("stylegan2", spec, z_dim=8, options=TINY | options, seed=0)
    return perturb(G), perturb(D)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max()))


@pytest.mark.parametrize(
    ("size", "base", "mapping_layers", "of_g", "of_d"),
    [
        (256, 16384, 8, 24_767_458, 24_001_089),
        (256, 16384, 2, 23_191_522, 24_001_089),
        (512, 32768, 8, 30_276_583, 28_982_849),
        (512, 32768, 2, 28_700_647, 28_982_849),
        (1024, 32768, 8, 30_370_060, 29_012_513),
        (1024, 32768, 2, 28_794_124, 29_012_513),
    ],
)
def test_numbers_of_parameters_are_the_published_ones(size, base, mapping_layers, of_g, of_d):
    options = {"channel_base": base, "mapping_layers": mapping_layers}
    with torch.device("meta"):
        G, D = models.build("stylegan2", SampleSpec(size, size, 3), z_dim=512, options=options, seed=0)
    assert (models.count_parameters(G), models.count_parameters(D)) == (of_g, of_d)
    assert G.num_ws == 2 * math.log2(size) - 2


@pytest.mark.parametrize("lr_multiplier", [1.0, 0.01])
def test_equalized_layers(lr_multiplier):
    layer: Any = EqualizedLinear(300, 200, lr_multiplier, bias=1.0).double()
    assert float(layer.weight.detach().std()) == pytest.approx(1 / lr_multiplier, rel=0.02)
    x = random(5, 300)
    expected = x @ layer.weight.T * lr_multiplier / math.sqrt(300) + 1
    close(layer(x), expected, 1e-6)  # 1 / 0.01 is rounded in float32
    conv: Any = perturb(EqualizedConv2d(4, 6, 3))
    images = random(2, 4, 5, 7)
    close(conv(images), F.conv2d(images, conv.weight / 6, conv.bias, padding=1))


def test_the_activation_keeps_the_mean_square_and_is_limited():
    x = random(10_000)
    assert float(scaled_leaky_relu(x).square().mean()) == pytest.approx(1.04, rel=0.03)
    close(scaled_leaky_relu(x, 0.5), (torch.where(x > 0, x, 0.2 * x) * 2**0.5).clamp(-0.5, 0.5))


FILTER = torch.outer(*[torch.tensor([1.0, 3, 3, 1], dtype=torch.float64)] * 2) / 64


def filtered(x: Tensor, padding: int) -> Tensor:
    """Each channel by itself."""
    return torch.cat([F.conv2d(one, FILTER[None, None], padding=padding) for one in x.split(1, 1)], 1)


@pytest.mark.parametrize("kernel", [1, 3])
def test_downsampling_filters_and_takes_every_other_pixel(kernel):
    layer: Any = perturb(EqualizedConv2d(4, 6, kernel, down=True))
    x = random(2, 4, 6, 8)
    smooth = filtered(x, padding=1 + kernel // 2)
    expected = F.conv2d(smooth, layer.weight / math.sqrt(4 * kernel**2), layer.bias)[:, :, ::2, ::2]
    close(layer(x), expected)


def convolve_by_hand(layer: Any, x: Tensor, w: Tensor) -> Tensor:
    """Image by image, with the weights written out."""
    outputs = []
    for image, vector in zip(x, w, strict=True):
        s = layer.affine.weight @ vector / math.sqrt(len(vector)) + layer.affine.bias
        weight = layer.weight / math.sqrt(layer.weight[0].numel()) * s[None, :, None, None]
        if layer.demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        if layer.up:
            stretched = image.new_zeros(len(image), 2 * image.shape[1] + 3, 2 * image.shape[2] + 3)
            stretched[:, 2:-2:2, 2:-2:2] = image
            outputs.append(4 * filtered(F.conv2d(stretched[None], weight.flip(2, 3)), padding=1))
        else:
            outputs.append(F.conv2d(image[None], weight, padding=layer.kernel // 2))
    return torch.cat(outputs)


@pytest.mark.parametrize(("kernel", "demodulate", "up"), [(3, True, False), (3, True, True), (1, False, False)])
def test_a_modulated_convolution_has_weights_for_each_image(kernel, demodulate, up):
    layer: Any = perturb(ModulatedConv2d(4, 6, kernel, 5, demodulate=demodulate, up=up))
    x = random(3, 4, 6, 8)
    w = random(3, 5, seed=1)
    close(layer(x, w), convolve_by_hand(layer, x, w))
    assert layer.has_fewer_weights(x)
    single = layer.eval()(x[:1], w[:1])
    close(single, convolve_by_hand(layer, x, w)[:1])
    assert not torch.equal(single, layer.train()(x[:1], w[:1])), "by the weights of the image, which rounds otherwise"


@pytest.mark.parametrize("up", [False, True])
def test_second_derivatives_of_a_modulated_convolution(up):
    layer: Any = perturb(ModulatedConv2d(2, 3, 3, 2, up=up))
    x, w = random(2, 2, 3, 3).requires_grad_(), random(2, 2, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x, w))
    assert torch.autograd.gradgradcheck(layer, (x, w))


def test_second_derivatives_of_d():
    D: Any = build(SampleSpec(8, 8, 1), channel_max=2, channel_base=8, group=2)[1]
    images = random(2, 1, 8, 8).requires_grad_()
    assert torch.autograd.gradgradcheck(D, images)


def test_noise_bias_and_activation_follow_the_convolution():
    layer: Any = perturb(StyledConv(4, 6, (6, 8), 5, clamp=None))
    x, w, noise = random(3, 4, 6, 8), random(3, 5, seed=1), random(3, 1, 6, 8, seed=2)
    linear = convolve_by_hand(layer, x, w) + noise * layer.noise_strength + layer.bias[:, None, None]
    close(layer(x, w, noise), scaled_leaky_relu(linear))


@pytest.mark.parametrize("z_dim", [0, 7])
def test_the_mapping_of_z_and_labels(z_dim):
    spec = SampleSpec(16, 16, 3, 0, (Condition("energy"), Condition("tagged", "flag")))
    mapping: Any = perturb(Mapping(spec, z_dim, 6, 2))
    z = 3 * random(4, z_dim) if z_dim else None
    labels = random(4, 2, seed=1)
    x = torch.cat(
        [part / part.square().mean(1, keepdim=True).sqrt() for part in (z, mapping.embed(labels)) if part is not None],
        1,
    )
    for layer in mapping.layers:
        x = x @ layer.weight.T * 0.01 / math.sqrt(x.shape[1]) + 0.01 * layer.bias
        x = torch.where(x > 0, x, 0.2 * x) * 2**0.5
    close(mapping(z, labels), x, 1e-7)  # 1e-8 is added to the mean of squares


def test_the_deviation_of_each_group_of_consecutive_images():
    x = random(7, 3, 2, 4)
    found = append_deviation(x, 3)
    assert found.shape == (7, 4, 2, 4) and torch.equal(found[:, :3], x)
    for rows in (slice(0, 3), slice(3, 6)):
        close(found[rows, 3], x[rows].std(0, correction=0).mean().expand(3, 2, 4), 1e-7)
    close(found[6, 3], torch.tensor(1e-4, dtype=x.dtype).expand(2, 4))  # of one image: sqrt(1e-8)


@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_the_logit_written_out(architecture):
    D = build(group=0, d_architecture=architecture)[1]
    images, labels = random(2, 3, 16, 24), torch.arange(2)
    x = scaled_leaky_relu(D.from_image(images))
    for block in D.blocks:
        y = scaled_leaky_relu(block.conv1(scaled_leaky_relu(block.conv0(x))))
        x = y if architecture == "plain" else (y + block.skip(x)) / 2**0.5
    x = D.output(scaled_leaky_relu(D.linear(scaled_leaky_relu(D.conv(x)).flatten(1))))
    close(D(images, labels), (x * D.map(None, labels)).sum(1) / 12**0.5)


def test_d_sees_the_other_images_of_a_group_alone():
    images, labels = random(8, 3, 16, 24), torch.arange(8) % 3
    D = build()[1]
    changed = images.clone()
    changed[5] += 1
    assert (D(images, labels) != D(changed, labels)).tolist() == [False] * 4 + [True] * 4
    close(torch.cat([D(images[:4], labels[:4]), D(images[4:], labels[4:])]), D(images, labels))
    alone = build(group=0)[1]
    assert alone.minibatch_group == 0 and alone.conv.weight.shape[1] == D.conv.weight.shape[1] - 1
    assert (alone(images, labels) != alone(changed, labels)).tolist() == [False] * 5 + [True] + [False] * 2


@pytest.mark.parametrize("architecture", ["residual", "plain"])
def test_the_layers_of_d_from_the_image_on_are_all_but_the_labels(architecture):
    D = build(d_architecture=architecture)[1]
    layers = D.layers_from_image
    assert layers[0] is D.from_image and layers[1] is D.blocks[0].conv0 and layers[-1] is D.output
    assert len(layers) == 1 + 2 * (3 if architecture == "residual" else 2) + 3
    held = {id(parameter) for layer in layers for parameter in layer.parameters()}
    assert {name for name, each in D.named_parameters() if id(each) not in held} == {
        name for name, _ in D.named_parameters() if name.startswith("map.")
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("noise", ["random", "const", "none"])
def test_images_are_a_function_of_z_and_labels(noise, training):
    """Of no generator of random numbers, and of no other row; those of other processes' rows are the same."""
    G = build(noise=noise)[0].train(training)
    z, labels = random(6, 8).float(), torch.arange(6) % 3
    images = G(z.double(), labels)["images"]
    torch.manual_seed(1)
    parts = [G(z[rows].double(), labels[rows])["images"] for rows in (slice(0, 2), slice(2, 6))]
    close(torch.cat(parts), images)
    assert torch.equal(copy.deepcopy(G)(z.double(), labels)["images"], images)


def test_noise_is_random_constant_or_none():
    G = build()[0].eval()
    w = random(1, 10).expand(2, 10)
    z = random(2, 8)
    keys = G.noise_keys(z)
    assert keys.dtype == torch.int64 and torch.equal(keys, G.noise_keys(z.float()))
    layers = [layer for layer in G.modules() if isinstance(layer, StyledConv)]
    drawn = G.layer_noises(keys)
    assert [each.shape[1:] for each in drawn] == [(1, *layer.noise_const.shape) for layer in layers]
    assert len({float(each[0, 0, 0, 0]) for each in drawn}) == len(layers), "each layer has a noise of its own"
    first, second = G.synthesis(w, keys)["images"]
    assert (first - second).abs().max() > 1e-3
    constant = G.synthesis(w)["images"]
    close(constant[0], constant[1])
    G.noise = "const"
    assert G.noise_keys(z) is None and torch.equal(G.synthesis(w)["images"], constant)
    G.noise = "none"
    assert G.noise_keys(z) is None
    without = G.synthesis(w)["images"]
    for layer in layers:
        layer.noise_strength.data.zero_()
    close(G.synthesis(w, keys)["images"], without)
    assert (without - constant).abs().max() > 1e-3


def test_styles_are_mixed_in_training_alone():
    """By the numbers of keys of z: from a layer on, never the first, w is that of another z."""
    G = build(mixing=0.7)[0]
    z, labels = random(200, 8), torch.arange(200) % 3
    ws = G.train()(z, labels)["w"]
    w = G.mapping(z, labels)
    other = G.mapping(normal_noise(keys_of(z, OTHER_Z), (8,)).double(), labels)
    mixed, place = uniform_numbers(keys_of(z, MIXING), 2).unbind(1)
    first = torch.where(mixed < 0.7, 1 + (place * 5).floor(), 6)
    assert G.num_ws == 6 and set(first.tolist()) == {1, 2, 3, 4, 5, 6}
    assert 0.6 < float((first < 6).double().mean()) < 0.8
    expected = [torch.where((first <= k)[:, None], other, w) for k in range(6)]
    assert torch.equal(ws, torch.stack(expected, 1))
    assert torch.equal(G.eval()(z, labels)["w"], w[:, None].expand(-1, 6, -1))
    assert torch.equal(build(mixing=0)[0].train()(z, labels)["w"], w[:, None].expand(-1, 6, -1))


@pytest.mark.parametrize("training", [True, False])
def test_the_gradient_of_images_with_respect_to_the_returned_w(training):
    """As the path length takes it; it has a derivative of its own, which reaches every weight that w meets."""
    G = build()[0].train(training)
    output = G(random(4, 8), torch.arange(4) % 3)
    (gradient,) = torch.autograd.grad(
        (output["images"] * random(4, 3, 16, 24, seed=2)).sum(), output["w"], create_graph=True
    )
    assert gradient.shape == (4, 6, 10) and (gradient.flatten(2).abs().amax(2) > 0).all()
    gradient.square().sum().backward()
    without = {name for name, each in G.named_parameters() if each.grad is None}
    assert without == {f"blocks.{k}.to_image.bias" for k in range(3)}


def test_w_for_each_layer():
    """w+ of the same w is w; a layer's w changes the image from its layer on alone."""
    G = build()[0].eval()
    w = random(2, 10)
    image = G.synthesis(w)["images"]
    assert torch.equal(G.synthesis(w[:, None].repeat(1, 6, 1))["images"], image)
    plus = w[:, None].repeat(1, 6, 1)
    for k in range(6):
        changed = plus.clone()
        changed[0, k] += 1
        found = G.synthesis(changed)["images"]
        assert (found[0] - image[0]).abs().max() > 1e-3 and torch.equal(found[1], image[1])


def test_truncation_passes_noise_and_takes_the_mean_of_a_converted_network():
    G = build(w_mean=True)[0].eval()
    G.w_mean += random(10, seed=3)
    z, labels = random(3, 8), torch.arange(3)
    w = G.w_mean + 0.6 * (G.mapping(z, labels) - G.w_mean)
    expected = G.synthesis(w, G.noise_keys(z))["images"]
    close(TruncatedGenerator(G, 0.6, 8)(z, labels)["images"], expected)
    plain = build()[0].eval()
    assert not hasattr(plain, "w_mean") and "w_mean" in dict(G.named_buffers())
    assert (TruncatedGenerator(plain.float(), 0.6, 8)(z.float(), labels)["images"] - expected).abs().max() > 1e-3


def test_a_scale_of_the_styles_does_not_overflow_in_half_precision():
    """d undoes it; x s alone would be infinite in float16."""
    layer: Any = ModulatedConv2d(4, 6, 3, 5)
    layer.affine.bias.data.fill_(1e5)
    x, w = random(2, 4, 6, 8).float(), random(2, 5, seed=1).float()
    with torch.autocast("cpu", torch.float16):
        found = layer(x.half(), w)
    expected = layer(x, w)
    assert found.dtype == torch.float16
    assert (found - expected).abs().max() < 0.01 * expected.abs().max()


def test_the_highest_four_resolutions_are_in_half_precision_under_autocast():
    G, D = models.build("stylegan2", SampleSpec(128, 128, 3), z_dim=8, options=TINY | {"channel_base": 256}, seed=0)
    seen: dict[str, torch.dtype] = {}
    for network in (G, D):
        for name, layer in network.named_modules():
            if name.startswith("blocks") and name.count(".") == 2:
                layer.register_forward_hook(lambda layer, inputs, output, name=name: seen.update({name: output.dtype}))
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            output = G(torch.randn(2, 8))["images"] if network is G else D(torch.randn(2, 3, 128, 128))
        assert output.dtype == torch.float32
        half = range(2, 6) if network is G else range(4)  # blocks; G has one of the base, D begins with the highest
        assert {int(name.split(".")[1]) for name, dtype in seen.items() if dtype == torch.bfloat16} == set(half)
        seen.clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channel_base": 8}, "channel_base: 8 leaves no feature .* at least 16"),
        ({"channel_max": 0}, "channel_max: 0 is not a positive integer"),
        ({"mixing": 1.5}, "mixing: 1.5 is not a probability"),
        ({"mixing": True}, "mixing: True is not a probability"),
        ({"clamp": 0}, "clamp: 0 is neither null nor a positive number"),
        ({"group": -1}, "group: -1 is not an integer of at least 0"),
        ({"noise": "gauss"}, "noise: unknown noise 'gauss'; choose from random, const, none"),
        ({"d_architecture": "skip"}, "d_architecture: unknown architecture 'skip'; choose from residual, plain"),
        ({"w_mean": 1}, "w_mean: 1 is neither true nor false"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(UsageError, match=f"model.options.{message}"):
        models.build("stylegan2", SPEC, z_dim=8, options=TINY | options, seed=0)


def test_the_clamp_limits_what_leaves_the_convolutions():
    G, D = build(clamp=0.5)
    seen: list[float] = []
    for layer in G.modules():
        if isinstance(layer, StyledConv):
            layer.register_forward_hook(lambda layer, inputs, output: seen.append(float(output.detach().abs().max())))
    assert (G(random(2, 8), torch.arange(2))["images"]).abs().max() <= 3 * 0.5, "the sum of three resolutions"
    assert len(seen) == 5 and max(seen) == 0.5
    assert not torch.equal(
        D(random(4, 3, 16, 24), torch.arange(4) % 3), build()[1](random(4, 3, 16, 24), torch.arange(4) % 3)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the exporter's dependencies
@pytest.mark.parametrize("noise", ["random", "const", "none"])
def test_g_is_exported_for_any_number_of_images(noise):
    """The keys of noise too: they are operations on integers."""
    G = build(noise=noise)[0].float().eval().requires_grad_(False)
    n = torch.export.Dim("n")
    z, labels = random(5, 8).float(), torch.arange(5) % 3
    program = torch.export.export(G, (z[:2], labels[:2]), dynamic_shapes=({0: n}, {0: n})).module()
    torch.testing.assert_close(program(z, labels), G(z, labels))
