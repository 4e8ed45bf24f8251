"""The weights of one network copied into another of the same architecture, whose labels may differ."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distgan import models
from distgan.errors import UsageError
from distgan.runs.schema import WeightsMetadata
from distgan.samples import SampleSpec

NAMES = {"generator": "G", "ema": "EMA of G", "discriminator": "D"}
"""What messages call a network, by the name of its file."""
PART = ", but for the weights of z"
"""Of a tensor of which a part was copied."""
SHOWN = 3
"""Layers that a refusal shows."""
Shapes = dict[str, list[int]]


@dataclass(frozen=True)
class Architecture:
    """What the networks of a run are built from."""

    name: str
    z_dim: int
    options: dict[str, Any]
    spec: SampleSpec
    classes: list[str]
    """Their names; [] without."""

    @classmethod
    def of(cls, file: Path, metadata: WeightsMetadata) -> "Architecture":
        """Those in a file of weights. Raises UsageError if its metadata does not say how large images are."""
        model = metadata.config.model
        try:
            return cls(model.name, model.latent, model.options, metadata.spec, metadata.classes)
        except ValueError as error:
            raise UsageError(f"{file}: its metadata does not say what images it makes ({error})") from None

    @property
    def labels(self) -> list[str]:
        """What labels consist of, column by column: tensors whose shapes depend on labels depend on this."""
        return ["class"] * self.spec.num_classes + [condition.kind for condition in self.spec.conditions]

    @property
    def label_names(self) -> list[str]:
        return [*self.classes, *[condition.name for condition in self.spec.conditions]]

    def with_labels(self, spec: SampleSpec) -> "Architecture":
        """The same networks for labels as `spec` has them."""
        own = replace(self.spec, num_classes=spec.num_classes, conditions=spec.conditions)
        return replace(self, spec=own, classes=[])

    def build_empty(self, network: str) -> nn.Module:
        """One of the networks on the meta device: shapes without memory. Raises UsageError if it cannot be."""
        try:
            with torch.device("meta"):
                G, D = models.build(self.name, self.spec, z_dim=self.z_dim, options=self.options, seed=0)
        except UsageError:
            raise
        except Exception as error:  # a user's network may raise anything
            reason = (str(error).splitlines() or [""])[0]
            raise UsageError(
                f"what depends on labels cannot be found: {self.name} cannot be built on torch's meta device "
                f"({reason}); give a source with the same labels"
            ) from None
        return D if network == "discriminator" else G


@dataclass(frozen=True)
class Copied:
    """What was copied into a network, and what was not."""

    tensors: int
    """Tensors that were copied as a whole."""
    parameters: int
    """Numbers in the parameters that were copied."""
    new: list[str]
    """Tensors that begin anew, as text."""
    left_out: list[str]
    """Tensors of the source for which there is no place, as text."""


def shapes_of(tensors: Mapping[str, Tensor]) -> Shapes:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


@torch.no_grad()
def copy_weights(
    network: nn.Module, kind: str, weights: Mapping[str, Tensor], source: Architecture, target: Architecture, file: Path
) -> Copied:
    """Copy `weights` into a network of `target`, in place and bit for bit; `kind` is the name of its file.

    Where the labels differ, what depends on them keeps its values: tensors whose shapes differ between the networks for
    the two kinds of labels. Of the layer that z meets, `network.z_weights`, the weights of z are copied. Raises
    UsageError unless the weights are those of `target` for the source's labels.
    """
    own = shapes_of(network.state_dict())
    theirs = shapes_of(weights)
    same_labels = source.labels == target.labels
    empty = None if same_labels else target.with_labels(source.spec).build_empty(kind)
    expected = own if empty is None else shapes_of(empty.state_dict())
    check_architecture(kind, source, target, theirs, expected, file)
    dependent = set() if same_labels else label_dependent(kind, own, expected, source, target)
    parts = {} if empty is None else copy_z_weights(network, empty, weights, dependent)
    state = network.state_dict()
    for name in own.keys() - dependent:
        state[name].copy_(weights[name])
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters() if name not in dependent}
    rest = {name: PART if name in parts else "" for name in own}
    new = [name for name in own if name in dependent and parts.get(name) != prod(own[name])]
    left_out = [name for name in theirs if name not in own or (name in parts and parts[name] != prod(theirs[name]))]
    return Copied(
        tensors=len(own) - len(new),
        parameters=sum(sizes.values()) + sum(parts.values()),
        new=[f"{name} {own[name]}{rest[name]}" for name in new],
        left_out=[f"{name} {theirs[name]}{rest.get(name, '')}" for name in left_out],
    )


def label_dependent(
    kind: str, own: Shapes, expected: Shapes, source: Architecture, target: Architecture
) -> Collection[str]:
    """The tensors of a network for the labels of `target` that have another shape for those of the source.

    Labels of another kind and the same number of columns have the same shapes: there, those which unconditional
    networks have not.
    """
    if len(source.labels) == len(target.labels):
        expected = shapes_of(target.with_labels(target.spec.unconditional()).build_empty(kind).state_dict())
    return {name for name, shape in own.items() if expected.get(name) != shape}


def copy_z_weights(
    network: nn.Module, empty: nn.Module, weights: Mapping[str, Tensor], dependent: Collection[str]
) -> dict[str, int]:
    """Copy what z meets, of a tensor that depends on labels; how many numbers, by the name of the tensor."""
    z_weights = getattr(network, "z_weights", None)
    if z_weights is None:
        return {}
    storage = z_weights.untyped_storage().data_ptr()
    named = dict(network.named_parameters())
    name = next(name for name, each in named.items() if each.untyped_storage().data_ptr() == storage)
    if name not in dependent:
        return {}
    empty.load_state_dict(weights, assign=True)
    # an equalized layer scales its weights by its inputs, of which labels are a part
    z_weights.copy_(empty.z_weights).mul_(getattr(empty, "z_gain", 1.0) / getattr(network, "z_gain", 1.0))
    return {name: z_weights.numel()}


def check_architecture(
    kind: str, source: Architecture, target: Architecture, theirs: Shapes, expected: Shapes, file: Path
) -> None:
    """Raises UsageError, with what differs and what to do, unless the source's weights are those of the target."""
    different = differing_keys(source, target)
    fixed = [key for key in different if not key.startswith("model.options")]
    if theirs == expected and not fixed:
        return
    text = "; ".join(f"{key} {there} there, {here} here" for key, (there, here) in different.items())
    layers = differing_layers(theirs, expected)
    name = NAMES[kind]
    if not different:
        raise UsageError(
            f"{file} does not hold {name} of a {target.name} as this version builds it: {layers}; give "
            "generator.safetensors, ema.safetensors, or the folder of a checkpoint"
        )
    fixes = []
    if any(key.startswith("model") for key in different):
        model = {"name": source.name, "latent": source.z_dim, "options": source.options}
        fixes.append(f"give this run the model there, --model '{json.dumps(model)}'")
    if "images" in different:
        size = f"--size {source.spec.pixels.height}x{source.spec.pixels.width} --channels {source.spec.pixels.channels}"
        fixes.append(f"make the dataset with `distgan shards make {size}`")
    if "latents" in different:
        fixes.append("encode the dataset with the same VAE")
    raise UsageError(
        f"{file} holds {name} of other networks ({text}); {layers + '; ' if layers else ''}{', and '.join(fixes)}"
    )


def differing_keys(source: Architecture, target: Architecture) -> dict[str, tuple[Any, Any]]:
    """What the two are not built alike from, labels apart: [there, here] by key."""
    pairs: dict[str, tuple[Any, Any]] = {
        "model.name": (source.name, target.name),
        "model.latent": (source.z_dim, target.z_dim),
        "images": (size_of(source.spec), size_of(target.spec)),
        "latents": (latents_of(source.spec), latents_of(target.spec)),
    }
    if source.name == target.name:
        defaults = models.option_defaults(target.name)
        there = defaults | source.options
        here = defaults | target.options
        pairs |= {f"model.options.{name}": (there.get(name), here.get(name)) for name in sorted(there | here)}
    return {key: (there, here) for key, (there, here) in pairs.items() if there != here}


def size_of(spec: SampleSpec) -> str:
    return f"{spec.height}x{spec.width}x{spec.channels}"


def latents_of(spec: SampleSpec) -> str:
    """What latents mean to networks; "none" for pixels."""
    if spec.latents is None:
        return "none"
    about = asdict(spec.latents)
    return f"of the VAE {about['vae'][:12]}, ({about['shift']:g}, {about['scale']:g})"


def differing_layers(theirs: Shapes, expected: Shapes) -> str:
    """The first tensors whose shapes differ, and how many more do."""
    names = [name for name in expected | theirs if theirs.get(name) != expected.get(name)]
    if not names:
        return ""
    shown = [f"{name} {theirs.get(name, 'not')} there, {expected.get(name, 'not')} here" for name in names[:SHOWN]]
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"tensors that differ: {', '.join(shown)}{more}"
