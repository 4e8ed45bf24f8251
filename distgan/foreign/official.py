"""Names of the tensors in pickles of stylegan2-ada-pytorch, and of StyleGAN2 in the later repository."""

import math

from torch import Tensor

from distgan.foreign.rules import Layout, Rule, Tensors, count

STYLED = ("weight", "affine.weight", "affine.bias", "bias", "noise_strength", "noise_const")
TO_IMAGE = ("weight", "affine.weight", "affine.bias", "bias")
MEAN = "mapping.w_avg"


def generator(tensors: Tensors) -> list[Rule]:
    """All values are as ours; noise and constants too."""
    rules = mapping("mapping", tensors)
    rules.append(Rule("const", ("synthesis.b4.const",)))
    for k in range(count(tensors, r"synthesis\.b(\d+)\.")):
        block = f"synthesis.b{4 << k}"
        for conv in ("conv0", "conv1") if k else ("conv1",):
            rules += [Rule(f"blocks.{k}.{conv}.{name}", (f"{block}.{conv}.{name}",)) for name in STYLED]
        rules += [Rule(f"blocks.{k}.to_image.{name}", (f"{block}.torgb.{name}",)) for name in TO_IMAGE]
    if MEAN in tensors:
        rules.append(Rule("w_mean", (MEAN,)))
    return rules


def discriminator(tensors: Tensors) -> list[Rule]:
    levels = count(tensors, r"b(\d+)\.")
    first = f"b{4 << (levels - 1)}.fromrgb"
    rules = [Rule(f"from_image.{name}", (f"{first}.{name}",)) for name in ("weight", "bias")]
    for k in range(levels - 1):
        block = f"b{4 << (levels - 1 - k)}"
        names = ["conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias"]
        names += ["skip.weight"] if f"{block}.skip.weight" in tensors else []
        rules += [Rule(f"blocks.{k}.{name}", (f"{block}.{name}",)) for name in names]
    for ours, theirs in (("conv", "conv"), ("linear", "fc"), ("output", "out")):
        rules += [Rule(f"{ours}.{name}", (f"b4.{theirs}.{name}",)) for name in ("weight", "bias")]
    return rules + (mapping("mapping", tensors) if "mapping.embed.weight" in tensors else [])


def mapping(place: str, tensors: Tensors) -> list[Rule]:
    """Layers of learning rate 0.01, and a label's embedding: a layer of learning rate 1 of its one-hot vector."""
    rules = []
    if f"{place}.embed.weight" in tensors:
        rules.append(Rule("map.embed.weight", (f"{place}.embed.weight", f"{place}.embed.bias"), embed))
    for k in range(count(tensors, rf"{place}\.fc(\d+)\.")):
        rules += [Rule(f"map.layers.{k}.{name}", (f"{place}.fc{k}.{name}",)) for name in ("weight", "bias")]
    return rules


def embed(weight: Tensor, bias: Tensor) -> Tensor:
    """[width, classes] and [width] -> a row for each class."""
    return weight.T / math.sqrt(weight.shape[1]) + bias


OFFICIAL = Layout(
    name="stylegan2-ada-pytorch",
    licence=(
        "unknown; weights that NVIDIA published, and what is derived from them or from its code, are for research or "
        "evaluation only"
    ),
    of_generator="synthesis.b4.const",
    of_discriminator="b4.fc.weight",
    generator=generator,
    discriminator=discriminator,
    filters=r".*\.resample_filter",
)
