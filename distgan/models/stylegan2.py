"""StyleGAN2 (Karras et al. 2020, arXiv 1912.04958), config F, for 8 to 1,024 pixels; its generator."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.models.layers import check_choice, check_positive, resolutions
from distgan.models.resample import upsample2x
from distgan.models.stylegan2_discriminator import Discriminator
from distgan.models.stylegan2_layers import (
    HALF_RESOLUTIONS,
    Mapping,
    StyledConv,
    ToImage,
    to_autocast,
)
from distgan.models.transformer_options import check_flag, check_not_negative
from distgan.noise import keys_of, normal_noise, uniform_numbers
from distgan.samples import SampleSpec
from distgan.sizes import STYLEGAN2_HALVINGS, Size

NOISES = ("random", "const", "none")
ARCHITECTURES = ("residual", "plain")
NOISE, MIXING, OTHER_Z = 1, 2, 3
"""Purposes of the random numbers that go with z: see `keys_of`."""


def build(
    spec: SampleSpec,
    *,
    z_dim: int,
    mapping_layers: int = 8,
    w_dim: int = 512,
    channel_base: int = 32768,
    channel_max: int = 512,
    noise: str = "random",
    mixing: float = 0.9,
    group: int = 4,
    d_architecture: str = "residual",
    d_mapping_layers: int = 8,
    clamp: float | None = None,
    w_mean: bool = False,
) -> tuple[nn.Module, nn.Module]:
    """G and D for sizes (a, b) * 2^n up to 1,024, n >= 1, the shorter side of (a, b) being 4 to 7. Raises UsageError.

    At (a, b) * 2^k both have min(`channel_base` / (4 * 2^k), `channel_max`) features; a base of 16384 is the half-width
    network of 256 pixels. `noise` is that of G: random (a function of z), const, or none. `mixing` is the probability
    that layers get the w of another z in training; `group` the images of which D sees the standard deviation (0 or 1:
    none); `d_mapping_layers` those of D's labels. `clamp` limits the values behind each convolution, for fp16. `w_mean`
    adds a buffer for the mean of w of a converted network.
    """
    check_positive(mapping_layers=mapping_layers, w_dim=w_dim, channel_base=channel_base, channel_max=channel_max)
    check_not_negative(group=group, d_mapping_layers=d_mapping_layers)
    check_choice("noise", noise, NOISES, "noise")
    check_choice("d_architecture", d_architecture, ARCHITECTURES, "architecture")
    check_numbers(mixing, clamp)
    check_flag(w_mean=w_mean)
    sizes = resolutions("stylegan2", spec, STYLEGAN2_HALVINGS)
    channels = channel_counts(len(sizes), channel_base, channel_max)
    of_g: dict[str, Any] = dict(mapping_layers=mapping_layers, noise=noise, mixing=mixing, clamp=clamp, w_mean=w_mean)
    G = Generator(spec, z_dim, w_dim, sizes, channels, **of_g)
    of_d: dict[str, Any] = dict(mapping_layers=d_mapping_layers, residual=d_architecture == "residual", clamp=clamp)
    return G, Discriminator(spec, sizes[0], channels, group=group, **of_d)


def channel_counts(resolutions: int, base: int, most: int) -> list[int]:
    """min(base / (4 * 2^k), most) features for k = 0, 1, ... Raises UsageError."""
    counts = [min(base // (4 << k), most) for k in range(resolutions)]
    if not counts[-1]:
        raise UsageError(
            f"model.options.channel_base: {base} leaves no feature at the highest resolution; "
            f"it must be at least {4 << (resolutions - 1)}"
        )
    return counts


def check_numbers(mixing: Any, clamp: Any) -> None:
    """Raises UsageError."""
    if type(mixing) not in (int, float) or not 0 <= mixing <= 1:
        raise UsageError(f"model.options.mixing: {mixing!r} is not a probability from 0 to 1")
    if clamp is not None and (type(clamp) not in (int, float) or not clamp > 0):
        raise UsageError(f"model.options.clamp: {clamp!r} is neither null nor a positive number, as 256")


class Block(nn.Module):
    """The layers of G at one resolution: x at half of it and the image so far -> x and image at this resolution.

    At the base there is one convolution, and x is the constant.
    """

    def __init__(
        self, inputs: int, outputs: int, size: Size, w_dim: int, channels: int, *, first: bool, clamp: float | None
    ) -> None:
        super().__init__()
        self.conv0 = None if first else StyledConv(inputs, outputs, size, w_dim, up=True, clamp=clamp)
        self.conv1 = StyledConv(outputs, outputs, size, w_dim, clamp=clamp)
        self.to_image = ToImage(outputs, channels, w_dim, clamp)

    def forward(self, x: Tensor, image: Tensor, ws: Sequence[Tensor], noises: Sequence[Tensor | None]) -> Any:
        """`ws` are w [N, w_dim] of each layer, the last of to_image; `noises` are those of the convolutions."""
        if self.conv0 is not None:
            x = self.conv0(x, ws[0], noises[0])
            image = upsample2x(image)
        x = self.conv1(x, ws[-2], noises[-1])
        return x, image + self.to_image(x, ws[-1]).to(image.dtype)


class Generator(nn.Module):
    """z [N, z_dim] and labels -> {"images": [N, *spec.shape], linear, "w": [N, num_ws, w_dim], of each layer}.

    All random numbers, noise and style mixing, are functions of z. Noise is the same in training and evaluation; styles
    are mixed in training alone.
    """

    w_mean: Tensor

    def __init__(
        self,
        spec: SampleSpec,
        z_dim: int,
        w_dim: int,
        sizes: list[Size],
        channels: list[int],
        *,
        mapping_layers: int,
        noise: str,
        mixing: float,
        clamp: float | None,
        w_mean: bool,
    ) -> None:
        super().__init__()
        self.noise = noise
        """random: of the keys of z; const: the same for all images; none."""
        self.mixing = mixing
        self.num_ws = 2 * len(sizes)
        """Layers that w modulates; a resolution's last and the next one's first share theirs."""
        self.z_dim = z_dim
        self.map = Mapping(spec, z_dim, w_dim, mapping_layers)
        self.const = nn.Parameter(torch.randn(channels[0], *sizes[0]))
        blocks = []
        for k, size in enumerate(sizes):
            inputs = channels[max(k - 1, 0)]
            blocks.append(Block(inputs, channels[k], size, w_dim, spec.channels, first=k == 0, clamp=clamp))
        self.blocks = nn.ModuleList(blocks)
        if w_mean:
            self.register_buffer("w_mean", torch.zeros(w_dim))

    @property
    def z_weights(self) -> Tensor:
        """The part of the first layer's weights that z meets; labels meet the rest."""
        return self.map.layers[0].weight[:, : self.z_dim]  # type: ignore[index,union-attr]

    @property
    def z_gain(self) -> float:
        """What that layer multiplies its weights by; it depends on the width of what enters beside z."""
        return self.map.layers[0].weight_gain  # type: ignore[union-attr,return-value]

    def mapping(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """w [N, w_dim]; w_mean + psi (w - w_mean) is a truncated one."""
        return self.map(z, labels)

    def noise_keys(self, z: Tensor) -> Tensor | None:
        """What `synthesis` draws noise by, int64 [N]; None where the noise is constant, or there is none."""
        return keys_of(z, NOISE) if self.noise == "random" else None

    def styles(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """w [N, num_ws, w_dim] of each layer, in training mixed: from some layer on that of another z.

        Karras et al. 2019 (1812.04948), section 3.1.
        """
        ws = self.mapping(z, labels)[:, None].repeat(1, self.num_ws, 1)
        if not self.training or not self.mixing:
            return ws
        other = normal_noise(keys_of(z, OTHER_Z), z.shape[1:]).to(z)
        mixed, place = uniform_numbers(keys_of(z, MIXING), 2)[:, :, None].unbind(1)
        layers = torch.arange(self.num_ws, device=z.device)
        first = 1 + (place * (self.num_ws - 1)).long()  # from 1 on: all layers of the other z were no mixture
        chosen = (mixed < self.mixing) & (layers >= first)
        return torch.where(chosen[:, :, None], self.mapping(other, labels)[:, None], ws)

    def layer_noises(self, noise_keys: Tensor | None) -> list[Tensor | None]:
        """The noise of each convolution, [N, 1, H, W] or [H, W]."""
        layers = [layer for block in self.blocks for layer in block.children() if isinstance(layer, StyledConv)]
        constant = [layer.noise_const for layer in layers]
        if noise_keys is not None:
            return [normal_noise(noise_keys + k, (1, *noise.shape)) for k, noise in enumerate(constant)]
        return [None if self.noise == "none" else noise for noise in constant]

    def synthesis(self, w: Tensor, noise_keys: Tensor | None = None) -> dict[str, Tensor]:
        """What G returns for w [N, w_dim], or [N, num_ws, w_dim] of each layer (w+).

        `noise_keys` are those of `G.noise_keys(z)`; without, the noise is the constant one, or none in the mode none.
        """
        w = w[:, None].repeat(1, self.num_ws, 1) if w.ndim == 2 else w
        ws = w.unbind(1)
        noises = self.layer_noises(noise_keys)
        x = self.const.expand(w.shape[0], -1, -1, -1)
        image = w.new_zeros(())
        full = max(len(self.blocks) - HALF_RESOLUTIONS, 1)
        autocast = torch.is_autocast_enabled(w.device.type)
        for k, block in enumerate(self.blocks):
            first = max(2 * k - 1, 0)
            with torch.autocast(w.device.type, enabled=autocast and k >= full):
                x, image = block(to_autocast(x), image, ws[first : 2 * k + 2], noises[first : 2 * k + 1])
        return {"images": image, "w": w}

    def forward(self, z: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return self.synthesis(self.styles(z, labels), self.noise_keys(z))
