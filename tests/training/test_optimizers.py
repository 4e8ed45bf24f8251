"""The optimizers of a run: learning rates by width, and both kinds of weight decay."""

import pytest
import torch
from torch import nn

from distgan.config.keys import OptimizerConfig
from distgan.training.optimizers import adam, lr_factor


def layer(width: int) -> nn.Linear:
    network = nn.Linear(3, 2)
    network.__dict__["width"] = width
    return network


def test_the_learning_rate_is_that_of_the_width():
    keys = OptimizerConfig(lr=2e-4, base_width=768)
    assert adam(layer(384), keys).param_groups[0]["lr"] == pytest.approx(4e-4)
    assert adam(layer(1152), keys).param_groups[0]["lr"] == pytest.approx(1.3333e-4, rel=1e-4)
    assert lr_factor(layer(384), OptimizerConfig()) == 1


@pytest.mark.parametrize("decoupled", [False, True])
def test_weight_decay_is_as_configured(decoupled):
    """With a zero gradient, decoupled decay shrinks weights by lr * weight_decay; L2 is a gradient, of a step of lr."""
    network = layer(8)
    before = network.weight.detach().clone()
    optimizer = adam(network, OptimizerConfig(lr=0.01, weight_decay=0.5, decoupled=decoupled))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    expected = before * (1 - 0.01 * 0.5) if decoupled else before - 0.01 * before.sign()
    torch.testing.assert_close(network.weight.detach(), expected, rtol=1e-5, atol=1e-6)
