"""distgan: a GAN trainer that runs the same on a laptop, on N GPUs and on a cluster."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from distgan.training.pretrained import PretrainedGenerator

__version__ = "0.1.0"


class DistganError(Exception):
    """An expected error, reported in one line without a traceback; the command exits with `exit_code`."""

    exit_code = 1
    on_all_ranks = False
    """Whether every process of the run raises it: then only rank 0 prints it."""


class UsageError(DistganError, ValueError):
    """Invalid configuration, arguments or files. The message names the key or file and how to fix it."""

    exit_code = 2


class RunError(DistganError, RuntimeError):
    """The run failed. The message says what failed and which checkpoint there is to resume from."""


class CorruptDataError(RunError):
    """The bytes of a shard are not those that were written. Names the shard, and the key and offset if known."""


def format_os_error(error: OSError) -> str:
    """The system's message in one line, with the file it names, if any."""
    message = error.strerror or str(error)
    return f"{error.filename}: {message}" if error.filename else message


def load(path: "str | Path", device: "str | torch.device" = "cpu") -> "PretrainedGenerator":
    """The generator in a .safetensors file, or in the best or else the newest checkpoint of a run folder.

    A module in eval mode: z [N, z_dim] and, if it has `classes`, labels [N] -> images [N, C, S, S] in [-1, 1];
    `sample(n, seed)` draws z too. Raises UsageError.
    """
    from distgan.training.pretrained import load_generator

    return load_generator(path, device)
