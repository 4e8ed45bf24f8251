"""Under torch.compile every architecture computes what it does without: values, gradients, penalties, buffers."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan import models
from distgan.gan.outputs import logits_of, shown_to_d
from distgan.models.transformer import twice_differentiable
from distgan.samples import Condition, SampleSpec

TINY = {"width": 16, "depth": 2, "heads": 2, "stages": 2, "embedding": 8}
NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "mlp": ("mlp", 8, {"width": 8}),
    "dcgan": ("dcgan", 8, {"width": 4}),
    "dcgan-group": ("dcgan", 8, {"width": 4, "d_norm": "group"}),
    "dcgan-none": ("dcgan", 8, {"width": 4, "norm": "none"}),
    "dcgan-spectral": ("dcgan", 8, {"width": 4, "d_norm": "spectral"}),
    "r3gan": ("r3gan", 8, {"widths": [8, 8], "group_width": 8, "blocks": 1}),
    "sngan": ("sngan", 32, {"width": 2}),
    "stylegan2": ("stylegan2", 8, {"channel_base": 32, "w_dim": 8, "mapping_layers": 2, "d_mapping_layers": 2}),
    "gat": ("gat", 8, TINY),
    "gat-recomputed": ("gat", 8, TINY | {"checkpoint_blocks": 2}),
    "cat": ("cat", 8, TINY | {"d_width": 16, "d_depth": 2, "d_heads": 2}),
    "cat-recomputed": ("cat", 8, TINY | {"d_width": 16, "d_depth": 2, "d_heads": 2, "checkpoint_blocks": 2}),
}
"""By name: architecture, image size, options."""
SLOW = ("gat", "gat-recomputed", "cat", "cat-recomputed", "sngan", "stylegan2")
"""What takes half a minute each."""
PENALIZED = [network for network in NETWORKS if network != "dcgan"]  # whose D has BatchNorm
CONDITIONS = (Condition("energy"), Condition("tagged", "flag"), Condition("angle"))
MIXED = ("dcgan-spectral", "r3gan", "sngan", "gat", "cat", "stylegan2")
"""Networks that take labels in ways of their own."""


def spec_of(network: str, labels: str) -> SampleSpec:
    """Of squares with no labels or classes, or of rectangles with two classes and conditions."""
    size = NETWORKS[network][1]
    if labels == "mixed":
        return SampleSpec(size, size * 3 // 2, 2, 2, CONDITIONS)
    return SampleSpec(size, size, 3, 3 if labels == "classes" else 0)


def build(network: str, labels: str) -> nn.ModuleDict:
    """G and D away from their initialization, where some layers are zero and singular vectors are exact."""
    name, _, options = NETWORKS[network]
    G, D = models.build(name, spec_of(network, labels), z_dim=8, options=options, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in [*G.parameters(), *D.parameters()]:
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return nn.ModuleDict({"G": G, "D": twice_differentiable(D)})


def objective(
    networks: nn.ModuleDict, z: Tensor, real: Tensor, fake: Tensor, labels: Tensor | None, penalize: bool
) -> Tensor:
    """A sum that depends on all weights: G's images, D's two forwards, and their gradients as in R1 and R2."""
    total = shown_to_d(networks["G"](z, labels)).to(real.dtype).pow(3).mean()
    for images, sign in ((real, -1), (fake, 1)):
        logits = logits_of(networks["D"](images, labels))
        total = total + F.softplus(sign * logits).mean()
        if penalize:
            (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
            total = total + gradient.square().sum((1, 2, 3)).mean()
    return total


def inputs(network: str, labels: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """z, real and fake images, labels"""
    spec = spec_of(network, labels)
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(4, 8, generator=generator, dtype=torch.float64).to(dtype)
    images = torch.rand(2, 4, *spec.shape, generator=generator, dtype=torch.float64).to(dtype) * 2 - 1
    real, fake = (half.requires_grad_() for half in images.unbind())
    classes = torch.arange(4) % max(spec.num_classes, 1)
    if labels == "mixed":
        conditions = torch.tensor([[-1.5, 1, 0.1], [0.2, 0, 0.3], [1.7, 1, -2], [0, 0, 1]], dtype=dtype)
        return z, real, fake, torch.cat([F.one_hot(classes, spec.num_classes), conditions], 1)
    return z, real, fake, classes if labels == "classes" else None


def results(
    function: Callable[..., Tensor], networks: nn.ModuleDict, *args: Any, autocast: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective, and by name all gradients and buffers after it."""
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        total = function(networks, *args)
    total.backward()
    gradients = {name: parameter.grad for name, parameter in networks.named_parameters()}
    assert None not in gradients.values()
    return total.detach(), gradients | dict(networks.named_buffers())  # type: ignore[return-value]


def compile_objective(backend: str) -> Callable[..., Tensor]:
    torch._dynamo.reset()  # else another architecture is a recompilation, and the eighth an error
    return torch.compile(objective, fullgraph=True, dynamic=False, backend=backend)


def assert_equal_traced(network: str, labels: str, penalize: bool) -> None:
    networks, args = build(network, labels).double(), inputs(network, labels, torch.float64)
    compiled_networks = copy.deepcopy(networks)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        total, tensors = results(compile_objective("aot_eager"), compiled_networks, *args, penalize)
    expected_total, expected = results(objective, networks, *args, penalize)
    torch.testing.assert_close(total, expected_total, rtol=1e-10, atol=0)
    largest = max(float(tensor.abs().max()) for name, tensor in expected.items())
    for name, tensor in expected.items():  # some gradients are zero but for rounding: biases before BatchNorm
        torch.testing.assert_close(
            tensors[name], tensor, rtol=1e-10, atol=1e-12 * largest, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize(
    ("network", "labels"),
    [
        *[pytest.param(network, "none", marks=pytest.mark.slow) for network in NETWORKS],
        *[pytest.param(network, "classes", marks=[pytest.mark.slow] * (network in SLOW)) for network in NETWORKS],
        *[pytest.param(network, "mixed", marks=pytest.mark.slow) for network in MIXED],
    ],
)
def test_as_traced(network, labels):
    """One graph, run operation by operation; with generated code, which takes ten times as long, whole iterations are
    compared in tests/training/test_compiled.py.
    """
    assert_equal_traced(network, labels, penalize=network in PENALIZED)


@pytest.mark.slow
@pytest.mark.parametrize("network", [network for network in NETWORKS if not network.endswith("recomputed")])
def test_autocast(network):
    """In bfloat16 the compiled gradients are as near to those of float32 as the others, up to a half more."""
    networks, args = build(network, "classes"), inputs(network, "classes", torch.float32)
    penalize = network in PENALIZED
    eager, compiled = copy.deepcopy(networks), copy.deepcopy(networks)
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        _, near = results(compile_objective("inductor"), compiled, *args, penalize, autocast=True)
    _, expected = results(objective, eager, *args, penalize, autocast=True)
    _, exact = results(objective, networks, *args, penalize)

    def error(tensors: dict[str, Tensor]) -> float:
        return sum(float((tensors[name] - exact[name]).double().square().sum()) for name in exact) ** 0.5

    assert 0 < error(near) < 1.5 * error(expected)
