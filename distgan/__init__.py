"""distgan: a GAN trainer that runs the same on a laptop, on N GPUs and on a cluster."""

from typing import TYPE_CHECKING

from distgan.errors import CorruptDataError, DistganError, RunError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from distgan.generators.pretrained import PretrainedGenerator

__version__ = "0.1.0"
__all__ = ["CorruptDataError", "DistganError", "RunError", "UsageError", "__version__", "load"]


def load(
    path: "str | Path",
    device: "str | torch.device" = "cpu",
    *,
    vae: "str | Path | None" = None,
    truncation_psi: float = 1.0,
) -> "PretrainedGenerator":
    """The generator in a .safetensors file, in the best or else the newest checkpoint of a run folder, or on the hub.

    There it is at hf://OWNER/NAME or hf://OWNER/NAME@REVISION, where `distgan publish` put it.

    A module in eval mode: z [N, z_dim] and, if it has classes or conditions, the labels that its method `labels` makes
    -> images [N, C, H, W] in [-1, 1], which stand for the range of `spec`. `sample(n, seed)` draws all of them.

    A generator of latents of an autoencoder needs that one too: `vae` is its folder, by default the one that is kept in
    ~/.cache/distgan/vae. `truncation_psi` below 1 pulls w towards its mean, for generators with a mapping network: less
    variety, often better images. Raises UsageError.
    """
    from distgan.generators.loading import load_generator

    return load_generator(path, device, vae=vae, truncation_psi=truncation_psi)
