"""Names of the tensors in HDF5 files of matthias-wright/flaxmodels, which has the networks that NVIDIA published."""

import math

from torch import Tensor

from distgan.foreign.rules import Layout, Rule, Tensors, count

G_LABELS_LR = 0.01
D_LABELS_LR = 0.1
"""Multipliers of the learning rate of a label's embedding."""
MEAN = "mapping_network/w_avg"


def transposed(weight: Tensor) -> Tensor:
    """[inputs, outputs] -> [outputs, inputs]"""
    return weight.transpose(0, 1)


def convolution(weight: Tensor) -> Tensor:
    """[kernel, kernel, inputs, outputs] -> [outputs, inputs, kernel, kernel]"""
    return weight.permute(3, 2, 0, 1)


def flipped_convolution(weight: Tensor) -> Tensor:
    """Of a transposed convolution, which is flipped there when it is used."""
    return convolution(weight).flip(2, 3)


def bias_from_one(bias: Tensor) -> Tensor:
    """The 1 that styles start from is added there when it is used."""
    return bias + 1


def embedding(lr_multiplier: float) -> Rule:
    def embed(weight: Tensor, bias: Tensor) -> Tensor:
        return lr_multiplier * (weight / math.sqrt(weight.shape[0]) + bias)

    place = "mapping_network" if lr_multiplier == G_LABELS_LR else "discriminator"
    return Rule("map.embed.weight", (f"{place}/label_embedding/weight", f"{place}/label_embedding/bias"), embed)


def modulated(ours: str, theirs: str, *, up: bool = False) -> list[Rule]:
    return [
        Rule(f"{ours}.weight", (f"{theirs}/conv/weight",), flipped_convolution if up else convolution),
        Rule(f"{ours}.bias", (f"{theirs}/conv/bias",)),
        Rule(f"{ours}.affine.weight", (f"{theirs}/affine/weight",), transposed),
        Rule(f"{ours}.affine.bias", (f"{theirs}/affine/bias",), bias_from_one),
    ]


def styled(ours: str, theirs: str, *, up: bool) -> list[Rule]:
    rules = modulated(ours, theirs, up=up)
    rules.append(Rule(f"{ours}.noise_strength", (f"{theirs}/noise_strength",), lambda strength: strength.reshape(())))
    rules.append(Rule(f"{ours}.noise_const", (f"{theirs}/noise_const",), lambda noise: noise[0, :, :, 0]))
    return rules


def generator(tensors: Tensors) -> list[Rule]:
    rules = [embedding(G_LABELS_LR)] if "mapping_network/label_embedding/weight" in tensors else []
    for k in range(count(tensors, r"mapping_network/fc(\d+)/")):
        rules.append(Rule(f"map.layers.{k}.weight", (f"mapping_network/fc{k}/weight",), transposed))
        rules.append(Rule(f"map.layers.{k}.bias", (f"mapping_network/fc{k}/bias",)))
    rules.append(Rule("const", ("synthesis_network/const",), lambda const: const[0].permute(2, 0, 1)))
    for k in range(count(tensors, r"synthesis_network/block_(\d+)x")):
        block = f"synthesis_network/block_{4 << k}x{4 << k}"
        if k:
            rules += styled(f"blocks.{k}.conv0", f"{block}/layer0", up=True)
        rules += styled(f"blocks.{k}.conv1", f"{block}/layer{1 if k else 0}", up=False)
        rules += modulated(f"blocks.{k}.to_image", f"{block}/torgb")
    if MEAN in tensors:
        rules.append(Rule("w_mean", (MEAN,)))
    return rules


def discriminator(tensors: Tensors) -> list[Rule]:
    levels = count(tensors, r"discriminator/block_(\d+)x")
    blocks = [f"discriminator/block_{4 << k}x{4 << k}" for k in reversed(range(levels))]
    rules = layer("from_image", f"{blocks[0]}/fromrgb", convolution)
    for k, block in enumerate(blocks[:-1]):
        rules += layer(f"blocks.{k}.conv0", f"{block}/conv0", convolution)
        rules += layer(f"blocks.{k}.conv1", f"{block}/conv1", convolution)
        if f"{block}/skip/weight" in tensors:
            rules.append(Rule(f"blocks.{k}.skip.weight", (f"{block}/skip/weight",), convolution))
    rules += layer("conv", f"{blocks[-1]}/conv0", convolution)
    rules += layer("linear", f"{blocks[-1]}/fc0", transposed)
    rules += layer("output", "discriminator/output", transposed)
    return rules + ([embedding(D_LABELS_LR)] if "discriminator/label_embedding/weight" in tensors else [])


def layer(ours: str, theirs: str, function: object) -> list[Rule]:
    return [
        Rule(f"{ours}.weight", (f"{theirs}/weight",), function),  # type: ignore[arg-type]
        Rule(f"{ours}.bias", (f"{theirs}/bias",)),
    ]


FLAX = Layout(
    name="matthias-wright/flaxmodels",
    licence=(
        "NVIDIA's networks, or what is derived from them: for research or evaluation only, and so is what is made of "
        "these weights"
    ),
    of_generator="synthesis_network/const",
    of_discriminator="discriminator/block_4x4/fc0/weight",
    generator=generator,
    discriminator=discriminator,
)
