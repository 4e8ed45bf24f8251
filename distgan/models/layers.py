"""What several networks share: initialization by fan-in, spectral normalization, checks of options."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from distgan.errors import UsageError


def fan_in(layer: nn.Module) -> int:
    """Inputs that are summed in one output of a convolution, transposed convolution or linear layer.

    A transposed convolution's kernel meets an input in one of stride^2 places only; one of stride 1 that starts from
    a single pixel, as DCGAN's first, sums over the channels alone.
    """
    if isinstance(layer, nn.ConvTranspose2d):
        kernel = layer.weight[0, 0].numel()
        stride = math.prod(layer.stride)
        return layer.in_channels if stride == 1 else layer.in_channels * kernel // stride
    assert isinstance(layer, (nn.Conv2d, nn.Linear))
    return layer.weight[0].numel()


def init_normal(layer: nn.Module, variance: float) -> None:
    """Weights N(0, variance / fan_in), biases 0; in place."""
    assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    nn.init.normal_(layer.weight, 0.0, math.sqrt(variance / fan_in(layer)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Float32(nn.Module):
    """A parametrization computed outside autocast."""

    def __init__(self, parametrization: nn.Module) -> None:
        super().__init__()
        self.parametrization = parametrization

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return self.parametrization(weight)


def spectral_norm(network: nn.Module) -> nn.Module:
    """Divide the weight of every convolution, linear layer and embedding by its largest singular value; in place.

    Miyato et al. 2018 (arXiv 1802.05957), Algorithm 1: one power iteration in each forward in training mode, in float32
    also under autocast. The singular vectors are buffers, drawn after the weights.
    """
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            parametrizations.spectral_norm(module)
            norms: Any = module.parametrizations["weight"]  # type: ignore[index]
            norms[0] = Float32(norms[0])
    return network


def check_positive(**options: Any) -> None:
    """Raises UsageError unless each of the options is a positive integer."""
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"model.options.{name}: {value!r} is not a positive integer")


def check_choice(name: str, value: Any, choices: Any, what: str) -> None:
    """Raises UsageError unless the option is one of the names in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"model.options.{name}: unknown {what} {value!r}; choose from {', '.join(choices)}")
