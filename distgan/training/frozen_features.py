"""The frozen network of a term, `terms.align`: opened, checked against D, and its features of the real images."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from distgan import models
from distgan.config.keys import Config
from distgan.data.shardset import ShardSet
from distgan.errors import UsageError
from distgan.frozen.vision import NETWORKS, FrozenNetwork
from distgan.gan.augment import Pipeline
from distgan.gan.parts import Minibatch, no_features
from distgan.gan.terms import TERMS
from distgan.models import example_labels
from distgan.samples import SampleSpec
from distgan.sizes import Size

DEFAULT = "dinov2"


class FrozenFeatures:
    """What a term of D compares its features with: those of a frozen network, of the same images.

    The images are augmented by what moves pixels, with the random numbers of D's. Has no gradient.
    """

    def __init__(
        self,
        network: FrozenNetwork,
        grid: Size,
        augment: Pipeline,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        """`grid` are the rows and columns of D's tokens; the network runs in the context of `autocast`."""
        self.network = network
        self.grid = grid
        self.augment = augment
        self.autocast = autocast

    @torch.no_grad()
    def __call__(self, batch: Minibatch, p: Tensor | float) -> Tensor:
        """float32 [N, 1 + tokens, features] of the real images; `p` is the probability of augmentation."""
        images = batch.real if batch.pixels is None else batch.pixels
        if self.augment.columns:
            assert batch.u_real is not None
            images = self.augment(images, batch.u_real[:, : self.augment.columns], p, geometric=True)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        with self.autocast():
            return self.network(images, self.grid)


def check_terms(config: Config) -> None:
    """Raises UsageError for terms that lack a frozen network, or have one that they do not need."""
    with_network = [name for name in config.terms if TERMS[name].network]
    if len(with_network) > 1:
        raise UsageError(f"terms.{with_network[1]}: one term may have a network; take it or {with_network[0]}")
    for name, entry in config.term_entries.items():
        given = {"network": entry.network, "path": entry.path}
        for key, value in given.items():
            if value is not None and name not in with_network:
                raise UsageError(f"terms.{name}.{key}: {name} needs no network; leave it out")
        if name not in with_network:
            continue
        if (entry.network or DEFAULT) not in NETWORKS:
            choices = ", ".join(NETWORKS)
            raise UsageError(f"terms.{name}.network: unknown network {entry.network!r}; choose from {choices}")
        if entry.path is None:
            form = f"{{weight: 1, network: {DEFAULT}, path: FOLDER}}"
            fix = "a folder that transformers' save_pretrained wrote, or hf://facebook/dinov2-base, which is downloaded"
            raise UsageError(f"terms.{name}.path is missing: give {form}, {fix}")


def network_term(config: Config) -> str | None:
    """The name of the term that has a frozen network, after `check_terms`."""
    return next((name for name in config.terms if TERMS[name].network), None)


def reads_pixels(config: Config, spec: SampleSpec) -> bool:
    """Whether a run on latents needs the images that are kept beside them."""
    return spec.latents is not None and network_term(config) is not None


def check_images(config: Config, dataset: ShardSet) -> None:
    """Raises UsageError where a frozen network cannot see the images of the dataset."""
    name = network_term(config)
    if name is None:
        return
    shards = config.data.shards
    if reads_pixels(config, dataset.spec) and dataset.images is None:
        raise UsageError(f"terms.{name}: {shards} has no images beside its latents; encode it again with --keep_images")
    channels = dataset.spec.pixels.channels
    if channels not in (1, 3):
        raise UsageError(f"terms.{name}: the network sees grey or RGB images, and those of {shards} have {channels}")


def open_network(config: Config, device: torch.device) -> FrozenNetwork | None:
    """The frozen network of a term on the device, or None without one. Raises UsageError."""
    name = network_term(config)
    if name is None:
        return None
    entry = config.term_entries[name]
    assert entry.path is not None, "check_terms refuses it"
    return NETWORKS[entry.network or DEFAULT](entry.path, f"terms.{name}.path").to(device)


def model_options(config: Config, network: FrozenNetwork | None) -> dict[str, Any]:
    """The options of the networks, for which D returns as many features as the frozen network. Raises UsageError."""
    options = config.model.options
    if network is None or "features" not in models.option_names(config.model.name):
        return options
    given = options.get("features", network.features)
    if given != network.features:
        name = network_term(config)
        raise UsageError(
            f"model.options.features: {given!r} is not {network.features}, those of the network of terms.{name}; "
            "leave it out"
        )
    return {**options, "features": network.features}


def grid_of(D: nn.Module) -> Size:
    """Rows and columns of the tokens whose features D, without its wrapper, returns."""
    return Size(*D.grid)  # pyright: ignore[reportCallIssue, reportGeneralTypeIssues]


@torch.no_grad()
def check_features(config: Config, D: nn.Module, spec: SampleSpec, network: FrozenNetwork | None) -> None:
    """Raises UsageError unless the features that D returns can be compared with those of the network.

    Without a term of D that could take them, features have no gradient, which DDP waits for.
    """
    device = next(D.parameters()).device
    output = D(torch.zeros(2, *spec.shape, device=device), example_labels(spec, 2, device))
    if network is None:
        returned = isinstance(output, Mapping) and "features" in output
        if returned and not any(TERMS[name].of == "d" for name in config.terms):
            fix = "leave model.options.features out, or add terms.align"
            raise UsageError(f"model.options.features: D returns features, and no term compares them; {fix}")
        return
    name = network_term(config)
    if not isinstance(output, Mapping) or "features" not in output:
        raise UsageError(f"terms.{name}: D returns no features to compare; take the model gat or cat")
    if not isinstance(getattr(D, "grid", None), tuple):
        raise UsageError(f"terms.{name}: D has no attribute `grid`, the rows and columns of its tokens; give it one")
    expected = [2, 1 + grid_of(D).height * grid_of(D).width, network.features]
    if list(output["features"].shape) != expected:
        found = list(output["features"].shape)
        raise UsageError(f"terms.{name}: for 2 images D returns features {found}; they must be {expected}")


def frozen_features(
    D: nn.Module, network: FrozenNetwork | None, augment: Pipeline, autocast: Callable[[], AbstractContextManager]
) -> Callable[[Minibatch, Tensor | float], Tensor | None]:
    """`GAN.frozen_features` for D, without its wrapper, of a run with augmentations in the context of `autocast`."""
    return no_features if network is None else FrozenFeatures(network, grid_of(D), augment, autocast)


def describe_network(config: Config, network: FrozenNetwork, D: nn.Module) -> str:
    """For the first lines of a run."""
    name = network_term(config)
    assert name is not None
    entry = config.term_entries[name]
    own = network.own_grid(grid_of(D))
    patch = network.config.patch_size
    return (
        f"terms.{name}: {entry.network or DEFAULT} {network.sha256[:12]} of {entry.path}: {network.features} features "
        f"of {own} patches, of images resized to {Size(own.height * patch, own.width * patch)}"
    )
