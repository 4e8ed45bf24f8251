"""The autoencoder of a dataset of latents: by the folder of its files, or by the hash of its weights."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distgan.errors import UsageError
from distgan.files import cache_folder, fsync_dir, sha256_file
from distgan.frozen.files import CONFIG, check_weights, find_folder
from distgan.frozen.precision import full_float32
from distgan.frozen.vae_files import VAE, WEIGHTS, VaeConfig, build_network, read_config
from distgan.samples import LatentSpec, SampleSpec

PIXELS_ON_CPU = 1 << 14
"""Decoded in one pass: 16 images of 32x32, or one of 128x128."""
PIXELS_ON_GPU = 1 << 20
"""16 images of 256x256."""


class Autoencoder(nn.Module):
    """A variational autoencoder (Kingma & Welling 2014) as latent diffusion has it (Rombach et al. 2022, section 3.1).

    Frozen, in float32. Networks see its latents as (latent - shift) * scale. As a module it is its decoder, through
    which gradients pass.
    """

    def __init__(self, network: nn.Module, config: VaeConfig, folder: Path) -> None:
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)
        self.folder = folder
        """Holds its config.json and weights."""
        self.sha256 = sha256_file(folder / WEIGHTS)
        """Of the file of the weights."""
        self.scale = config.scaling_factor
        self.shift = config.shift_factor or 0.0
        self.channels = config.latent_channels
        """C, of the latents."""
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        """Images are this many times as high and wide as their latents."""

    def train(self, mode: bool = True) -> "Autoencoder":
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """float [N, 3, H, W] in [-1, 1] -> float32 [N, 2C, H / factor, W / factor]: means, then standard deviations.

        Those of the posterior, with std = exp(clamp(log variance, -30, 20) / 2).
        """
        with full_float32(), torch.autocast(images.device.type, enabled=False):
            mean, log_variance = self.network.encode(images.float(), return_dict=False)[0].parameters.chunk(2, 1)
        return torch.cat([mean, (log_variance.clamp(-30, 20) / 2).exp()], 1)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents as networks see them, float [N, C, h, w] -> images float32 [N, 3, h * factor, w * factor].

        The images are about in [-1, 1], and not clipped. They are decoded in chunks of one size, the last filled up
        with zeros: memory is bounded, and an image does not depend on how many there are. Gradients flow to latents.
        """
        height = latents.shape[2] * self.factor
        width = latents.shape[3] * self.factor
        pixels = PIXELS_ON_CPU if latents.device.type == "cpu" else PIXELS_ON_GPU
        size = max(1, pixels // (height * width))
        images = latents.new_empty((len(latents), 3, height, width), dtype=torch.float32)
        with full_float32(), torch.autocast(latents.device.type, enabled=False):
            for start in range(0, len(latents), size):
                chunk = latents[start : start + size]
                filled = F.pad(chunk.float() / self.scale + self.shift, (0, 0, 0, 0, 0, 0, 0, size - len(chunk)))
                images[start : start + size] = self.network.decode(filled, return_dict=False)[0][: len(chunk)]
        return images

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """The images of `forward`, without gradients."""
        return self(latents)


def load_vae(path: str | Path, key: str = "data.vae") -> Autoencoder:
    """The autoencoder in a folder with config.json and diffusion_pytorch_model.safetensors, on the CPU.

    `path` may also be hf://OWNER/NAME[@REVISION], which is downloaded into the hub's cache unless it is there. Raises
    UsageError, which names `key`.
    """
    folder = find_folder(VAE, path, key)
    config = read_config(folder, key)
    check_weights(VAE, folder, key)
    return Autoencoder(build_network(folder, key), config, folder)


def kept_folder(sha256: str) -> Path:
    """Where the autoencoder with these weights is kept on this machine."""
    return cache_folder() / "vae" / sha256


def find_vae(sha256: str, path: str | Path | None = None, key: str = "data.vae") -> Autoencoder:
    """The autoencoder with these weights, on the CPU: the one at `path` (see `load_vae`), or the one that is kept.

    Raises UsageError, which names `key`, if it is missing or another.
    """
    folder = kept_folder(sha256)
    if path is None and not folder.exists():
        fix = f"give the folder of its config.json and weights as {key}, or copy them there"
        raise UsageError(f"{key}: the VAE {sha256[:12]} of these latents is not in {folder}; {fix}")
    vae = load_vae(folder if path is None else path, key)
    if vae.sha256 != sha256:
        fix = "give the VAE that encoded the dataset" if path is not None else f"delete {folder}, and give it as {key}"
        raise UsageError(f"{key}: {path or folder} is the VAE {vae.sha256[:12]}, not {sha256[:12]}; {fix}")
    return vae


def keep_vae(vae: Autoencoder) -> Path:
    """Copy it to where `find_vae` finds it by its hash; several processes may do so at once. Returns the folder.

    Raises OSError.
    """
    folder = kept_folder(vae.sha256)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{vae.sha256}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)  # other users of the cache may read it
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(vae.folder / name, temporary / name)
        fsync_dir(temporary)
        os.rename(temporary, folder)  # fails if another process was faster: a folder with files is not replaced
    except OSError:
        if not folder.exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def open_decoder(
    spec: SampleSpec, path: str | Path | None, device: torch.device | str, key: str = "data.vae"
) -> nn.Module:
    """What makes images [N, C, H, W], about in [-1, 1], of samples of `spec` as networks see them, on their device.

    The autoencoder that `find_vae` finds, for latents; the identity for pixels. Raises UsageError, which names `key`.
    """
    if spec.latents is None:
        return nn.Identity()
    vae = find_vae(spec.latents.vae, path, key)
    check_vae(vae, spec, spec.latents, key)
    return vae.to(device)


def check_vae(vae: Autoencoder, spec: SampleSpec, latents: LatentSpec, key: str) -> None:
    """Raises UsageError, which names `key`, unless it decodes these latents to images of their shape."""
    expected = spec.channels, latents.scale, latents.shift, (latents.height, latents.width)
    sides = spec.height * vae.factor, spec.width * vae.factor
    if (vae.channels, vae.scale, vae.shift, sides) != expected:
        where = vae.folder / CONFIG
        raise UsageError(f"{key}: {where} is not that of the VAE that encoded the dataset; give its own config.json")
