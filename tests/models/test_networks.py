"""What holds for every architecture: shapes, labels, float32 logits, derivatives of second order, all weights learn."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan import models
from distgan.models.labels import LabelEmbedding, init_embedding
from distgan.samples import Condition, SampleSpec

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "dcgan": ("dcgan", {"width": 4}),
    "dcgan-none": ("dcgan", {"width": 4, "norm": "none", "init": "he"}),
    "dcgan-group": ("dcgan", {"width": 4, "d_norm": "group"}),
    "dcgan-spectral": ("dcgan", {"width": 4, "d_norm": "spectral", "init": "he"}),
    "mlp": ("mlp", {"width": 16}),
    "r3gan": ("r3gan", {"widths": [16, 16, 8], "group_width": 8}),
    "sngan": ("sngan", {"width": 4}),
}
DIFFERENTIABLE = [
    name for name in NETWORKS if name != "dcgan"
]  # a penalty per image is not defined with BatchNorm in D


def image_size(network: str) -> int:
    return 32 if network == "sngan" else 16


LABELS = {"none": 0, "classes": 2, "mixed": 2}
"""How networks are conditioned: the number of classes; "mixed" with a number and a flag beside them."""


def spec_of(network: str, kind: str = "none", size: int | None = None, channels: int = 3) -> SampleSpec:
    size = size or image_size(network)
    conditions = (Condition("energy"), Condition("tagged", "flag")) if kind == "mixed" else ()
    return SampleSpec(size, size, channels, LABELS[kind], conditions)


def build(
    network: str, kind: str = "none", seed: int = 0, size: int | None = None, channels: int = 3, **options: Any
) -> tuple[nn.Module, nn.Module]:
    name, defaults = NETWORKS[network]
    spec = spec_of(network, kind, size, channels)
    return models.build(name, spec, z_dim=8, options=defaults | options, seed=seed)


def draw(network: str, kind: str = "none", n: int = 4) -> tuple[Tensor, Tensor, Tensor | None]:
    """z, images, labels"""
    generator, size = torch.Generator().manual_seed(0), image_size(network)
    z, images = torch.randn(n, 8, generator=generator), torch.rand(n, 3, size, size, generator=generator) * 2 - 1
    classes = torch.arange(n) % max(LABELS[kind], 1)
    if kind == "mixed":
        conditions = torch.randn(n, 1, generator=generator), (torch.arange(n)[:, None] % 3 == 0).float()
        return z, images, torch.cat([F.one_hot(classes, LABELS[kind]), *conditions], 1)
    return z, images, classes if kind == "classes" else None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize(
    ("network", "size", "options"),
    [
        ("mlp", 1, {}),
        ("mlp", 12, {}),
        *[("sngan", size, {"width": 1}) for size in (32, 64, 128)],
        *[("r3gan", 2 ** (n + 1), {"widths": [8] * n}) for n in (2, 3, 4, 5, 6, 7)],
    ],
)
def test_shapes(network, size, channels, kind, options):
    G, D = build(network, kind, size=size, channels=channels, **options)
    z, _, labels = draw(network, kind, 2)
    images = G(z, labels)
    assert images.shape == (2, channels, size, size) and images.dtype == torch.float32
    assert D(images, labels).shape == (2,)
    if network == "sngan":
        assert images.abs().max() <= 1


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("network", NETWORKS)
def test_logits_and_gradients_are_float32_under_autocast_and_near_those_of_float32(network, kind):
    G, D = build(network, kind)
    z, images, labels = draw(network, kind)
    reference = D(images, labels).detach()
    with torch.autocast("cpu", torch.bfloat16):
        assert G(z, labels).dtype in (torch.bfloat16, torch.float32)
        logits = D(images, labels)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, reference, rtol=0.1, atol=0.1 * float(reference.std()) + 0.02)
    logits.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in D.parameters())


@pytest.mark.parametrize("kind", ["classes", "mixed"])
@pytest.mark.parametrize("network", NETWORKS)
def test_labels_change_both_networks(network, kind):
    G, D = build(network, kind)
    z, images, labels = draw(network, kind)
    if network == "sngan":  # its scales and shifts are the same for all classes at initialization
        for module in G.modules():
            if isinstance(module, (nn.Embedding, LabelEmbedding)):
                init_embedding(module, 1.0)
    assert labels is not None
    others = labels.roll(1)
    assert not torch.equal(G(z, labels), G(z, others)) and not torch.equal(D(images, labels), D(images, others))


@pytest.mark.parametrize("kind", ["classes", "mixed"])
@pytest.mark.parametrize("network", NETWORKS)
def test_weights_depend_on_the_seed_alone(network, kind):
    torch.manual_seed(1)
    first = build(network, kind)
    torch.manual_seed(2)
    again, other = build(network, kind), build(network, kind, seed=1)
    for a, b, c in zip(first, again, other, strict=True):
        assert all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
        assert any(not torch.equal(value, c.state_dict()[name]) for name, value in a.state_dict().items())


@pytest.mark.parametrize("kind", ["classes", "mixed"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_copy_and_the_state_give_the_same_images_and_logits(network, kind):
    G, D = build(network, kind)
    z, images, labels = draw(network, kind)
    for network_, input in ((G, z), (D, images)):
        network_(input, labels)  # moves running statistics and singular vectors
        other = build(network, kind, seed=1)[0 if network_ is G else 1]
        other.load_state_dict(network_.state_dict())
        for same in (copy.deepcopy(network_), other):
            assert torch.equal(same.eval()(input, labels), network_.eval()(input, labels))
            network_.train()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_memory_format_changes_rounding_only(network):
    G, D = build(network, "classes")
    z, images, labels = draw(network, "classes")
    other_G, other_D = (copy.deepcopy(n).to(memory_format=torch.channels_last) for n in (G, D))
    torch.testing.assert_close(other_G(z, labels), G(z, labels), rtol=1e-3, atol=1e-4)
    other = other_D(images.contiguous(memory_format=torch.channels_last), labels)
    torch.testing.assert_close(other, D(images, labels), rtol=1e-3, atol=1e-4)


def penalty(D: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
    """R1: the squared norm of D's gradient with respect to the images."""
    images = images.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(D(images, labels).sum(), images, create_graph=True)
    return gradient.square().sum()


def randomize_zeros(network: nn.Module) -> None:
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, 0.0, 0.1)


@pytest.mark.parametrize("kind", LABELS)
@pytest.mark.parametrize("network", DIFFERENTIABLE)
def test_the_derivative_of_a_gradient_penalty_is_that_of_finite_differences(network, kind):
    _, D = build(network, kind)
    randomize_zeros(D)
    D.double().eval()  # eval: the singular vectors stay
    _, images, labels = draw(network, kind, 2)
    images = images.double()
    labels = labels.double() if kind == "mixed" and labels is not None else labels
    parameters = list(D.parameters())
    gradients = torch.autograd.grad(penalty(D, images, labels), parameters, allow_unused=True)
    torch.manual_seed(0)
    directions = [torch.randn_like(p) for p in parameters]
    expected = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True) if g is not None)
    values = []
    for step in (1e-9, -2e-9):  # so small that no activation changes its sign: there the penalty jumps
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=step)
        values.append(penalty(D, images, labels).detach())
    torch.testing.assert_close((values[0] - values[1]) / 2e-9, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("network", DIFFERENTIABLE)
def test_a_gradient_penalty_under_autocast_is_near_that_of_float32(network):
    _, D = build(network)
    randomize_zeros(D)
    D.eval()
    _, images, _ = draw(network)
    values, norms = [], []
    for enabled in (False, True):
        D.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = penalty(D, images, None)
        value.backward()
        grads = [p.grad for p in D.parameters() if p.grad is not None]
        values.append(value.detach())
        norms.append(torch.stack([g.square().sum() for g in grads]).sum())
    torch.testing.assert_close(values[1], values[0], rtol=0.1, atol=1e-6)
    torch.testing.assert_close(norms[1], norms[0], rtol=0.2, atol=1e-6)


@pytest.mark.parametrize("kind", ["classes", "mixed"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_parameter_learns(network, kind):
    G, D = build(network, kind)
    optimizers = [torch.optim.Adam(n.parameters(), lr=1e-3, betas=(0.0, 0.99)) for n in (G, D)]
    z, images, labels = draw(network, kind)
    start = {name: p.detach().clone() for n in (G, D) for name, p in names(n, G)}
    unchanged = set(start)
    for i in range(20):
        for optimizer, sign in ((optimizers[1], 1), (optimizers[0], -1)):
            optimizer.zero_grad()
            fake, real = D(G(z, labels), labels), D(images, labels)
            (F.softplus(sign * fake) + F.softplus(-sign * real)).mean().backward()
            optimizer.step()
        unchanged = {name for n in (G, D) for name, p in names(n, G) if torch.equal(p, start[name])}
        if i == 0:  # no gradient passes through a layer while it is 0
            behind = {"r3gan": (".layers.0.", ".layers.2."), "sngan": (".scale.hidden.", ".shift.hidden.")}
            assert unchanged == {name for name in start if any(part in name for part in behind.get(network, ()))}
    assert not unchanged


def names(network: nn.Module, G: nn.Module):
    return [(("G." if network is G else "D.") + name, p) for name, p in network.named_parameters()]
