"""r1_fd and r2_fd: bias and limit for small sigma, and one pass of D for an image and its perturbed copy."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan import models
from distgan.gan.augment import Pipeline
from distgan.gan.finite_difference import DInputs, FiniteDifference, output_and_change, squared_slope
from distgan.noise import normal_noise
from distgan.samples import SampleSpec

KEYS = torch.arange(40_000)


def slopes(D, x: Tensor, keys: Tensor, sigma: float) -> Tensor:
    """The squared slopes [N] of D at one image x [1, C, S, S], one for each key."""
    inputs = DInputs(x.expand(len(keys), -1, -1, -1), None, None, keys)
    return squared_slope(output_and_change(lambda inputs: D(inputs.images), inputs, FiniteDifference(sigma))[1])


def test_the_bias_of_a_quadratic_d():
    """D(x) = x'Ax with symmetric A has the slope 2Ax.e + sigma e'Ae; the mean of its square over e ~ N(0, I) is
    |2Ax|^2 + sigma^2 (tr(A)^2 + 2 tr(A^2)), since odd moments vanish."""
    torch.manual_seed(0)
    A = torch.randn(4, 4, dtype=torch.float64)
    A = (A + A.T) / 2
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64)
    gradient = 2 * A @ x.flatten()
    for sigma in (0.01, 0.5, 2.0):
        expected = gradient.square().sum() + sigma**2 * (A.trace() ** 2 + 2 * (A @ A).trace())
        penalty = slopes(lambda images: ((images.flatten(1) @ A) * images.flatten(1)).sum(1), x, KEYS, sigma)
        torch.testing.assert_close(penalty.mean(), expected, rtol=0.03, atol=0)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1), nn.Flatten(0)).double()


def weight_gradient(D: nn.Module, penalty: Tensor) -> Tensor:
    gradients = torch.autograd.grad(penalty, list(D.parameters()), retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


def test_the_gradient_of_the_weights_tends_to_that_of_r1():
    """Against the derivative along the same noise, the error falls with sigma^2; their mean over e is that of R1."""
    D = mlp()
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(D(x), x, create_graph=True)
    r1 = weight_gradient(D, gradient.square().sum())
    along = (gradient.flatten() * normal_noise(KEYS, (4,))).sum(1).square().mean()
    limit = weight_gradient(D, along)
    sigmas = torch.tensor([0.4, 0.2, 0.1, 0.05], dtype=torch.float64)
    found = [weight_gradient(D, slopes(D, x.detach(), KEYS, float(sigma)).mean()) for sigma in sigmas]
    logs = torch.stack([(each - limit).norm() for each in found]).log()
    steepness = torch.diff(logs) / torch.diff(sigmas.log())
    assert ((steepness - 2).abs() < 0.2).all(), steepness
    assert (found[-1] - r1).norm() < 0.03 * r1.norm()


def test_spectral_norm_sees_both_in_one_pass():
    """Each pass of D in training mode is a power iteration, and changes D: without noise the logits must be equal."""
    _, D = models.build("dcgan", SampleSpec(16, 16, 3, 0), z_dim=8, options={"width": 4, "d_norm": "spectral"}, seed=0)
    inputs = DInputs(torch.rand(6, 3, 16, 16) * 2 - 1, None, None, torch.arange(6))
    passes = []

    def evaluate(inputs: DInputs) -> Tensor:
        passes.append(len(inputs.images))
        return D(inputs.images)

    logits, change = output_and_change(evaluate, inputs, FiniteDifference(1e-30, 2))
    assert change is not None and passes == [9] and logits.shape == (6,)
    torch.testing.assert_close(change.logits, logits[::2], rtol=0, atol=0)
    torch.testing.assert_close(change.perturbed_logits, change.logits, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(D(inputs.images), logits, rtol=1e-4, atol=1e-6)  # the next pass is another function


@pytest.mark.parametrize("stride", [1, 3])
def test_the_perturbed_image_keeps_its_label_and_augmentation(stride):
    """And its noise is added before the augmentation, in the memory format of the images."""
    pipeline = Pipeline([("color", 1.0), ("translation", 1.0), ("cutout", 1.0), ("ada_geometry", 1.0)])
    images = (torch.rand(6, 3, 16, 16) * 2 - 1).to(memory_format=torch.channels_last)
    inputs = DInputs(images, torch.arange(6), torch.rand(6, pipeline.columns), torch.arange(6))

    def D(inputs: DInputs) -> Tensor:
        assert inputs.images.is_contiguous(memory_format=torch.channels_last)
        assert inputs.labels is not None and inputs.u is not None
        return pipeline(inputs.images, inputs.u, 1.0).square().mean((1, 2, 3)) + inputs.labels

    logits, change = output_and_change(D, inputs, FiniteDifference(0.1, stride))
    assert change is not None
    perturbed = images + 0.1 * normal_noise(torch.arange(6), (3, 16, 16))
    torch.testing.assert_close(logits, D(inputs))
    torch.testing.assert_close(change.perturbed_logits, D(inputs._replace(images=perturbed))[::stride])


@pytest.mark.parametrize(("dtype", "sigma"), [(torch.bfloat16, 0.1), (torch.float16, 0.03)])
def test_half_precision_keeps_the_gradient(dtype, sigma):
    """At the sigma that the configuration names, and less at a thirtieth of it; with a loss scale."""
    options = {"width": 8, "norm": "none", "init": "he"}
    _, D = models.build("dcgan", SampleSpec(16, 16, 3, 0), z_dim=8, options=options, seed=0)
    torch.manual_seed(0)
    inputs = DInputs(torch.rand(16, 3, 16, 16) * 2 - 1, None, None, torch.arange(16))

    def gradient(half: bool, sigma: float) -> Tensor:
        def evaluate(inputs: DInputs) -> Tensor:
            with torch.autocast("cpu", dtype, enabled=half):
                return D(inputs.images).float()

        penalty = squared_slope(output_and_change(evaluate, inputs, FiniteDifference(sigma))[1]).mean() / 2
        gradients = torch.autograd.grad(penalty * 2**5, list(D.parameters()), allow_unused=True)
        return torch.cat([g.flatten() for g in gradients if g is not None]) / 2**5

    def similarity(sigma: float) -> Tensor:
        return F.cosine_similarity(gradient(False, sigma), gradient(True, sigma), dim=0)

    assert similarity(sigma) > 0.98 > 0.97 > similarity(sigma / 30)
