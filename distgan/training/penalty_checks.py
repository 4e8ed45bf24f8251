"""What is refused of penalties of G and of updates for penalties alone."""

import copy
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from distgan.config.keys import Config
from distgan.errors import UsageError
from distgan.gan.g_penalties import G_PENALTIES, GPenalty, GSample
from distgan.gan.outputs import images_of
from distgan.models import example_labels
from distgan.samples import SampleSpec
from distgan.training.per_sample import check_per_sample


def check_separate(config: Config) -> None:
    """Raises UsageError for separate penalties of one network that are due at different intervals."""
    for key, entries in (("penalties", config.penalty_entries), ("g_penalties", config.g_penalty_entries)):
        intervals = {name: entry.every for name, entry in entries.items() if entry.separate}
        first, *others = intervals or [""]
        for name in others:
            if intervals[name] != intervals[first]:
                raise UsageError(
                    f"{key}.{name}.every: {intervals[name]} iterations, and {intervals[first]} of {first}, which is "
                    "separate too: lr and betas are corrected for one interval; give both the same, or leave out "
                    "separate of one"
                )


def check_names(config: Config) -> None:
    """Raises UsageError for a penalty of G that has the name of a penalty of D or of a term: both are logged."""
    for name in config.g_penalties:
        for key, names in (("penalties", config.penalties), ("terms", config.terms)):
            if name in names:
                raise UsageError(f"g_penalties.{name}: an entry of {key} has the same name; rename one of yours")


def check_g_penalties(names: Iterable[str]) -> None:
    """Compute each penalty of a linear G on three latents. Raises UsageError if it is not per-sample."""
    for name in names:
        z = torch.linspace(-1, 1, 6).view(3, 2)
        w = z.clone().requires_grad_(True)
        sample = GSample((w @ torch.ones(2, 4)).view(3, 1, 2, 2), w, z)
        compute = partial(penalized, G_PENALTIES[name], sample)
        check_per_sample(f"g_penalties: {name}", compute, "images", "penalties")


def penalized(penalty: GPenalty, sample: GSample) -> Tensor:
    """The penalties of a sample where the running mean is 0."""
    return penalty.compare(penalty.measure(sample), torch.zeros(()))


def check_penalized_g(config: Config, G: nn.Module, spec: SampleSpec) -> None:
    """Raises UsageError for a G whose images cannot be differentiated with respect to w, each by itself.

    G and torch's random number generators are not changed.
    """
    name = next(iter(config.g_penalties), None)
    if name is None:
        return
    device = next(G.parameters()).device
    z = torch.randn(2, config.model.latent, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        output = copy.deepcopy(G).train()(z, example_labels(spec, 2, device))
    if not (isinstance(output, Mapping) and "w" in output):
        raise UsageError(
            f"g_penalties.{name}: G of the model {config.model.name} returns no w, with respect to which the penalty "
            "takes a gradient; take the model stylegan2, or leave it out"
        )
    w = output["w"]
    depends = w.requires_grad and torch.autograd.grad(images_of(output).sum(), w, allow_unused=True)[0] is not None
    if not depends:
        raise UsageError(
            f"g_penalties.{name}: the images that G returns do not depend on the w that it returns; return the very "
            "tensor that its layers take"
        )
    if any(isinstance(module, _BatchNorm) for module in G.modules()):
        raise UsageError(
            f"g_penalties.{name}: G has BatchNorm, through which an image depends on the w of the others; give G "
            "another norm"
        )
