"""Networks of other projects as those of `distgan.models.stylegan2`: what they are, from their shapes, and values."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from distgan import models
from distgan.errors import UsageError
from distgan.foreign.contents import Contents, Network
from distgan.foreign.flax import FLAX
from distgan.foreign.official import OFFICIAL
from distgan.foreign.rosinality import ROSINALITY
from distgan.foreign.rules import Layout, Rule, check_names
from distgan.samples import SampleSpec

LAYOUTS = (OFFICIAL, ROSINALITY, FLAX)
GROUP = 4
"""Images of a group of the minibatch standard deviation, where a file does not say."""
STYLEGAN3 = ("synthesis.input.", "synthesis.L0_")
NOISE_SEED = 0
"""Of constant noise, where a file has none."""
Shapes = dict[str, torch.Size]


@dataclass
class Converted:
    """Networks of stylegan2."""

    layout: Layout
    spec: SampleSpec
    z_dim: int
    options: dict[str, Any]
    """Of `distgan.models.stylegan2.build`, but for `w_mean`."""
    weights: dict[str, dict[str, Tensor]]
    """By the name of their file in a checkpoint."""
    parameters: dict[str, int]
    notes: list[str] = field(default_factory=list)
    """What a file does not have."""

    def options_of(self, place: str) -> dict[str, Any]:
        """With `w_mean`: a file may have the mean of w of one of its generators."""
        return self.options | {"w_mean": "w_mean" in self.weights[place]}


@dataclass
class Renamed:
    """A network of which only shapes have been read."""

    network: Network
    layout: Layout
    rules: list[Rule]
    shapes: Shapes
    """Of ours."""


def convert(contents: Contents) -> Converted:
    """All networks of a file. Raises UsageError, which names the network and the tensor."""
    renamed = {place: rename(place, network) for place, network in contents.networks.items()}
    generators = [renamed[place] for place in ("ema", "generator") if place in renamed]
    if not generators:
        has = "a discriminator alone; give the file of its G" if renamed else "no network"
        raise UsageError(f"it has {has}, by name: g_ema or g, or G_ema or G")
    first = generators[0]
    spec, z_dim, options = describe_generator(first)
    if "discriminator" in renamed:
        options |= describe_discriminator(renamed["discriminator"], first)
    converted = Converted(first.layout, spec, z_dim, options, {}, {})
    for place, each in renamed.items():
        network = build(place, spec, z_dim, options | {"w_mean": "w_mean" in each.shapes})
        check_shapes(place, each, network)
        converted.weights[place] = read(place, each, network, converted.notes)
        converted.parameters[place] = models.count_parameters(network)
    if not any("w_mean" in each.shapes for each in generators):
        converted.notes.append("the file has no mean of w: truncation computes one")
    return converted


def rename(place: str, network: Network) -> Renamed:
    """Raises UsageError."""
    tensors = network.tensors
    is_d = place == "discriminator"
    found = [each for each in LAYOUTS if (each.of_discriminator if is_d else each.of_generator) in tensors]
    try:
        if any(name.startswith(STYLEGAN3) for name in tensors):
            raise UsageError("it is of StyleGAN3, which distgan has not")
        if not found:
            some = ", ".join(sorted(tensors)[:3])
            raise UsageError(f"it is not StyleGAN2 of a known project; its tensors are called {some or 'nothing'}")
        rules = found[0].discriminator(tensors) if is_d else found[0].generator(tensors)
        check_names(tensors, rules, found[0].filters)
        return Renamed(network, found[0], rules, {rule.ours: rule.shape(tensors) for rule in rules})
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None


def describe_generator(renamed: Renamed) -> tuple[SampleSpec, int, dict[str, Any]]:
    """Size, channels and classes of the images, the dimension of z, and options. Raises UsageError."""
    shapes = renamed.shapes
    depth = sum(name.startswith("map.layers.") for name in shapes) // 2
    counts = channel_counts(shapes, "blocks.{}.conv1.bias", "generator")
    if not depth or len(shapes["const"]) != 3 or len(shapes["map.layers.0.weight"]) != 2:
        raise UsageError("generator: its mapping network or its constant is none of StyleGAN2")
    height, width = (side << (len(counts) - 1) for side in shapes["const"][1:])
    classes, embedded = shapes.get("map.embed.weight", (0, 0))
    z_dim = shapes["map.layers.0.weight"][1] - embedded
    if z_dim < 1:
        raise UsageError("generator: its mapping network has no z")
    w_dim = shapes[f"map.layers.{depth - 1}.bias"][0]
    options: dict[str, Any] = {"mapping_layers": depth, "w_dim": w_dim, **widths(counts)}
    if renamed.network.clamps:
        options["clamp"] = max(renamed.network.clamps)
    spec = SampleSpec(height, width, shapes["blocks.0.to_image.bias"][0], classes)
    return spec, z_dim, options


def describe_discriminator(renamed: Renamed, generator: Renamed) -> dict[str, Any]:
    """Options of D. Raises UsageError where G has other numbers of features."""
    shapes = renamed.shapes
    if renamed.layout is not generator.layout:
        raise UsageError(f"discriminator: it is of {renamed.layout.name}, and G of {generator.layout.name}")
    blocks = sum(name.endswith(".conv1.bias") for name in shapes)
    counts = [shapes["conv.bias"][0]] + [shapes[f"blocks.{k}.conv0.bias"][0] for k in reversed(range(blocks))]
    if counts != (expected := channel_counts(generator.shapes, "blocks.{}.conv1.bias", "generator")):
        raise UsageError(f"discriminator: it has {counts} features at its resolutions, and G {expected}")
    extra = shapes["conv.weight"][1] - counts[0] if len(shapes["conv.weight"]) == 4 else -1
    if extra not in (0, 1):
        raise UsageError("discriminator: its standard deviation of a minibatch is not one feature")
    group = max(renamed.network.groups, default=GROUP)
    residual = "blocks.0.skip.weight" in shapes
    options = {"group": group if extra else 0, "d_architecture": "residual" if residual else "plain"}
    if "map.embed.weight" in shapes:
        options["d_mapping_layers"] = sum(name.startswith("map.layers.") for name in shapes) // 2
    return options


def channel_counts(shapes: Shapes, name: str, place: str) -> list[int]:
    """Features at the resolutions from the lowest up. Raises UsageError."""
    counts = []
    while (shape := shapes.get(name.format(len(counts)))) is not None:
        if len(shape) != 1 or not shape[0]:
            raise UsageError(f"{place}: {name.format(len(counts))} would have the shape {list(shape)}")
        counts.append(shape[0])
    return counts


def widths(counts: list[int]) -> dict[str, int]:
    """The options for features at the resolutions. Raises UsageError."""
    options = {"channel_base": counts[-1] * (4 << (len(counts) - 1)), "channel_max": max(counts)}
    expected = [min(options["channel_base"] // (4 << k), options["channel_max"]) for k in range(len(counts))]
    if counts != expected:
        raise UsageError(f"generator: it has {counts} features at its resolutions, where stylegan2 has {expected}")
    return options


def build(place: str, spec: SampleSpec, z_dim: int, options: dict[str, Any]) -> nn.Module:
    """G or D, without memory. Raises UsageError for what stylegan2 cannot be."""
    try:
        with torch.device("meta"):
            G, D = models.build("stylegan2", spec, z_dim=z_dim, options=options, seed=0)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(f"{place}: it is no network of stylegan2 ({str(error).splitlines()[0]})") from None
    return D if place == "discriminator" else G


def check_shapes(place: str, renamed: Renamed, network: nn.Module) -> None:
    """Raises UsageError for tensors of other shapes than the network's, and for those that it has not."""
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for rule in renamed.rules:
        shape = expected.get(rule.ours)
        if shape is None:
            raise UsageError(f"{place}: stylegan2 has no {rule.ours}, which is {', '.join(rule.theirs)} there")
        if renamed.shapes[rule.ours] != shape:
            theirs = rule.describe(renamed.network.tensors)
            raise UsageError(f"{place}: {theirs} do not fit the other tensors: {rule.ours} is {list(shape)}")
    if missing := [name for name in expected if name not in renamed.shapes and not is_noise(name)]:
        raise UsageError(f"{place}: nothing there is {', '.join(missing[:3])}")


def is_noise(name: str) -> bool:
    """Whether a tensor is constant noise, which some files have not."""
    return name.endswith(".noise_const")


def read(place: str, renamed: Renamed, network: nn.Module, notes: list[str]) -> dict[str, Tensor]:
    """The network's tensors, float32; adds to `notes` what is not from the file. Raises UsageError."""
    try:
        weights = {rule.ours: rule.read(renamed.network.tensors) for rule in renamed.rules}
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from None
    drawn = {name: tensor.shape for name, tensor in network.state_dict().items() if name not in weights}
    if drawn:
        generator = torch.Generator().manual_seed(NOISE_SEED)
        weights |= {name: torch.randn(shape, generator=generator) for name, shape in drawn.items()}
        notes.append(f"{place}: the file has no constant noise; it was drawn anew")
    return weights
