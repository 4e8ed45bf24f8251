"""Files of latents: the arrays z or w of an .npz, with the labels of their images, as `sample` and `project` write."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from torch import Tensor

from distgan.errors import UsageError, format_os_error
from distgan.generators.conditions import check_values
from distgan.generators.mapped import NoiseMode
from distgan.generators.output import NPZ_NAMES, column_names
from distgan.generators.pretrained import PretrainedGenerator
from distgan.generators.sampling import Inputs
from distgan.models import example_labels

INVALID = (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)
"""What numpy and zipfile raise for what is no .npz of numbers and text, or a corrupt one."""
UNUSED = ("images", "distances")
"""Arrays of these files that are read by no one here."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz by name, without those of images and distances. Raises UsageError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files if name not in UNUSED}
    except OSError as error:
        raise UsageError(f"latents: {path} cannot be read: {format_os_error(error)}") from None
    except (*INVALID, TypeError) as error:  # an .npy is no archive
        first_line = (str(error).splitlines() or [""])[0]
        raise UsageError(f"latents: {path} is no .npz of `sample` or `project` ({first_line})") from None


def read_latents(path: Path, G: PretrainedGenerator) -> tuple[Inputs, NoiseMode | None]:
    """What the images of an .npz are made of, and the noise inputs that they had. Raises UsageError.

    Arrays are z [N, z_dim], or w [N, w_dim] or [N, num_ws, w_dim]; and where G needs them `labels` (classes, int [N])
    and one of each condition [N]; beside w they are not needed, and are read where there are any.
    """
    arrays = read_arrays(path)
    given = [name for name in ("z", "w") if name in arrays]
    if len(given) != 1:
        raise UsageError(f"latents: {path} has the arrays {', '.join(arrays) or 'none'}; one of z and w is needed")
    (space,) = given
    latents = check_latents(path, space, arrays[space], G)
    noise = str(arrays["noise"]) if "noise" in arrays and G.noise is not None else None
    if noise is not None and noise not in get_args(NoiseMode):
        raise UsageError(f"latents: the noise of {path} is {noise!r}, not one of {', '.join(get_args(NoiseMode))}")
    labelled = space == "z" or len(arrays) > 1 + ("noise" in arrays)
    classes, values = read_labels(path, arrays, G, len(latents)) if labelled else (np.empty(0, np.int64), {})
    inputs = Inputs(latents, classes, values) if space == "z" else Inputs(None, classes, values, w=latents)
    return inputs, cast(NoiseMode | None, noise)


def check_latents(path: Path, space: str, values: np.ndarray, G: PretrainedGenerator) -> Tensor:
    """float32 latents of the file in a space of G. Raises UsageError."""
    if values.dtype.kind != "f" or not np.isfinite(values).all() or not len(np.atleast_1d(values)):
        raise UsageError(f"latents: {space} of {path} are not finite floating-point numbers, of one image at least")
    shapes = [(G.z_dim,)]
    if space == "w":
        G.check_mapping("latents")
        width = w_dim(G)
        shapes = [(width,)] + ([(G.num_ws, width)] if G.num_ws is not None else [])
    if values.shape[1:] not in shapes:
        wanted = " or ".join(str([len(values), *shape]) for shape in shapes)
        raise UsageError(f"latents: {space} of {path} is {list(values.shape)}, the generator takes {wanted}")
    return torch.from_numpy(values.astype(np.float32))


def read_labels(
    path: Path, arrays: Mapping[str, np.ndarray], G: PretrainedGenerator, count: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The classes int64 [N] or [0], and the values of each condition [N], that G needs. Raises UsageError."""
    names = [one.name for one in G.spec.conditions]
    columns = column_names(names, NPZ_NAMES)
    for name in [*(["labels"] if G.classes else []), *columns.values()]:
        column = arrays.get(name, np.empty(0))
        if column.shape != (count,) or column.dtype.kind not in "iuf":
            raise UsageError(
                f"latents: {path} needs an array {name} [{count}], of numbers, beside {'z' if 'z' in arrays else 'w'}"
            )
    classes = arrays["labels"].astype(np.int64) if G.classes else np.empty(0, np.int64)
    if len(classes) and not (0 <= classes.min() and classes.max() < len(G.classes)):
        raise UsageError(f"latents: a label of {path} is not one of the {len(G.classes)} classes of the generator")
    values = {name: arrays[columns[name]].astype(np.float64) for name in names}
    check_values(G.spec.conditions, values)
    return classes, values


@torch.no_grad()
def w_dim(G: PretrainedGenerator) -> int:
    """The width of w."""
    device = next(G.parameters()).device
    return G.core.mapping(torch.ones(1, G.z_dim, device=device), example_labels(G.spec, 1, device)).shape[1]
