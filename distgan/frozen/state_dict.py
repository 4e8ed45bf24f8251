"""Files of weights: those that torch.save wrote, read without running code, and their hashes."""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from distgan.errors import UsageError
from distgan.files import sha256_file


def read_state_dict(file: Path, key: str, fix: str) -> dict[str, Tensor]:
    """Tensors by name, on the CPU. Raises UsageError, which names `key`, for a file of anything else.

    `fix` says which file to give in place of a TorchScript program, which could only be run.
    """
    if is_torchscript(file):
        raise UsageError(f"{key}: {file} is a TorchScript program, which cannot be read without running it; {fix}")
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UsageError(f"{key}: {file}: {error.strerror or error}") from None
    except Exception as error:  # of the archive, of the unpickler: torch.load documents none
        reason = " ".join(str(error).split()).split(". ")[0]
        raise UsageError(f"{key}: {file} is no file of weights that torch.save wrote ({reason}); {fix}") from None
    if not isinstance(found, dict) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise UsageError(f"{key}: {file} holds no weights by name; {fix}")
    return found


def is_torchscript(file: Path) -> bool:
    """Whether it is an archive of torch.jit.save: beside its tensors it has constants, and code."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def check_sha256(file: Path, expected: str, key: str) -> None:
    """Raises UsageError, which names `key`, if the file is not the one that is expected."""
    sha256 = sha256_file(file)
    if sha256 != expected:
        raise UsageError(
            f"{key}: the sha256 of {file} is {sha256[:12]}..., not {expected[:12]}...; remove it and get it again"
        )
