"""Gradient penalties of D in closed form, and their gradients with respect to D's weights."""

import pytest
import torch
from torch import Tensor

from distgan.gan.finite_difference import LogitChange, perturb
from distgan.gan.penalties import PENALTIES, DForward
from distgan.noise import normal_noise

KEYS = torch.arange(5)
SIGMA = 0.01


def images(n: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, n, 3, 4, 4, generator=generator, dtype=torch.float64)
    return real.requires_grad_(True), fake.requires_grad_(True)


def forward(D, real: Tensor, fake: Tensor, mix: Tensor | None = None) -> DForward:
    changes = [LogitChange(D(x), D(perturb(x, KEYS, SIGMA)), SIGMA) for x in (real, fake)]
    return DForward(lambda x, labels: D(x), real, fake, D(real), D(fake), None, mix, changes[0], changes[1])


def norm2(x: Tensor) -> Tensor:
    return x.square().sum((1, 2, 3))


def test_of_a_linear_d():
    """D(x) = <w, x>: the gradient is w everywhere."""
    real, fake = images()
    w = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    row = forward(lambda x: (x * w).sum((1, 2, 3)), real, fake, torch.rand(5, dtype=torch.float64))
    for name, expected in {
        "r1": w.square().sum() / 2,
        "r2": w.square().sum() / 2,
        "wgan_gp": (w.square().sum().sqrt() - 1).square(),
    }.items():
        penalty = PENALTIES[name].compute(row)
        torch.testing.assert_close(penalty, expected.float().expand(5))
        ours, written_out = (torch.autograd.grad(x, w, retain_graph=True)[0] for x in (penalty.mean(), expected))
        torch.testing.assert_close(ours, written_out, rtol=1e-5, atol=1e-5)


def test_finite_differences_of_a_linear_d():
    """((D(x + sigma e) - D(x)) / sigma)^2 / 2 = <w, e>^2 / 2 for given noise; its mean over e is |w|^2 / 2."""
    x = torch.zeros(20_000, 3, 2, 2, dtype=torch.float64)
    keys = torch.arange(20_000)
    w = torch.randn(3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    change = LogitChange(x.sum((1, 2, 3)), (perturb(x, keys, 0.3) * w).sum((1, 2, 3)), 0.3)
    row = forward(norm2, *images())._replace(real_change=change, fake_change=change)
    for name in ("r1_fd", "r2_fd"):
        penalty = PENALTIES[name].compute(row)
        projected = (normal_noise(keys, (3, 2, 2)) * w).sum((1, 2, 3))
        torch.testing.assert_close(penalty, projected.square() / 2)
        torch.testing.assert_close(penalty.mean(), norm2(w[None])[0] / 2, rtol=0.04, atol=0)


def test_of_a_quadratic_d():
    """D(x) = a |x|^2: the gradient is 2 a x, of each image with respect to itself only."""
    (real, fake), mix = images(), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    a = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    row = forward(lambda x: a * norm2(x), real, fake, mix)
    between = mix.view(-1, 1, 1, 1) * real + (1 - mix).view(-1, 1, 1, 1) * fake
    expected = {
        "r1": 2 * a.square() * norm2(real),
        "r2": 2 * a.square() * norm2(fake),
        "wgan_gp": (2 * a * norm2(between).sqrt() - 1).square(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(PENALTIES[name].compute(row), value.float())
        ours, written_out = (
            torch.autograd.grad(x.mean(), a, retain_graph=True)[0] for x in (PENALTIES[name].compute(row), value)
        )
        torch.testing.assert_close(ours, written_out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PENALTIES)
def test_the_gradient_is_finite_where_that_of_d_is_zero(name):
    real, fake = images()
    a = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    row = forward(lambda x: a * norm2(x) * 0, real, fake, torch.full((5,), 0.5, dtype=torch.float64))
    (gradient,) = torch.autograd.grad(PENALTIES[name].compute(row).mean(), a)
    assert torch.isfinite(gradient)


def test_mix_reaches_from_the_fake_to_the_real_image():
    """wgan_gp at mix 0 looks at the fakes, at mix 1 at the real images."""
    real, fake = images()
    for mix, x in ((0.0, fake), (1.0, real)):
        row = forward(lambda x: norm2(x), real, fake, torch.full((5,), mix, dtype=torch.float64))
        torch.testing.assert_close(PENALTIES["wgan_gp"].compute(row), (2 * norm2(x).sqrt() - 1).square().float())
