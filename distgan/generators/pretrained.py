"""A trained generator for inference: from one .safetensors file, or from a run folder."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distgan import models
from distgan.errors import UsageError
from distgan.gan.step import generate
from distgan.rng import rng
from distgan.runs.checkpoint import Checkpoints, find_corruption, load_weights
from distgan.samples import SampleSpec


class PretrainedGenerator(nn.Module):
    """A generator in eval mode, without gradients: z [N, z_dim], labels [N] or None -> images [N, C, S, S] in [-1, 1].

    A run's EMA of G, if it has one, else G.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        spec: SampleSpec,
        z_dim: int,
        classes: list[str],
        path: Path,
        note: str = "",
    ):
        super().__init__()
        self.network = network
        self.spec = spec
        """What it generates."""
        self.z_dim = z_dim
        self.classes = classes
        """Class names by label; [] for an unconditional network."""
        self.path = path
        """The file that the weights come from."""
        self.note = note
        """Why that one, of a run with evaluations; empty otherwise."""
        self.eval().requires_grad_(False)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        if (labels is None) == bool(self.classes):
            need = "needs labels [N]" if self.classes else "takes no labels"
            raise ValueError(f"a generator trained with {len(self.classes)} classes {need}")
        return self.network(z, labels)

    def sample(self, n: int, seed: int = 0, label: int | str | None = None) -> Tensor:
        """n images [n, channels, size, size] in [-1, 1], on the CPU; the same for the same seed.

        `label` is a class by number or name; by default the classes take turns. Raises UsageError for an unknown one.
        """
        device = next(self.network.parameters()).device
        labels = None
        if self.classes or label is not None:
            every = torch.arange(n) % max(len(self.classes), 1)
            labels = (every if label is None else torch.full((n,), self.label_number(label))).to(device)
        return generate(self.network, self.draw(n, seed).to(device), labels)

    def draw(self, n: int, seed: int = 0, truncation: float | None = None) -> Tensor:
        """Latents [n, z_dim] from N(0, 1), on the CPU; values beyond `truncation` are drawn again."""
        generator = rng(seed, "sample")
        z = generator.standard_normal((n, self.z_dim), np.float32)
        while truncation is not None and (outside := np.abs(z) > truncation).any():
            z[outside] = generator.standard_normal(outside.sum(), np.float32)
        return torch.from_numpy(z)

    def label_number(self, label: int | str) -> int:
        """The number of a class given by number or name. Raises UsageError."""
        if label in self.classes:
            return self.classes.index(str(label))
        number = int(label) if str(label).isdecimal() and len(str(label)) < 19 else -1
        if not 0 <= number < len(self.classes):
            choices = ", ".join(self.classes[:20]) + (", ..." if len(self.classes) > 20 else "")
            raise UsageError(
                f"label: unknown class {label!r}; choose from {choices} (or 0 to {len(self.classes) - 1})"
                if self.classes
                else f"label: {self.path} was trained without labels"
            )
        return number


def load_generator(path: str | Path, device: str | torch.device = "cpu") -> PretrainedGenerator:
    """The generator in a .safetensors file, or in the best checkpoint of a run folder. Raises UsageError.

    Of a run without evaluations, the newest complete checkpoint.
    """
    file, note = find_weights(Path(path))
    weights, metadata = load_weights(file)
    model = metadata.config.model
    try:
        spec = metadata.spec
    except ValueError as error:
        raise UsageError(f"{file}: its metadata does not say what images it makes ({error})") from None
    arguments: dict[str, Any] = {"z_dim": model.latent, "options": model.options, "seed": 0}
    try:
        with torch.device("meta"):  # without memory: the metadata may name a network that no machine can hold
            G, _ = models.build(model.name, spec, **arguments)
    except UsageError:
        raise
    except Exception as error:  # an architecture documents no exceptions for options that it cannot take
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{file}: its metadata does not describe a {model.name} network ({reason})") from None
    if shapes(G.state_dict()) != shapes(weights):
        raise UsageError(f"{file} does not hold a generator; give generator.safetensors or ema.safetensors")
    G, _ = models.build(model.name, spec, **arguments)
    G.load_state_dict(weights)
    try:
        G = G.to(device)
    except RuntimeError as error:
        raise UsageError(f"device: {device} cannot be used: {str(error).splitlines()[0]}") from None
    return PretrainedGenerator(G, spec=spec, z_dim=model.latent, classes=metadata.classes, path=file, note=note)


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def find_weights(path: Path, newest: bool = False) -> tuple[Path, str]:
    """The file to load, and a note: `path` itself, or the EMA of G, else G, in a run's best or newest checkpoint."""
    if not path.is_dir():
        return path, ""
    note = ""
    with contextlib.closing(Checkpoints(path / "checkpoints")) as checkpoints:
        best = None if newest else checkpoints.best
        if best is not None and find_corruption(checkpoints.folder / str(best.images)) is None:
            folder = checkpoints.folder / str(best.images)
            note = f" ({best})"
        else:
            folder = checkpoints.newest() or path
    for name in ("ema.safetensors", "generator.safetensors"):
        if (folder / name).is_file():
            return folder / name, note
    raise UsageError(f"{path} holds no checkpoint")
