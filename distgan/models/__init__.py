"""The networks by name: `build` makes G and D for the images of a dataset, initialized from the seed alone."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.models import cat, dcgan, gat, mlp, r3gan, sngan, stylegan2
from distgan.rng import derive_seed
from distgan.samples import SampleSpec

Builder = Callable[..., tuple[nn.Module, nn.Module]]
"""(SampleSpec, z_dim=..., options) -> G, D"""


def build(name: str, spec: SampleSpec, *, z_dim: int, options: dict, seed: int) -> tuple[nn.Module, nn.Module]:
    """The networks of an architecture for samples of `spec`, initialized from `seed` alone, on the default device.

    G maps z [N, z_dim] and labels to images [N, *spec.shape], nominally in [-1, 1]; D maps images and labels to logits
    [N]. Either may return several outputs by name (`distgan.gan.outputs`). Labels are None if unconditional, int64 [N]
    if there are classes alone, else float32 [N, spec.label_width]. `options` are keyword arguments of the architecture.
    Raises UsageError for an unknown name or option, and if the architecture does not support the size.
    """
    if name not in MODELS:
        choices = ", ".join(MODELS)
        raise UsageError(f"model.name: unknown model {name!r}; choose from {choices}, or add it by `import`")
    known = option_names(name)
    for key in options:
        if key not in known:
            choices = f"choose from {', '.join(known)}, or drop the options of a config with --model.options {{}}"
            raise UsageError(f"model.options.{key}: unknown option of {name}; {choices}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "weights"))
        try:
            networks = MODELS[name](spec, z_dim=z_dim, **options)
        except TypeError as error:
            call = "it is called as build(spec, z_dim=..., **options)"
            raise UsageError(f"model.name: the builder of {name} raises TypeError: {error}; {call}") from error
    if not (isinstance(networks, tuple) and [isinstance(network, nn.Module) for network in networks] == [True, True]):
        raise UsageError(f"model.name: the builder of {name} must return G and D, two modules")
    return networks


def option_names(name: str) -> list[str]:
    """The options of an architecture; none of an unknown one."""
    parameters = inspect.signature(MODELS[name]).parameters.values() if name in MODELS else ()
    return [parameter.name for parameter in parameters if parameter.default is not parameter.empty]


def example_labels(spec: SampleSpec, count: int, device: torch.device, variant: int = 0) -> Tensor | None:
    """Labels [count, ...] that networks for `spec` take, all alike; None if they take none."""
    if not spec.conditional:
        return None
    if not spec.conditions:
        return torch.full((count,), variant % spec.num_classes, device=device)
    labels = torch.full((count, spec.label_width), float(variant), device=device)
    if spec.num_classes:
        labels[:, : spec.num_classes] = 0
        labels[:, variant % spec.num_classes] = 1
    return labels


def count_parameters(network: nn.Module) -> int:
    """Numbers in the parameters of a network; buffers do not count."""
    return sum(parameter.numel() for parameter in network.parameters())


MODELS: dict[str, Builder] = {
    "cat": cat.build,
    "dcgan": dcgan.build,
    "gat": gat.build,
    "mlp": mlp.build,
    "r3gan": r3gan.build,
    "sngan": sngan.build,
    "stylegan2": stylegan2.build,
}
