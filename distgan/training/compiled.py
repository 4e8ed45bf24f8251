"""The key `compile`: G and the objectives through torch.compile, and their gradients checked against eager ones."""

import functools
import logging
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from distgan.errors import RunError, UsageError
from distgan.gan.objectives import d_objective, d_penalty_objective, g_objective, g_penalty_objective, inputs_of_d
from distgan.gan.parts import GAN, Batches, GPenalties, Minibatch, Penalties
from distgan.gan.step import by_update, unfreeze_d

T = TypeVar("T")
Gradients = dict[str, Tensor]
"""By name of the parameter, "D." or "G." in front."""

TOLERANCE = {"no": 0.01, "bf16": 0.1, "fp16": 0.1}
"""Limit by precision for the difference of a parameter's two gradients, relative to its norm."""
LEAST_NORM = 1e-3
"""Of a gradient that counts, relative to the norm of all gradients of its network."""


def compiler(deterministic: bool) -> Callable[[Any], Any]:
    """A function for `GAN.compile`: compiles each function once, whole, for the shapes that it meets."""
    import torch._dynamo
    import torch._inductor.config

    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        raise UsageError(f"compile: torch {torch.__version__} cannot trace gradients; install a newer one (2.15)")
    torch._dynamo.reset()  # what an earlier run of this process compiled counts towards the limit of variants
    # it looks at G's images, which are no leaves, to see whether they are
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf Tensor is being accessed")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of a missing GPU
    # penalties take gradients with respect to images inside of D's objective
    torch._dynamo.config.trace_autograd_ops = True
    torch._inductor.config.deterministic = deterministic

    @functools.cache
    def compile_once(function: Callable[..., T]) -> Callable[..., T]:
        name = "G" if isinstance(function, nn.Module) else function.__name__
        return readable(name, torch.compile(function, fullgraph=True, dynamic=False))

    return compile_once


def readable(name: str, compiled: Callable[..., T]) -> Callable[..., T]:
    """The same function, which raises UsageError in one line where torch cannot compile it."""
    from torch._dynamo.exc import TorchDynamoException

    def call(*arguments: Any) -> T:
        try:
            return compiled(*arguments)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())[:300]
            raise UsageError(f"compile: torch cannot compile {name}: {reason}; set compile to false") from error

    return call


def eager(gan: GAN) -> GAN:
    """The same GAN, not compiled."""
    return replace(gan, compile=lambda function: function)


def check_gradients(
    gan: GAN,
    batches: Batches,
    penalties: Penalties,
    p: Tensor | float,
    precision: str,
    g_penalties: GPenalties | None = None,
) -> float:
    """Compare the gradients of the compiled objectives with eager ones, on the first micro-batch.

    At weights with noise, since networks start from zeros that hide terms; weights and buffers are restored. Returns
    the largest relative difference; 0 for networks that draw random numbers, whose gradients differ from themselves.
    Raises RunError if it is more than rounding: a compiler that gets a derivative wrong does not say so.
    """
    batch = batches.d[-1][0]
    networks = [gan.raw_G, gan.raw_D]
    saved = copy_states(networks)
    perturb(networks)
    start = copy_states(networks)
    results = []
    for each in (eager(gan), eager(gan), gan):
        load_states(networks, start)
        results.append(objective_gradients(each, batch, penalties, p, g_penalties or {}))
    load_states(networks, saved)
    expected, again, compiled = results
    if largest_error(again, expected)[0] > 0:
        return 0.0
    error, worst = largest_error(compiled, expected)
    if not error <= TOLERANCE[precision]:
        raise RunError(
            f"compile: the compiled gradient of {worst} differs from the eager one by {error:.1%} of its norm: torch "
            f"{torch.__version__} gets a derivative of these networks, loss or penalties wrong; set compile to false"
        )
    return error


def objective_gradients(
    gan: GAN, batch: Minibatch, penalties: Penalties, p: Tensor | float, g_penalties: GPenalties
) -> Gradients:
    """The gradients of D's objectives and of G's, of one micro-batch; updates nothing but buffers."""
    unfreeze_d(gan)
    fake = gan.compile(gan.G)(batch.z, batch.fake_labels)
    targets = gan.frozen_features(batch, p)
    joint, separate = by_update(penalties)
    total, _ = gan.compile(d_objective)(gan, *inputs_of_d(batch, fake, joint), joint, p, targets)
    if separate:
        total = total + gan.compile(d_penalty_objective)(gan, *inputs_of_d(batch, fake, separate), separate, p)[0]
    gradients = parameter_gradients("D", total, gan.raw_D)
    gan.raw_D.requires_grad_(False)
    joint_g, separate_g = by_update(g_penalties)
    total, _ = gan.compile(g_objective)(gan, batch, fake, p, joint_g)
    if separate_g:
        total = total + gan.compile(g_penalty_objective)(gan, batch, separate_g)[0]
    return gradients | parameter_gradients("G", total, gan.raw_G)


def parameter_gradients(prefix: str, objective: Tensor, network: nn.Module) -> Gradients:
    """Gradients of the parameters that are not frozen and that the objective depends on."""
    named = {f"{prefix}.{name}": each for name, each in network.named_parameters() if each.requires_grad}
    gradients = torch.autograd.grad(objective, list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, gradients, strict=True) if gradient is not None}


def largest_error(gradients: Gradients, expected: Gradients) -> tuple[float, str]:
    """The largest difference of a parameter's gradient, relative to its norm, and the parameter's name."""
    errors = {}
    for prefix in ("D.", "G."):
        names = [name for name in expected if name.startswith(prefix)]
        norms = torch.stack([expected[name].norm() for name in names])
        differences = torch.stack([(gradients[name] - expected[name]).norm() for name in names])
        relative = differences / norms.clamp(min=LEAST_NORM * norms.norm())
        errors |= dict(zip(names, relative.tolist(), strict=True))
    worst = max(errors, key=lambda name: errors[name] if errors[name] == errors[name] else math.inf)
    return errors[worst], worst


@torch.no_grad()
def perturb(networks: Iterable[nn.Module]) -> None:
    """Add N(0, 1 / (4 fan_in)) to all parameters, about a third of their scale; the same on every process."""
    generator = torch.Generator().manual_seed(0)
    for network in networks:
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise.to(parameter.device), alpha=0.5 / math.sqrt(fan_in))


def copy_states(networks: Iterable[nn.Module]) -> list[dict[str, Tensor]]:
    """The weights and buffers of each network."""
    return [{name: tensor.clone() for name, tensor in network.state_dict().items()} for network in networks]


def load_states(networks: Iterable[nn.Module], states: Iterable[dict[str, Tensor]]) -> None:
    for network, state in zip(networks, states, strict=True):
        network.load_state_dict(state)
