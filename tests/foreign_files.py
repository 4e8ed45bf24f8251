"""Tiny networks of stylegan2 written as the files of other projects, the inverse of `distgan convert`."""

import argparse
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from distgan import models
from distgan.samples import SampleSpec

TINY = {"channel_base": 64, "channel_max": 6, "w_dim": 7, "mapping_layers": 2, "w_mean": True}
Z_DIM = 5
SIZE = 16
FILTER = torch.outer(*[torch.tensor([1.0, 3, 3, 1])] * 2) / 64
Tensors = dict[str, Tensor]


def build(classes: int = 0, seed: int = 0, channels: int = 3, **options: Any) -> tuple[Any, Any]:
    """G and D of 16x16 images, with random tensors everywhere."""
    spec = SampleSpec(SIZE, SIZE, channels, classes)
    networks: Any = models.build("stylegan2", spec, z_dim=Z_DIM, options={**TINY, **options}, seed=seed)
    G, D = networks
    generator = torch.Generator().manual_seed(seed)
    for network in (G, D):
        for name, tensor in network.state_dict().items():
            scale = 50.0 if name.startswith("map.layers") else 0.5
            tensor += scale * torch.randn(tensor.shape, generator=generator)
        network.eval().requires_grad_(False)
    G.noise = "const"
    return G, D


def rosinality_g(G: Any) -> Tensors:
    """As the state_dict of g_ema there; all tensors are contiguous."""
    ours = G.state_dict()
    found: Tensors = {}

    def conv(theirs: str, prefix: str) -> None:
        found[f"{theirs}.conv.weight"] = ours[f"{prefix}.weight"][None]
        found[f"{theirs}.conv.modulation.weight"] = ours[f"{prefix}.affine.weight"]
        found[f"{theirs}.conv.modulation.bias"] = ours[f"{prefix}.affine.bias"]

    def styled(theirs: str, prefix: str, number: int) -> None:
        conv(theirs, prefix)
        found[f"{theirs}.activate.bias"] = ours[f"{prefix}.bias"]
        found[f"{theirs}.noise.weight"] = ours[f"{prefix}.noise_strength"].reshape(1)
        found[f"noises.noise_{number}"] = ours[f"{prefix}.noise_const"][None, None]

    for k in range(len(G.map.layers)):
        found[f"style.{k + 1}.weight"] = ours[f"map.layers.{k}.weight"]
        found[f"style.{k + 1}.bias"] = ours[f"map.layers.{k}.bias"]
    found["input.input"] = ours["const"][None]
    styled("conv1", "blocks.0.conv1", 0)
    for k in range(len(G.blocks)):
        theirs = f"to_rgbs.{k - 1}" if k else "to_rgb1"
        conv(theirs, f"blocks.{k}.to_image")
        found[f"{theirs}.bias"] = ours[f"blocks.{k}.to_image.bias"][None, :, None, None]
        if k:
            styled(f"convs.{2 * k - 2}", f"blocks.{k}.conv0", 2 * k - 1)
            styled(f"convs.{2 * k - 1}", f"blocks.{k}.conv1", 2 * k)
            found[f"convs.{2 * k - 2}.conv.blur.kernel"] = 4 * FILTER
            found[f"{theirs}.upsample.kernel"] = 4 * FILTER
    return OrderedDict(found)


def rosinality_d(D: Any) -> Tensors:
    ours = D.state_dict()
    found = {"convs.0.0.weight": ours["from_image.weight"], "convs.0.1.bias": ours["from_image.bias"]}
    for k in range(len(D.blocks)):
        place = f"convs.{k + 1}"
        for theirs, name in (("conv1.0", "conv0"), ("conv2.1", "conv1"), ("skip.1", "skip")):
            found[f"{place}.{theirs}.weight"] = ours[f"blocks.{k}.{name}.weight"]
        found[f"{place}.conv1.1.bias"] = ours[f"blocks.{k}.conv0.bias"]
        found[f"{place}.conv2.2.bias"] = ours[f"blocks.{k}.conv1.bias"]
        found |= {f"{place}.conv2.0.kernel": FILTER, f"{place}.skip.0.kernel": FILTER}
    found |= {"final_conv.0.weight": ours["conv.weight"], "final_conv.1.bias": ours["conv.bias"]}
    for theirs, name in (("final_linear.0", "linear"), ("final_linear.1", "output")):
        found |= {f"{theirs}.weight": ours[f"{name}.weight"], f"{theirs}.bias": ours[f"{name}.bias"]}
    return OrderedDict(found)


def write_rosinality(path: Path, ema: Any, G: Any, D: Any, *, zipped: bool = True, **changes: Any) -> Path:
    """As its training saves, with the mean of w as its converter does; `changes` are keys of the file."""
    keys: dict[str, Any] = {"g": rosinality_g(G), "d": rosinality_d(D), "g_ema": rosinality_g(ema)}
    keys |= {"g_optim": {"state": {0: {"step": torch.tensor(3)}}}, "args": argparse.Namespace(size=SIZE)}
    keys |= {"latent_avg": ema.w_mean, **changes}
    torch.save(keys, path, _use_new_zipfile_serialization=zipped)
    return path


def official_tensors(network: Any, *, is_d: bool = False) -> Tensors:
    """The names are ours, but for those of blocks, labels and outer layers."""
    found: Tensors = {}
    last = len(network.blocks) - (0 if is_d else 1)
    for name, tensor in network.state_dict().items():
        parts = name.split(".")
        if parts[0] == "blocks":
            level = last - int(parts[1]) if is_d else int(parts[1])
            place = "torgb" if parts[2] == "to_image" else parts[2]
            found[".".join([f"b{4 << level}", place, *parts[3:]])] = tensor
        elif parts[0] == "from_image":
            found[f"b{4 << last}.fromrgb.{parts[1]}"] = tensor
        elif parts[:2] == ["map", "layers"]:
            found[f"mapping.fc{parts[2]}.{parts[3]}"] = tensor
        elif parts[:2] == ["map", "embed"]:
            bias = torch.linspace(-1, 1, tensor.shape[1])
            found["mapping.embed.weight"] = ((tensor - bias) * len(tensor) ** 0.5).T.contiguous()
            found["mapping.embed.bias"] = bias
        else:
            other = {"conv": "b4.conv", "linear": "b4.fc", "output": "b4.out", "const": "b4.const"}
            found[".".join([other.get(parts[0], "mapping.w_avg"), *parts[1:]])] = tensor
    for name in [name for name in found if name.endswith(("conv0.weight", "conv1.weight"))]:
        found[name.replace("weight", "resample_filter")] = FILTER
    if not is_d:
        found = {name if name.startswith("mapping") else f"synthesis.{name}": found[name] for name in found}
    return found


class Persistent:
    """Pickled as a module of the official code: by source, class name and attributes."""

    def __init__(self, class_name: str, source: str, **attributes: Any) -> None:
        self.description = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": {
                "training": False,
                "_backward_hooks": OrderedDict(),
                "weight_gain": np.float64(0.5),
                **attributes,
            },
        }

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.description,), None


def module_tree(tensors: Tensors, source: str, **attributes: Any) -> Persistent:
    """Nested modules that have `tensors` by their names; all have `attributes`."""
    own = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items() if "." not in name}
    buffers = {name: own.pop(name).data for name in ("resample_filter", "noise_const", "w_avg") if name in own}
    inner: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        first, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(first, {})[rest] = tensor
    modules = OrderedDict((name, module_tree(part, source, **attributes)) for name, part in inner.items())
    lists = {"_parameters": OrderedDict(own), "_buffers": OrderedDict(buffers), "_modules": modules}
    return Persistent("Generator", source, **lists, **attributes)


class EasyDict(dict[str, Any]):
    pass


def rebuild(description: dict[str, Any]) -> None:
    raise AssertionError("nothing of a pickle is called")


@contextmanager
def official_modules() -> Iterator[None]:
    """The modules whose names an official pickle has."""
    persistence = types.ModuleType("torch_utils.persistence")
    util = types.ModuleType("dnnlib.util")
    parents = {name: types.ModuleType(name) for name in ("torch_utils", "dnnlib")}
    for module, name, value in (
        (persistence, "_reconstruct_persistent_obj", rebuild),
        (util, "EasyDict", EasyDict),
    ):
        value.__module__ = module.__name__
        value.__qualname__ = value.__name__ = name
        setattr(module, name, value)
    with mock.patch.dict(sys.modules, {persistence.__name__: persistence, util.__name__: util, **parents}):
        yield


def write_official(path: Path, ema: Any, G: Any, D: Any, *, source: str = "", **attributes: Any) -> Path:
    """A pickle with G, D, G_ema; `attributes` are those of all modules."""
    with official_modules():
        found = {
            "G": module_tree(official_tensors(G), source, **attributes),
            "D": module_tree(official_tensors(D, is_d=True), source, **attributes),
            "G_ema": module_tree(official_tensors(ema), source, **attributes),
            "training_set_kwargs": EasyDict(path="data.zip", resolution=SIZE),
            "augment_pipe": None,
        }
        path.write_bytes(pickle.dumps(found))
    return path


def flax_g(G: Any) -> Tensors:
    """Kernels are [kernel, kernel, inputs, outputs], those of transposed convolutions flipped; styles lack their 1."""
    found: Tensors = {}
    ours = G.state_dict()

    def conv(theirs: str, prefix: str, up: bool = False) -> None:
        kernel = ours[f"{prefix}.weight"].permute(2, 3, 1, 0)
        found[f"{theirs}/conv/weight"] = kernel.flip(0, 1) if up else kernel
        found[f"{theirs}/conv/bias"] = ours[f"{prefix}.bias"]
        found[f"{theirs}/affine/weight"] = ours[f"{prefix}.affine.weight"].T
        found[f"{theirs}/affine/bias"] = ours[f"{prefix}.affine.bias"] - 1

    for k in range(len(G.map.layers)):
        found[f"mapping_network/fc{k}/weight"] = ours[f"map.layers.{k}.weight"].T
        found[f"mapping_network/fc{k}/bias"] = ours[f"map.layers.{k}.bias"]
    found["mapping_network/w_avg"] = ours["w_mean"]
    if "map.embed.weight" in ours:
        found |= flax_labels("mapping_network", ours["map.embed.weight"], 0.01)
    found["synthesis_network/const"] = ours["const"].permute(1, 2, 0)[None]
    for k in range(len(G.blocks)):
        block = f"synthesis_network/block_{4 << k}x{4 << k}"
        conv(f"{block}/torgb", f"blocks.{k}.to_image")
        for number, name in enumerate(("conv0", "conv1") if k else ("conv1",)):
            place = f"{block}/layer{number}"
            conv(place, f"blocks.{k}.{name}", up=name == "conv0")
            found[f"{place}/noise_strength"] = ours[f"blocks.{k}.{name}.noise_strength"]
            found[f"{place}/noise_const"] = ours[f"blocks.{k}.{name}.noise_const"][None, :, :, None]
    return found


def flax_labels(place: str, embedding: Tensor, lr_multiplier: float) -> Tensors:
    bias = torch.linspace(-1, 1, embedding.shape[1])
    weight = (embedding / lr_multiplier - bias) * len(embedding) ** 0.5
    return {f"{place}/label_embedding/weight": weight, f"{place}/label_embedding/bias": bias}


def flax_d(D: Any) -> Tensors:
    found: Tensors = {}
    levels = len(D.blocks)
    for name, tensor in D.state_dict().items():
        parts = name.split(".")
        place = {"conv": "block_4x4/conv0", "linear": "block_4x4/fc0", "output": "output"}.get(parts[0])
        if parts[0] == "map":
            found |= flax_labels("discriminator", tensor, 0.1)
            continue
        if place is None:
            level = 4 << (levels - int(parts[1]) if parts[0] == "blocks" else levels)
            place = f"block_{level}x{level}/{'fromrgb' if parts[0] == 'from_image' else parts[2]}"
        array = tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T if tensor.ndim == 2 else tensor
        found[f"discriminator/{place}/{parts[-1]}"] = array
    return found


def write_hdf5(path: Path, tensors: Tensors) -> Path:
    import h5py

    with h5py.File(path, "w") as file:
        for name, tensor in tensors.items():
            file[name] = tensor.numpy()
    return path
