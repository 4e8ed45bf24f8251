"""Spectral normalization: torch's numbers and names to the bit, gradients under torch.compile, torch's own is found."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.spectral_norm import spectral_norm as hook_spectral_norm

from distgan.errors import UsageError
from distgan.models.layers import Float32, spectral_norm
from distgan.training.checks import check_compile


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(180, 4))


def by_torch() -> nn.Sequential:
    """The networks of checkpoints written when spectral norm was torch's."""
    network = plain()
    for module in (network[0], network[3]):
        parametrizations.spectral_norm(module)
        norms = module.get_submodule("parametrizations.weight")
        assert isinstance(norms, nn.ModuleList)
        norms[0] = Float32(norms[0])
    return network


def two_forwards(network: nn.Module, inputs: Tensor) -> Tensor:
    """As in D's turn: two forwards before one backward, each with a power iteration of its own."""
    return network(inputs).square().sum() - network(inputs * 2 + 1).tanh().sum()


def equal_states(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return list(left) == list(right) and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("autocast", [False, True])
def test_the_numbers_and_the_names_are_torchs(autocast):
    ours, theirs = spectral_norm(plain()), by_torch()
    assert equal_states(ours, theirs)
    images = torch.randn(2, 3, 8, 8)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = [two_forwards(network, images) for network in (ours, theirs)]
        assert torch.equal(*losses)
        for loss in losses:
            loss.backward()
        gradients = [[p.grad for p in network.parameters()] for network in (ours, theirs)]
        assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*gradients, strict=True))
        assert equal_states(ours, theirs)
    assert torch.equal(ours.eval()(images), theirs.eval()(images)) and equal_states(ours, theirs)
    theirs.load_state_dict(ours.state_dict())


def test_compiled_gradients_and_singular_vectors():
    """Far from convergence of the power iteration: there the gradients of torch's own come out wrong."""
    network = spectral_norm(nn.Sequential(nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 1))).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    compiled = copy.deepcopy(network)
    inputs = torch.randn(3, 4, dtype=torch.float64)
    two_forwards(network, inputs).backward()
    torch.compile(two_forwards, fullgraph=True, dynamic=False)(compiled, inputs).backward()
    for a, b in zip(network.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-10, atol=1e-12)
    for a, b in zip(network.buffers(), compiled.buffers(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)


def test_a_network_with_torchs_own_is_not_compiled():
    hooked = plain()
    hook_spectral_norm(hooked[3])
    for G, D, name in ((plain(), by_torch(), "D"), (plain(), hooked, "D"), (by_torch(), plain(), "G")):
        with pytest.raises(UsageError, match=f"^compile: {name} uses torch's spectral norm, .*; use distgan.models"):
            check_compile(G, D)
    check_compile(plain(), spectral_norm(plain()))
