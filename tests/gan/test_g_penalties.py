"""Penalties of G in closed form, and the order of updates for penalties alone against a loop written out."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distgan.config.entries import PenaltyEntry
from distgan.config.keys import OptimizerConfig
from distgan.gan.g_penalties import G_PENALTIES, PATH_LENGTH_NOISE, GSample, path_lengths
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch, WeightedGPenalty, WeightedPenalty
from distgan.gan.penalties import PENALTIES, DForward, Penalty
from distgan.gan.step import train_step, update_d, update_g
from distgan.noise import keys_of, normal_noise
from distgan.training.optimizers import adam, lazy_factor

SHAPE = (2, 2, 4)
LR, BETAS = 0.01, (0.5, 0.99)


class G(nn.Module):
    """w = B z, the same for two layers; images = A_1 w_1 + A_2 w_2, with a last bias, of which w knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Linear(3, 5, dtype=torch.float64)
        self.layers = nn.Parameter(torch.randn(2, 5, 16, dtype=torch.float64))
        self.bias = nn.Parameter(torch.zeros(16, dtype=torch.float64))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        w = self.mapping(z)[:, None].repeat(1, 2, 1)
        images = torch.einsum("nlw,lwp->np", w, self.layers) + self.bias
        return {"images": images.view(-1, *SHAPE), "w": w}


class D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, 1), nn.Flatten(0))
        self.double()

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.layers(images)


def minibatch(seed: int = 1, n: int = 4) -> Minibatch:
    generator = torch.Generator().manual_seed(seed)
    numbers: Any = {"generator": generator, "dtype": torch.float64}
    return Minibatch(torch.rand(n, *SHAPE, **numbers) * 2 - 1, torch.randn(n, 3, **numbers))


def directions(z: Tensor) -> Tensor:
    """y [N, 16] of path lengths."""
    y = normal_noise(keys_of(z, PATH_LENGTH_NOISE), SHAPE).double() / (SHAPE[1] * SHAPE[2]) ** 0.5
    return y.flatten(1)


def lengths_written_out(network: Any, z: Tensor) -> Tensor:
    """The root of the mean over layers of |A_l y|^2."""
    squares = torch.einsum("lwp,np->nlw", network.layers, directions(z)).square().sum(2)
    return (squares.mean(1) + 1e-12).sqrt()


def test_path_lengths_of_a_linear_g():
    """In value, and the gradient of the penalty with respect to A."""
    network, z = G(), minibatch().z
    output = network(z)
    lengths = path_lengths(GSample(output["images"], output["w"], z))
    expected = lengths_written_out(network, z)
    torch.testing.assert_close(lengths, expected, rtol=1e-10, atol=0)
    penalty = G_PENALTIES["path_length"].compare(lengths, torch.tensor(0.3)).mean()
    gradients = [torch.autograd.grad(value, network.layers)[0] for value in (penalty, (expected - 0.3).square().mean())]
    assert gradients[1].abs().max() > 0.1
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)


def test_path_lengths_of_one_w_for_all_layers():
    """[N, w_dim] in place of [N, 1, w_dim]."""
    network, z = G(), minibatch().z
    w = network.mapping(z)
    images = (w @ network.layers[0]).view(-1, *SHAPE)
    expected = (directions(z) @ network.layers[0].T).square().sum(1).sqrt()
    torch.testing.assert_close(path_lengths(GSample(images, w, z)), expected, rtol=1e-10, atol=0)


def test_a_path_length_is_a_function_of_its_own_z():
    """The direction of an image does not depend on the other images; on average |A y| is |A| / sqrt(H W)."""
    network, z = G(), torch.randn(4000, 3, dtype=torch.float64)
    output = network(z)
    lengths = path_lengths(GSample(output["images"], output["w"], z))
    part = network(z[::2])
    torch.testing.assert_close(path_lengths(GSample(part["images"], part["w"], z[::2])), lengths[::2])
    expected = network.layers.square().sum() / 2 / (SHAPE[1] * SHAPE[2])
    torch.testing.assert_close(lengths.square().mean(), expected, rtol=0.05, atol=0)


def test_the_gradient_is_finite_where_the_length_is_0():
    network, z = G(), minibatch().z
    with torch.no_grad():
        network.layers.zero_()
    output = network(z)
    penalty = (path_lengths(GSample(output["images"], output["w"], z)) - 1).square().mean()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(penalty, [network.layers]))


def build(d: PenaltyEntry | None = None, g: PenaltyEntry | None = None) -> GAN:
    torch.manual_seed(0)
    raw_G, raw_D = G(), D()
    keys = OptimizerConfig(lr=LR, betas=BETAS)
    g_lazy, d_lazy = (lazy_factor({"it": entry} if entry else {}) for entry in (g, d))
    optimizers = adam(raw_G, keys, lazy=g_lazy), adam(raw_D, keys, lazy=d_lazy)
    return GAN(raw_G, raw_D, raw_G, raw_D, *optimizers, LOSSES["bce"])


def path_length(every: int = 1, separate: bool = False, mean: float = 0.5, stride: int = 1) -> dict:
    mean_tensor = torch.tensor(mean)
    return {"path_length": WeightedGPenalty(G_PENALTIES["path_length"], 2.0, mean_tensor, every, separate, stride)}


def exact_r1(forward: DForward) -> Tensor:
    """r1, which the package computes in float32."""
    (gradient,) = torch.autograd.grad(forward.real_logits.sum(), forward.real, create_graph=True)
    return gradient.square().sum((1, 2, 3)) / 2


def r1(every: int = 1, separate: bool = False) -> dict[str, WeightedPenalty]:
    return {"r1": WeightedPenalty(Penalty(exact_r1, sees_fakes=False), 3.0, every, separate=separate)}


def state(gan: GAN) -> dict[str, Tensor]:
    return copy.deepcopy({**gan.raw_G.state_dict(), **{f"D.{k}": v for k, v in gan.raw_D.state_dict().items()}})


def loss_of_d(network: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
    return nn.functional.softplus(-network(real)).mean() + nn.functional.softplus(network(fake)).mean()


def r1_written_out(network: nn.Module, real: Tensor) -> Tensor:
    x = real.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
    return 3.0 / 2 * gradient.square().sum((1, 2, 3)).mean()


def step(optimizer: torch.optim.Optimizer, network: nn.Module, objective: Tensor) -> None:
    optimizer.zero_grad()
    network.zero_grad()
    objective.backward()
    for parameter in network.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()


def test_updates_for_penalties_alone_written_out():
    """D, D's r1 every 3 iterations; G, G's path length every 2; each with its weight times N, c lr and beta^c."""
    gan = build(PenaltyEntry(3.0, 3, separate=True), PenaltyEntry(2.0, 2, separate=True))
    reference = copy.deepcopy(gan)
    c = {"g": 2 / 3, "d": 3 / 4}
    optimizers = {
        name: torch.optim.Adam(network.parameters(), lr=LR * c[name], betas=(0.5 ** c[name], 0.99 ** c[name]))
        for name, network in (("g", reference.raw_G), ("d", reference.raw_D))
    }
    for i in range(6):
        batch = minibatch(i)
        due = r1(3, True) if i % 3 == 0 else {}, path_length(2, True, 0.5 + i, 2) if i % 2 == 0 else {}
        train_step(gan, Batches([[batch]]), due[0], g_penalties=due[1])
        network, d = reference.raw_G, reference.raw_D
        fake = network(batch.z)["images"]
        step(optimizers["d"], d, loss_of_d(d, batch.real, fake.detach()))
        if i % 3 == 0:
            step(optimizers["d"], d, 3 * r1_written_out(d, batch.real))
        step(optimizers["g"], network, nn.functional.softplus(-d(fake)).mean())
        if i % 2 == 0:
            deviation = lengths_written_out(network, batch.z[::2]) - (0.5 + i)
            step(optimizers["g"], network, 2 * 2.0 * deviation.square().mean())
        # normal noise is float32: all but its rounding is the same
        for name, value in state(reference).items():
            torch.testing.assert_close(state(gan)[name], value, rtol=1e-12, atol=1e-12, msg=name)


def test_a_joint_penalty_is_added_to_the_loss():
    """With N times its weight."""
    gan = build()
    batch = minibatch()
    expected = copy.deepcopy(gan.raw_G)
    scalars = update_g(gan, [batch], penalties=path_length(4, stride=2))
    lengths = lengths_written_out(expected, batch.z[::2])
    penalty = 2 * (lengths - 0.5).square().mean()
    objective = nn.functional.softplus(-gan.raw_D(expected(batch.z)["images"])).mean() + 4 * penalty
    gradients = torch.autograd.grad(objective, list(expected.parameters()))
    for parameter, gradient in zip(gan.raw_G.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scalars["path_length"], penalty.detach())
    torch.testing.assert_close(scalars["path_length_mean"], lengths.mean().detach())


def test_micro_batches_add_up():
    """Of penalties with updates of their own, too: two micro-batches of two rows, of each the first is penalized."""
    batch, results = minibatch(), []
    for count in (1, 2):
        gan = build()
        columns = [[None] * count if column is None else column.chunk(count) for column in batch]
        parts = [Minibatch(*rows) for rows in zip(*columns, strict=True)]
        train_step(gan, Batches([parts]), r1(3, True), g_penalties=path_length(2, True, stride=2))
        results.append(state(gan))
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("names", [("r1",), ("r1", "r2")])
def test_an_update_for_penalties_of_real_images_alone_is_without_fakes(names):
    gan = build()
    seen: list[int] = []
    gan.raw_D.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    due = {name: WeightedPenalty(PENALTIES[name], 1.0, 2, separate=True) for name in names}
    fakes = [gan.raw_G(minibatch().z)]
    scalars = update_d(gan, [minibatch()], fakes, due)
    assert len(seen) == (3 if names == ("r1",) else 4) and set(names) <= scalars.keys()


def test_every_parameter_has_a_gradient_after_an_update_for_penalties_alone():
    """Else DDP does not average it: w knows nothing of G's last bias."""
    gan = build()
    train_step(gan, Batches([[minibatch()]]), r1(2, True), g_penalties=path_length(2, True))
    for parameter in (*gan.raw_G.parameters(), *gan.raw_D.parameters()):
        assert parameter.grad is not None
    assert gan.raw_G.bias.grad.abs().max() == 0  # type: ignore[union-attr]


def test_the_order_of_the_scalars():
    """That in which they are computed."""
    scalars = train_step(build(), Batches([[minibatch()]]), r1(2, True), g_penalties=path_length())
    assert list(scalars) == ["d_real", "d_fake", "d_loss", "d_sign", "r1", "g_loss", "path_length", "path_length_mean"]
