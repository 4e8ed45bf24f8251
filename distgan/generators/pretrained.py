"""A trained generator for inference: z and labels to images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.gan.outputs import images_of
from distgan.gan.step import generate
from distgan.gan.truncation import truncate
from distgan.generators.conditions import check_values, spread
from distgan.generators.mapped import MappedGenerator
from distgan.hub import HUB, is_address
from distgan.rng import rng
from distgan.samples import SampleSpec, network_labels

ClassLabel = int | str
"""A class by number or name."""
Values = float | Sequence[float] | np.ndarray
"""Of a condition: one, or [N]."""


class PretrainedGenerator(MappedGenerator):
    """A generator in eval mode, without gradients: z [N, z_dim] and labels -> images [N, C, H, W] in [-1, 1].

    `labels` makes the labels of classes and conditions; they are None for a generator that was trained without.
    -1 and 1 stand for `spec.range`: `distgan.pixels.to_stored` makes pixels as the dataset stores them. A run's EMA of
    G, if it has one, else G. What G makes of latents of an autoencoder is decoded; `latents` are those themselves.
    `mapping`, `synthesis` and `set_noise` (`distgan.generators.mapped`) are of networks that have these.
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
        decoder: nn.Module | None = None,
        truncation_psi: float = 1.0,
    ):
        super().__init__(truncate(network, truncation_psi, z_dim), decoder or nn.Identity(), path)
        self.network_spec = spec
        self.spec = spec.pixels
        """What it generates."""
        self.truncation_psi = truncation_psi
        """Of w: 1 is off."""
        self.z_dim = z_dim
        self.classes = classes
        """Class names by label; [] for an unconditional network."""
        self.note = note
        """Why that one, of a run with evaluations; empty otherwise."""
        self.eval().requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, revision: str | None = None, device: str | torch.device = "cpu", **options: Any
    ) -> "PretrainedGenerator":
        """The generator in a folder, a file or a run, or in the repository OWNER/NAME of the Hugging Face hub.

        OWNER/NAME is on the hub where there is no such folder here, and hf://OWNER/NAME always. `options` are those of
        `distgan.load`. Raises UsageError.
        """
        from distgan.generators.loading import load_generator  # it imports this module

        there = path if Path(path).exists() or is_address(path) else f"{HUB}{path}"
        return load_generator(f"{there}@{revision}" if revision else there, device, **options)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors: the file that it was loaded from, without paths. Raises OSError."""
        from distgan.generators.publication import write_weights

        write_weights(self.path, Path(folder))

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.decoder(self.latents(z, labels))

    def latents(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """What G makes, before it is decoded: [N, *network_spec.shape]; the images, of a G of images."""
        axes = None if labels is None else labels.ndim
        if axes != self.label_axes:
            need = "needs labels, which its method `labels` makes" if self.label_axes else "takes no labels"
            raise ValueError(f"a generator trained with {self.trained_with} {need}")
        return images_of(self.network(z, labels))

    @property
    def label_axes(self) -> int | None:
        """1 for labels int64 [N], 2 for float32 [N, label_width], None for no labels."""
        if self.spec.conditions:
            return 2
        return 1 if self.classes else None

    @property
    def trained_with(self) -> str:
        """What it is conditioned on, in words."""
        names = ", ".join(condition.name for condition in self.spec.conditions)
        classes = [f"{len(self.classes)} classes"] if self.classes or not names else []
        return " and ".join(classes + ([f"the conditions {names}"] if names else []))

    def sample(
        self,
        n: int,
        seed: int = 0,
        label: ClassLabel | None = None,
        conditions: Mapping[str, Values] | None = None,
    ) -> Tensor:
        """n images [n, C, H, W] in [-1, 1], on the CPU; the same for the same seed.

        `label` is a class by number or name; by default the classes take turns. `conditions` are values by name, each
        one or [n]; those that are not given are spread over the range of the training set
        (`distgan.generators.conditions.spread`). Raises UsageError for an unknown class or name, ValueError
        for values that are not one or n.
        """
        device = next(self.network.parameters()).device
        classes = None
        if self.classes or label is not None:
            classes = np.arange(n) % max(len(self.classes), 1) if label is None else self.label_number(label)
        labels = self.labels(classes, {**spread(self.spec.conditions, n, seed), **(conditions or {})})
        if labels is not None:
            if len(labels) not in (1, n):
                raise ValueError(f"conditions: give one value of each, or {n}; there are {len(labels)}")
            labels = labels.expand(n, *labels.shape[1:]).to(device)
        return generate(self, self.draw(n, seed).to(device), labels)

    def labels(
        self,
        classes: ClassLabel | Sequence[ClassLabel] | np.ndarray | None = None,
        conditions: Mapping[str, Values] | None = None,
    ) -> Tensor | None:
        """The labels of N images, on the CPU: int64 [N]; float32 [N, label_width] for a G with conditions; else None.

        `classes` are numbers or names; `conditions` are values by name, in the dataset's units. Each is one or [N].
        Raises UsageError for one that is unknown or missing, ValueError if they are not N.
        """
        values = {name: np.atleast_1d(np.asarray(each, np.float64)) for name, each in (conditions or {}).items()}
        check_values(self.spec.conditions, values)
        if missing := [condition.name for condition in self.spec.conditions if condition.name not in values]:
            raise UsageError(f"condition: {self.path} needs values of {', '.join(missing)}")
        if self.classes and classes is None:
            raise UsageError(f"label: {self.path} needs a class; choose from {self.class_choices}")
        wanted = [] if classes is None else np.atleast_1d(np.asarray(classes)).tolist()
        numbers = np.array([self.label_number(each) for each in wanted] or [0])
        if not self.spec.conditional:
            return None
        check_counts({"classes": numbers, **values})
        numbers, *columns = np.broadcast_arrays(numbers, *[values[one.name] for one in self.spec.conditions])
        table = np.stack(columns, axis=1) if columns else np.empty((len(numbers), 0))
        return torch.from_numpy(network_labels(self.spec, numbers.copy(), table))

    def draw(self, n: int, seed: int = 0, truncation: float | None = None) -> Tensor:
        """Latents [n, z_dim] from N(0, 1), on the CPU; values beyond `truncation` are drawn again."""
        generator = rng(seed, "sample")
        z = generator.standard_normal((n, self.z_dim), np.float32)
        while truncation is not None and (outside := np.abs(z) > truncation).any():
            z[outside] = generator.standard_normal(outside.sum(), np.float32)
        return torch.from_numpy(z)

    def label_number(self, label: ClassLabel) -> int:
        """The number of a class given by number or name. Raises UsageError."""
        if isinstance(label, str) and label in self.classes:
            return self.classes.index(label)
        number = int(label) if str(label).isdecimal() and len(str(label)) < 19 else -1
        if not 0 <= number < len(self.classes):
            raise UsageError(
                f"label: unknown class {label!r}; choose from {self.class_choices}"
                if self.classes
                else f"label: {self.path} was trained with {self.trained_with}, and without classes"
                if self.spec.conditions
                else f"label: {self.path} was trained without labels"
            )
        return number

    @property
    def class_choices(self) -> str:
        """The classes, for messages."""
        more = ", ..." if len(self.classes) > 20 else ""
        return f"{', '.join(self.classes[:20])}{more} (or 0 to {len(self.classes) - 1})"


def check_counts(values: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError unless the arrays by name have one value or N, the same N in all."""
    if len({len(each) for each in values.values() if len(each) != 1}) > 1:
        counts = ", ".join(f"{name} {len(each)}" for name, each in values.items())
        raise ValueError(f"labels: give one value of each, or N, the same N of all; there are {counts}")
