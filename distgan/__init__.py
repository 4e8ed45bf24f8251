"""distgan: a GAN trainer that runs the same on a laptop, on N GPUs and on a cluster."""

from typing import TYPE_CHECKING

from distgan.errors import CorruptDataError, DistganError, RunError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from distgan.generators.pretrained import PretrainedGenerator

__version__ = "0.1.0"
__all__ = ["CorruptDataError", "DistganError", "RunError", "UsageError", "__version__", "load"]


def load(path: "str | Path", device: "str | torch.device" = "cpu") -> "PretrainedGenerator":
    """The generator in a .safetensors file, or in the best or else the newest checkpoint of a run folder.

    A module in eval mode: z [N, z_dim] and, if it has `classes`, labels [N] -> images [N, C, S, S] in [-1, 1];
    `sample(n, seed)` draws z too. Raises UsageError.
    """
    from distgan.generators.pretrained import load_generator

    return load_generator(path, device)
