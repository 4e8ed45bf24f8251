"""The key `freeze_d`: the first layers of D keep the weights that they have from `init_from`."""

from torch import nn

from distgan.config.keys import Config
from distgan.errors import UsageError


def check_freeze(config: Config) -> None:
    """Raises UsageError for layers that would keep the random weights of their initialization."""
    if config.freeze_d and config.init_from is None:
        raise UsageError("freeze_d: without init_from the first layers of D would stay random; give it, or set it to 0")


def freeze_layers(D: nn.Module, count: int) -> None:
    """Freeze the first `count` of `D.layers_from_image` (FreezeD, Mo et al. 2020, arXiv 2002.10964), in place.

    What is frozen are parameters. Buffers go on: the vectors of spectral normalization, which do not move far from
    weights that stay; BatchNorm's running statistics, which D, always in training mode, does not use.

    Before DDP and the optimizer are made, which leave out what is frozen. Raises UsageError for a D without the
    attribute, with fewer layers, or of which nothing would be left to train.
    """
    if not count:
        return
    layers = getattr(D, "layers_from_image", None)
    if layers is None:
        raise UsageError(
            "freeze_d: D has no attribute `layers_from_image`, the list of its layers from the image on; give it one, "
            "or set freeze_d to 0"
        )
    if count > len(layers):
        raise UsageError(f"freeze_d: {count} is more than the {len(layers)} layers that D has; give at most as many")
    for layer in layers[:count]:
        layer.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in D.parameters()):
        raise UsageError(f"freeze_d: {count} layers are all that D has; leave some of them to train")
