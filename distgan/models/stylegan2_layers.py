"""Layers of StyleGAN2's networks: the mapping network and modulated convolutions, with noise inputs."""

import math
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.models.equalized import EqualizedLinear, scaled_leaky_relu, unit_rms
from distgan.models.labels import embed_labels, init_embedding
from distgan.models.resample import smooth
from distgan.samples import SampleSpec

MAPPING_LR = 0.01
"""The multiplier of the mapping network's learning rate."""
EPS = 1e-8
"""Beside the sum of squares of a demodulation."""
HALF_RESOLUTIONS = 4
"""The highest, in half precision under autocast (Karras et al. 2020, 2006.06676, appendix); never the base."""


def full_precision(x: Tensor) -> AbstractContextManager:
    """A block without autocast."""
    return torch.autocast(x.device.type, enabled=False)


def to_autocast(x: Tensor) -> Tensor:
    """In the type of autocast, where it is on: else what passes elementwise operations would stay in float32."""
    device_type = x.device.type
    return x.to(torch.get_autocast_dtype(device_type)) if torch.is_autocast_enabled(device_type) else x


class Mapping(nn.Module):
    """z [N, z_dim], if any, and labels -> w [N, width], in float32 under autocast.

    z and an embedding of the labels of `width` features, each over its root mean square, pass `depth` equalized layers
    (Karras et al. 2019, 1812.04948, section 2, and appendix C for the learning rate).
    """

    def __init__(self, spec: SampleSpec, z_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.embed = embed_labels(spec, width)
        if self.embed is not None:
            init_embedding(self.embed, 1.0)
        inputs = z_dim if self.embed is None else z_dim + width
        sizes = [inputs] + [width] * depth
        self.layers = nn.ModuleList([EqualizedLinear(sizes[k], sizes[k + 1], MAPPING_LR) for k in range(depth)])

    def forward(self, z: Tensor | None, labels: Tensor | None) -> Tensor:
        inputs = [each for each in (z, labels) if each is not None]
        with full_precision(inputs[0]):
            parts = [] if z is None else [unit_rms(z)]
            if self.embed is not None:
                parts.append(unit_rms(self.embed(labels)))
            x = torch.cat(parts, 1)
            for layer in self.layers:
                x = scaled_leaky_relu(layer(x))
            return x


class ModulatedConv2d(nn.Module):
    """x [N, inputs, H, W] and w [N, w_dim] -> [N, outputs, H, W], or of twice the size with `up`.

    Each image has weights of its own, W[o, i] s[i] d[o]: s = A(w), which starts at 1, and, with `demodulate`, d[o] =
    1 / sqrt(sum of (W[o, i] s[i])^2 + 1e-8) (Karras et al. 2020, 1912.04958, section 2.2, equations 1 to 3). `up` is a
    transposed convolution of stride 2, filtered by [1, 3, 3, 1] along both axes.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, w_dim: int, *, demodulate: bool = True, up: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.affine = EqualizedLinear(w_dim, inputs, bias=1.0)
        self.gain = 1 / math.sqrt(inputs * kernel**2)
        self.kernel = kernel
        self.demodulate = demodulate
        self.up = up

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        weight = self.weight * self.gain
        with full_precision(x):
            style = self.affine(w)
            if self.demodulate and x.dtype in (torch.float16, torch.bfloat16):
                # d undoes any factor of s; without it x s may be too large for float16
                style = style / style.abs().amax(1, keepdim=True)
            norm = self.norm(style, weight) if self.demodulate else None
        if not self.training and x.shape[0] == 1 and self.has_fewer_weights(x):
            return self.convolve_fused(x, weight, style, norm)
        return self.convolve_scaled(x, weight, style, norm)

    def norm(self, style: Tensor, weight: Tensor) -> Tensor:
        """d [N, outputs] of s [N, inputs]."""
        squares = weight.square().sum((2, 3))
        return (F.linear(style.square(), squares) + EPS).rsqrt()

    def has_fewer_weights(self, x: Tensor) -> bool:
        """Than the values that `convolve_scaled` multiplies for one image: then `convolve_fused` takes 0.6 to 1.1 times
        as long, and otherwise 1.1 to 8 times.

        For more images it would take a convolution in groups, 0.8 times as long at best and 34 times at worst. (2 to 8
        images of 64 to 512 features at 4 to 128 pixels, one thread of a CPU.)
        """
        outputs, inputs = self.weight.shape[:2]
        return self.weight.numel() < (inputs + outputs) * x.shape[2] * x.shape[3]

    def convolve_scaled(self, x: Tensor, weight: Tensor, style: Tensor, norm: Tensor | None) -> Tensor:
        """One convolution of all images: of x s, times d."""
        x = self.convolve(x * style[:, :, None, None].to(x.dtype), weight)
        return x if norm is None else x * norm[:, :, None, None].to(x.dtype)

    def convolve_fused(self, x: Tensor, weight: Tensor, style: Tensor, norm: Tensor | None) -> Tensor:
        """The same for one image, by its weights s W d."""
        weight = weight * style[0, :, None, None]
        return self.convolve(x, weight if norm is None else weight * norm[0, :, None, None, None])

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [N, inputs, H, W] and weight [outputs, inputs, kernel, kernel]."""
        if not self.up:
            return F.conv2d(x, weight, padding=self.kernel // 2)
        return smooth(F.conv_transpose2d(x, 4 * weight.transpose(0, 1), stride=2), 1)


class StyledConv(ModulatedConv2d):
    """A modulated 3x3 convolution, then noise times a learned strength (0 at first), a bias, the activation."""

    noise_const: Tensor

    def __init__(
        self, inputs: int, outputs: int, size: tuple[int, int], w_dim: int, *, up: bool = False, clamp: float | None
    ) -> None:
        """`size` (height, width) is that of the output."""
        super().__init__(inputs, outputs, 3, w_dim, up=up)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.register_buffer("noise_const", torch.randn(size))
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None = None) -> Tensor:
        """`noise` is [N, 1, H, W] or [H, W], of the size of the output."""
        x = super().forward(x, w)
        if noise is not None:
            x = x + (noise * self.noise_strength).to(x.dtype)
        return scaled_leaky_relu(x + self.bias[:, None, None].to(x.dtype), self.clamp)


class ToImage(ModulatedConv2d):
    """x [N, inputs, H, W] and w [N, w_dim] -> [N, channels, H, W]: a modulated 1x1 convolution, and a bias."""

    def __init__(self, inputs: int, channels: int, w_dim: int, clamp: float | None) -> None:
        super().__init__(inputs, channels, 1, w_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(channels))
        self.clamp = clamp

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        x = super().forward(x, w) + self.bias[:, None, None].to(x.dtype)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
