"""Names of the tensors in files of rosinality/stylegan2-pytorch."""

import math

from torch import Tensor

from distgan.foreign.contents import MEAN
from distgan.foreign.rules import Layout, Rule, Tensors, count

NOISES = "noises."


def first(tensor: Tensor) -> Tensor:
    """Without an axis of length 1."""
    return tensor.squeeze(0)


def modulated(ours: str, theirs: str) -> list[Rule]:
    names = ("weight", "bias")
    affine = [Rule(f"{ours}.affine.{name}", (f"{theirs}.conv.modulation.{name}",)) for name in names]
    return [Rule(f"{ours}.weight", (f"{theirs}.conv.weight",), first), *affine]


def styled(ours: str, theirs: str, number: int, has_noises: bool) -> list[Rule]:
    rules = modulated(ours, theirs)
    rules.append(Rule(f"{ours}.bias", (f"{theirs}.activate.bias",)))
    rules.append(Rule(f"{ours}.noise_strength", (f"{theirs}.noise.weight",), first))
    if has_noises:
        rules.append(Rule(f"{ours}.noise_const", (f"{NOISES}noise_{number}",), lambda noise: noise[0, 0]))
    return rules


def to_image(ours: str, theirs: str) -> list[Rule]:
    return [*modulated(ours, theirs), Rule(f"{ours}.bias", (f"{theirs}.bias",), lambda bias: bias[0, :, 0, 0])]


def generator(tensors: Tensors) -> list[Rule]:
    """All values are as ours. A file may have no constant noise."""
    has_noises = any(name.startswith(NOISES) for name in tensors)
    rules = []
    for k in range(count(tensors, r"style\.(\d+)\.")):
        rules += [Rule(f"map.layers.{k}.{name}", (f"style.{k + 1}.{name}",)) for name in ("weight", "bias")]
    rules.append(Rule("const", ("input.input",), first))
    rules += styled("blocks.0.conv1", "conv1", 0, has_noises) + to_image("blocks.0.to_image", "to_rgb1")
    for k in range(1, 1 + count(tensors, r"to_rgbs\.(\d+)\.")):
        rules += styled(f"blocks.{k}.conv0", f"convs.{2 * k - 2}", 2 * k - 1, has_noises)
        rules += styled(f"blocks.{k}.conv1", f"convs.{2 * k - 1}", 2 * k, has_noises)
        rules += to_image(f"blocks.{k}.to_image", f"to_rgbs.{k - 1}")
    if MEAN in tensors:
        rules.append(Rule("w_mean", (MEAN,), lambda mean: mean.reshape(math.prod(mean.shape))))
    return rules


def discriminator(tensors: Tensors) -> list[Rule]:
    pairs = {"from_image.weight": "convs.0.0.weight", "from_image.bias": "convs.0.1.bias"}
    for k in range(count(tensors, r"convs\.(\d+)\.") - 1):
        theirs = f"convs.{k + 1}"
        pairs[f"blocks.{k}.conv0.weight"] = f"{theirs}.conv1.0.weight"
        pairs[f"blocks.{k}.conv0.bias"] = f"{theirs}.conv1.1.bias"
        pairs[f"blocks.{k}.conv1.weight"] = f"{theirs}.conv2.1.weight"
        pairs[f"blocks.{k}.conv1.bias"] = f"{theirs}.conv2.2.bias"
        pairs[f"blocks.{k}.skip.weight"] = f"{theirs}.skip.1.weight"
    pairs |= {"conv.weight": "final_conv.0.weight", "conv.bias": "final_conv.1.bias"}
    for ours, theirs in (("linear", "final_linear.0"), ("output", "final_linear.1")):
        pairs |= {f"{ours}.{name}": f"{theirs}.{name}" for name in ("weight", "bias")}
    return [Rule(ours, (theirs,)) for ours, theirs in pairs.items()]


ROSINALITY = Layout(
    name="rosinality/stylegan2-pytorch",
    licence=(
        "unknown (the code is MIT); weights that were converted from those that NVIDIA published are for research or "
        "evaluation only"
    ),
    of_generator="input.input",
    of_discriminator="final_conv.0.weight",
    generator=generator,
    discriminator=discriminator,
    filters=r".*\.kernel",
)
