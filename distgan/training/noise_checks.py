"""What is refused of penalties that add noise to images, and of groups of images: what depends on the processes."""

import copy

import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.errors import UsageError
from distgan.gan.finite_difference import FiniteDifference
from distgan.gan.outputs import logits_of
from distgan.gan.penalties import PENALTIES
from distgan.models import example_labels
from distgan.samples import SampleSpec

SIGMAS = {"bf16": 0.1, "fp16": 0.03}
"""Where rounding leaves the penalty within 3 % of that in float32: distgan/gan/README.md has the measurement."""


def check_perturbations(config: Config) -> None:
    """Raises UsageError for options that a penalty does not take, for two noises on the same images, and for the
    default sigma in half precision."""
    perturbing = {}
    for name, entry in config.penalty_entries.items():
        images = PENALTIES[name].perturbs
        if images is None:
            check_no_options(name, sigma=entry.sigma, share=entry.share)
            continue
        if images in perturbing:
            raise UsageError(f"penalties.{name}: {perturbing[images]} adds noise to the {images} images; leave one out")
        perturbing[images] = name
        if config.precision in SIGMAS and entry.sigma is None:
            sigma = SIGMAS[config.precision]
            raise UsageError(
                f"penalties.{name}.sigma: {config.precision} rounds away much of what noise of the default "
                f"{FiniteDifference().sigma} changes; give a sigma, e.g. {{weight: 1, sigma: {sigma}}}"
            )


def check_no_options(name: str, **options: float | None) -> None:
    """Raises UsageError for an option, given for a penalty that adds no noise."""
    for key, value in options.items():
        if value is not None:
            others = ", ".join(each for each, penalty in PENALTIES.items() if penalty.perturbs)
            raise UsageError(f"penalties.{name}.{key}: {name} adds no noise to images; leave it out, or take {others}")


def check_shares(config: Config, lanes: int, world_size: int) -> None:
    """Raises UsageError for a `share` whose images would depend on the number of processes or on `micro_batch`.

    They are every k-th of the global minibatch, and of each micro-batch, if k divides the micro-batch and the lanes of
    a process.
    """
    micro_batch = config.micro_batch or config.batch // world_size
    entries = {f"penalties.{name}": entry for name, entry in config.penalty_entries.items()}
    entries |= {f"g_penalties.{name}": entry for name, entry in config.g_penalty_entries.items()}
    for name, entry in entries.items():
        key = f"{name}.share"
        if micro_batch % entry.stride:
            what = "micro_batch" if config.micro_batch else "a process"
            raise UsageError(
                f"{key}: one image of {entry.stride} is no whole number of the {micro_batch} of {what}; "
                "give another share"
            )
        if lanes // world_size % entry.stride:
            raise UsageError(
                f"{key}: one image of {entry.stride} would depend on the number of processes, each of which has "
                f"{lanes // world_size} lanes; give another share, or more data.lanes, at most {config.batch}"
            )


def check_groups(config: Config, D: nn.Module, lanes: int, world_size: int) -> None:
    """Raises UsageError for groups of `D.minibatch_group` images that the number of processes or `micro_batch` would
    change.

    They are consecutive images of the global minibatch if the group divides micro-batches and the lanes of a process.
    """
    group = getattr(D, "minibatch_group", 0)
    if group < 2:
        return
    micro_batch = config.micro_batch or config.batch // world_size
    if micro_batch % group:
        what = "micro_batch" if config.micro_batch else "a process"
        raise UsageError(
            f"model.options.group: D sees groups of {group} images, which do not divide the {micro_batch} of {what}; "
            "give another group, or 0 for none"
        )
    if lanes // world_size % group:
        raise UsageError(
            f"model.options.group: groups of {group} images would depend on the number of processes, each of which "
            f"has {lanes // world_size} lanes; give another group, or more data.lanes, at most {config.batch}"
        )


@torch.no_grad()
def check_perturbed_d(config: Config, D: nn.Module, spec: SampleSpec) -> None:
    """Raises UsageError for a D whose logits differ, in training mode, for another reason than the noise of a penalty.

    That is, if it draws random numbers, or if the logit of an image depends on the other images. Neither D nor torch's
    random number generators are changed.
    """
    name = next((name for name in config.penalties if PENALTIES[name].perturbs), None)
    if name is None:
        return
    device = next(D.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        x, y, z = torch.rand(3, 1, *spec.shape, device=device) * 2 - 1
        labels = example_labels(spec, 4, device)
        before = generator_state(device)
        batches = (torch.cat([x, other, x, other]) for other in (y, z))  # also where D sees pairs of images
        first, second = (logits_of(copy.deepcopy(D).train()(images, labels)) for images in batches)
        draws = not torch.equal(before, generator_state(device))
    tolerance = 1e-3 * float(first.abs().max())
    if draws or not torch.allclose(first[0], first[2], atol=tolerance):
        raise UsageError(
            f"penalties.{name}: D draws random numbers in training, as dropout does, so that its logits of an image "
            "differ without noise; take a penalty that adds none, e.g. r1, or a D without"
        )
    if not torch.allclose(first[0], second[0], atol=tolerance):
        raise UsageError(
            f"penalties.{name}: D's logit of an image depends on the other images, to which the penalty adds more; "
            "take a penalty that adds none, e.g. r1, or a D without"
        )


def generator_state(device: torch.device) -> Tensor:
    """The state of torch's random number generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
