"""What a trained generator with a mapping network does besides: w of z, images of w, and its noise inputs."""

from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.gan.outputs import images_of
from distgan.gan.truncation import TruncatedGenerator, noise_keys_of, synthesize

NoiseMode = Literal["random", "const", "none"]
"""Noise inputs of G: a function of z (or of w, where there is no z), the same in all images, or none."""


class MappedGenerator(nn.Module):
    """G, which makes samples, and the decoder that makes images of them."""

    def __init__(self, network: nn.Module, decoder: nn.Module, path: Path) -> None:
        super().__init__()
        self.network = network
        """G, whose samples are `network_spec`; truncated where that is asked for."""
        self.decoder = decoder
        self.path = path
        """The file that the weights come from."""

    @property
    def core(self) -> Any:
        """G itself, without the truncation."""
        return self.network.G if isinstance(self.network, TruncatedGenerator) else self.network

    @property
    def has_mapping(self) -> bool:
        """Whether G is synthesis(mapping(z, labels))."""
        return hasattr(self.core, "mapping") and hasattr(self.core, "synthesis")

    @property
    def num_ws(self) -> int | None:
        """Layers that each take a w of their own; None for a G whose layers all take the same."""
        return getattr(self.core, "num_ws", None)

    @property
    def noise(self) -> NoiseMode | None:
        """None for a G without noise inputs."""
        return self.core.noise if hasattr(self.core, "noise_keys") else None

    def set_noise(self, mode: NoiseMode) -> None:
        """Choose the noise inputs of all images from now on. Raises UsageError, which names `noise`."""
        if mode not in get_args(NoiseMode):
            raise UsageError(f"noise: {mode!r} is not one of {', '.join(get_args(NoiseMode))}")
        if self.noise is None:
            raise UsageError(f"noise: {self.path} has no noise inputs, which are those of stylegan2; leave it out")
        self.core.noise = mode

    def mapping(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """w [N, w_dim] of z [N, z_dim], truncated as the images of z are.

        Raises UsageError for a G without a mapping network.
        """
        self.check_mapping("mapping")
        network: Any = self.network
        return network.mapping(z, labels)

    def synthesis(self, w: Tensor, noise_keys: Tensor | None = None) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] of w [N, w_dim], or of one w for each layer, [N, num_ws, w_dim].

        w is not truncated. Random noise inputs are those of `noise_keys` int64 [N], by default keys of w itself.
        Raises UsageError for a G without a mapping network.
        """
        self.check_mapping("synthesis")
        keys = noise_keys_of(self.core, w.flatten(1)) if noise_keys is None else noise_keys
        return self.decoder(images_of(synthesize(self.core, w, keys)))

    def check_mapping(self, key: str) -> None:
        """Raises UsageError, which names `key`, for a G without a mapping network."""
        if not self.has_mapping:
            raise UsageError(f"{key}: {self.path} has no mapping network and no w, as gat, cat and stylegan2 have")
