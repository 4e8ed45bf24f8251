"""What several networks share: resolutions, initialization by fan-in, spectral normalization, checks of options."""

import math
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.spectral_norm import SpectralNorm as SpectralNormHook

from distgan.errors import UsageError
from distgan.samples import SampleSpec
from distgan.sizes import Size, halvings, is_taken, nearest_sizes


def resolutions(model: str, spec: SampleSpec, allowed: Collection[int], reason: str = "") -> list[Size]:
    """From the base (a, b) over 2 (a, b), ... to the images' (a, b) 2^n; the shorter side of the base is 4 to 7 pixels.

    `allowed` are the numbers n of halvings that `model` has networks for. Raises UsageError, with the `reason` and the
    nearest sizes, for other images.
    """
    size = Size(spec.height, spec.width)
    if not is_taken(size, allowed):
        near = " or ".join(map(str, nearest_sizes(size, allowed)))
        raise UsageError(
            f"model.name: {model} does not support {size} images{reason and f' ({reason})'}; "
            f"`distgan shards make --size {near}` resizes them"
        )
    n = halvings(size)
    return [Size(size.height >> k, size.width >> k) for k in range(n, -1, -1)]


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


def iterate(weight: Tensor, u: Tensor, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """One power iteration: u [rows] and v [columns] of `weight` [rows, columns], in place, u first; copies of both.

    The backward of this forward needs u and v as they are now, and the next forward changes them: hence the copies.
    """
    F.normalize(torch.mv(weight, v), dim=0, eps=eps, out=u)
    F.normalize(torch.mv(weight.t(), u), dim=0, eps=eps, out=v)
    return u.clone(), v.clone()


# For torch.compile, one operation. Traced through, the backward would compute u and v again, from buffers that the
# forward has changed already: wrong gradients, without an error (torch 2.15).
iterate_compiled = torch.library.custom_op("distgan::power_iteration", iterate, mutates_args=("u", "v"))


@iterate_compiled.register_fake
def shapes_of_iterate(weight: Tensor, u: Tensor, v: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(u), torch.empty_like(v)


class SpectralNorm(nn.Module):
    """A weight [rows, ...] over its largest singular value as a matrix of `rows` rows; a parametrization.

    In training mode each call is one power iteration. Names, order and rounding are those of torch's
    `parametrizations.spectral_norm`, and so are the 15 iterations at the start.
    """

    _u: Tensor
    _v: Tensor
    eps = 1e-12

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        u, v = (matrix.new_empty(length).normal_() for length in matrix.shape)
        self.register_buffer("_u", F.normalize(u, dim=0, eps=self.eps))
        self.register_buffer("_v", F.normalize(v, dim=0, eps=self.eps))
        for _ in range(15):
            iterate(matrix, self._u, self._v, self.eps)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight.flatten(1)
        if self.training:
            step = iterate_compiled if torch.compiler.is_compiling() else iterate
            with torch.no_grad():
                u, v = step(matrix.detach(), self._u, self._v, self.eps)
        else:
            u, v = self._u.clone(), self._v.clone()
        return weight / torch.vdot(u, torch.mv(matrix, v))


def spectral_norm(network: nn.Module) -> nn.Module:
    """Divide the weight of every convolution, linear layer and embedding by its largest singular value; in place.

    Miyato et al. 2018 (arXiv 1802.05957), Algorithm 1: one power iteration in each forward in training mode, in float32
    also under autocast. The singular vectors are buffers, drawn after the weights. Unlike torch's, it can be compiled.
    """
    for module in list(network.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            parametrize.register_parametrization(module, "weight", SpectralNorm(module.weight))
            norms: Any = module.parametrizations["weight"]  # type: ignore[index]
            norms[0] = Float32(norms[0])
    return network


def has_torch_spectral_norm(network: nn.Module) -> bool:
    """Whether torch's own spectral norm, either of its two, is on a weight of the network."""
    return any(
        isinstance(part, (parametrizations._SpectralNorm, SpectralNormHook))
        for module in network.modules()
        for part in (module, *module._forward_pre_hooks.values())
    )


def check_positive(**options: Any) -> None:
    """Raises UsageError unless each of the options is a positive integer."""
    for name, value in options.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UsageError(f"model.options.{name}: {value!r} is not a positive integer")


def check_choice(name: str, value: Any, choices: Any, what: str) -> None:
    """Raises UsageError unless the option is one of the names in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"model.options.{name}: unknown {what} {value!r}; choose from {', '.join(choices)}")
