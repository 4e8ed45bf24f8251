"""What a file of another project holds: its networks by their place in a checkpoint, as tensors by name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distgan.dataset_tool.sources.extras import extra
from distgan.errors import UsageError
from distgan.foreign.stored import StoredTensor
from distgan.foreign.torch_files import LEGACY, read_legacy, read_pickle, read_zip
from distgan.foreign.unpickle import Module

HDF5 = b"\x89HDF\r\n\x1a\n"
ZIP = b"PK\x03\x04"
PICKLES = tuple(bytes([0x80, protocol]) for protocol in range(2, 6))
PLACES = {"g_ema": "ema", "g": "generator", "d": "discriminator"}
"""The files of a checkpoint, by what the networks of the other projects are called, in small letters."""
MEAN = "latent_avg"
"""Beside the networks of a file of rosinality's: the mean of w of g_ema."""
MOST_DEPTH = 32
MOST_CLAIMED = 4
"""Times the size of a pickle that its tensors may have: several may be views of the same numbers."""


@dataclass
class Network:
    """The tensors of one network, by name, and what else its file says of it."""

    tensors: dict[str, StoredTensor]
    clamps: set[float] = field(default_factory=set)
    """Limits of the values behind convolutions."""
    groups: set[int] = field(default_factory=set)
    """Images of a group of the minibatch standard deviation."""


@dataclass
class Contents:
    format: str
    """In words."""
    networks: dict[str, Network]
    """By the name of their file in a checkpoint: ema, generator, discriminator."""
    left_out: list[str]
    """The names of everything else."""


def read_contents(path: Path) -> Contents:
    """The networks in a file, whose kind is found from its bytes, not its name. Raises UsageError, OSError."""
    with open(path, "rb") as file:
        start = file.read(len(LEGACY))
    try:
        if start.startswith(HDF5):
            return of_hdf5(path)
        for signs, read, format in (
            (ZIP, read_zip, "file of torch.save"),
            (LEGACY, read_legacy, "file of torch.save before 1.6"),
            (PICKLES, read_pickle, "pickle of modules"),
        ):
            if start.startswith(signs):
                data = path.read_bytes()
                return check_size(of_objects(read(data), format), len(data))
        reason = "it is empty" if not start else "it is neither HDF5, nor a file of torch.save, nor a pickle"
        raise UsageError(f"{reason}; give a .h5, .pt or .pkl of StyleGAN2")
    except UsageError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UsageError(f"{path}: {reason}") from None


def of_hdf5(path: Path) -> Contents:
    """Raises UsageError."""
    with extra("hdf5", str(path)):
        from distgan.foreign.hdf5 import read_hdf5
    tensors = read_hdf5(path)
    networks = {}
    for place, groups in (("ema", ("mapping_network", "synthesis_network")), ("discriminator", ("discriminator",))):
        inside = {name: tensor for name, tensor in tensors.items() if name.split("/")[0] in groups}
        if inside:
            networks[place] = Network(inside)
    used = {name for network in networks.values() for name in network.tensors}
    return Contents("HDF5 file", networks, sorted({name.split("/")[0] for name in tensors if name not in used}))


def of_objects(found: Any, format: str) -> Contents:
    """Raises UsageError."""
    if not isinstance(found, dict):
        raise UsageError(f"it holds no networks by name: {', '.join(PLACES)}")
    networks: dict[str, Network] = {}
    left_out = []
    for key, value in found.items():
        place = PLACES.get(str(key).lower())
        if place is not None and isinstance(value, (dict, Module)):
            networks[place] = of_module(value) if isinstance(value, Module) else of_state_dict(str(key), value)
        elif key != MEAN:
            left_out.append(str(key))
    mean = found.get(MEAN)
    if "ema" in networks and isinstance(mean, StoredTensor):
        networks["ema"].tensors[MEAN] = mean
    return Contents(format, networks, left_out)


def check_size(contents: Contents, size: int) -> Contents:
    """Raises UsageError for more numbers than a file of `size` bytes can have."""
    claimed = sum(tensor.nbytes for network in contents.networks.values() for tensor in network.tensors.values())
    if claimed > MOST_CLAIMED * size:
        raise UsageError(f"it claims {claimed:,} bytes of numbers, and has {size:,}")
    return contents


def of_state_dict(key: str, state: dict[Any, Any]) -> Network:
    """Raises UsageError."""
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, StoredTensor):
            raise UsageError(f"{key} has an entry that is no tensor: {name!r}")
    return Network(dict(state))


def of_module(module: Module) -> Network:
    """The parameters and buffers of a module and those inside of it, joined by dots. Raises UsageError."""
    network = Network({})
    seen: set[int] = set()

    def visit(module: Module, prefix: str, depth: int) -> None:
        if id(module) in seen or depth > MOST_DEPTH:
            raise UsageError(f"it has a module in two places, or nested too deep: {prefix}")
        seen.add(id(module))
        for kind, number in (("conv_clamp", network.clamps), ("group_size", network.groups)):
            value = module.state.get(kind)
            if type(value) in (int, float):
                number.add(value)  # type: ignore[arg-type]
        for name, tensor in [*entries(module, "_parameters", prefix), *entries(module, "_buffers", prefix)]:
            if not isinstance(tensor, StoredTensor):
                raise UsageError(f"{prefix}{name} is no tensor")
            network.tensors[f"{prefix}{name}"] = tensor
        for name, inside in entries(module, "_modules", prefix):
            if not isinstance(inside, Module):
                raise UsageError(f"{prefix}{name} is no module of StyleGAN2")
            visit(inside, f"{prefix}{name}.", depth + 1)

    visit(module, "", 0)
    return network


def entries(module: Module, kind: str, prefix: str) -> list[tuple[str, Any]]:
    """What a module has of a kind, without those that are None. Raises UsageError."""
    found = module.state.get(kind)
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UsageError(f"a module has no {kind}: {prefix or 'the network'}")
    return [(name, value) for name, value in found.items() if value is not None]
