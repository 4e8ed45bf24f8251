"""What is refused, with the reason: combinations that cannot work, and parts of a user's that do not do their work."""

import copy
from collections.abc import Collection, Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from distgan.config.keys import Config
from distgan.errors import UsageError
from distgan.gan.augment import AUGMENTATIONS
from distgan.gan.finite_difference import LogitChange
from distgan.gan.losses import LOSSES
from distgan.gan.penalties import PENALTIES, DForward
from distgan.samples import SampleSpec


def check_config(config: Config) -> None:
    """Raises UsageError for an unknown name, and for a combination that cannot work whatever the networks are."""
    check_name("loss", "loss", config.loss, LOSSES)
    for name in config.penalties:
        check_name("penalties", "penalty", name, PENALTIES)
    check_perturbations(config)
    for entry in config.augment_entries:
        check_name("augment", "augmentation", entry.name, AUGMENTATIONS)
    if config.penalties and config.precision == "fp16":
        raise UsageError("penalties: gradients of gradients overflow and underflow in fp16; use precision bf16 or no")
    if config.adaptive_p and LOSSES[config.loss].boundary is None:
        raise UsageError(
            f"augment_p: the sign of D(x) means nothing for the loss {config.loss}: only differences of logits count; "
            "give a probability or a schedule"
        )


def check_d(config: Config, D: nn.Module) -> None:
    """Raises UsageError for a D that does not go with the loss or the penalties."""
    batch_norm = any(isinstance(module, _BatchNorm) for module in D.modules())
    spectral_norm = any(parametrize.is_parametrized(module) for module in D.modules())
    for name in config.penalties:
        if batch_norm:
            raise UsageError(
                f"penalties.{name}: D has BatchNorm, through which the gradient of one image's logit depends on the "
                "other images; give D another norm, e.g. --model.options.d_norm group (or spectral, none)"
            )
    if not (LOSSES[config.loss].bounded or config.penalties or spectral_norm):
        raise UsageError(
            f"loss: {config.loss} is unbounded unless D is constrained; add a penalty, e.g. "
            "--penalties.wgan_gp 10, or spectral normalization, --model.options.d_norm spectral"
        )


def check_perturbations(config: Config) -> None:
    """Raises UsageError for `sigma` and `share` where no noise is added, and for two noises on the same images."""
    perturbing = {}
    for name, entry in config.penalty_entries.items():
        images = PENALTIES[name].perturbs
        for key in ("sigma", "share"):
            if images is None and getattr(entry, key) is not None:
                others = ", ".join(each for each, penalty in PENALTIES.items() if penalty.perturbs)
                raise UsageError(
                    f"penalties.{name}.{key}: {name} adds no noise to images; leave {key} out, or take one of {others}"
                )
        if images in perturbing:
            raise UsageError(
                f"penalties.{name}: {perturbing[images]} adds noise to the {images} images already; leave one out"
            )
        if images is not None:
            perturbing[images] = name


def check_shares(config: Config, lanes: int, world_size: int) -> None:
    """Raises UsageError for a `share` of which the images would depend on the number of processes and micro-batches."""
    micro_batch = config.micro_batch or config.batch // world_size
    for name, entry in config.penalty_entries.items():
        if micro_batch % entry.stride:
            raise UsageError(
                f"penalties.{name}.share: a process takes every {entry.stride}th of {micro_batch} images, which "
                f"{entry.stride} does not divide; give another share, or another batch or micro_batch"
            )
        if lanes // world_size % entry.stride:
            raise UsageError(
                f"penalties.{name}.share: {entry.stride} does not divide the {lanes // world_size} lanes of a process, "
                "so that its images would depend on the number of processes; give another share, or more data.lanes, "
                f"at most {config.batch}"
            )


def check_name(key: str, what: str, name: str, known: Collection[str]) -> None:
    """Raises UsageError unless `name` is known."""
    if name not in known:
        choices = ", ".join(known)
        raise UsageError(f"{key}: unknown {what} {name!r}; choose from {choices}, or add it by `import`")


@torch.no_grad()
def check_loss(name: str) -> None:
    """Compute the loss of three logits. Raises UsageError if it is not per-sample."""
    loss = LOSSES[name]
    logits = torch.zeros(3)
    calls = {
        "d(real, fake)": lambda: loss.d(logits, logits),
        "g(fake, real)": lambda: loss.g(logits, logits if loss.paired else None),
    }
    for call, compute in calls.items():
        try:
            value = compute()
        except Exception as error:  # a user's loss may raise anything
            message = (str(error).splitlines() or [""])[0]
            raise UsageError(f"loss: {call} of {name} raises {type(error).__name__}: {message}") from error
        if not isinstance(value, Tensor) or value.shape != (3,):
            returned = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"loss: {call} of {name} returns {returned} for 3 logits; it must return [3], per-sample losses"
            )


@torch.no_grad()
def check_perturbed_d(config: Config, D: nn.Module, spec: SampleSpec) -> None:
    """Raises UsageError for a D whose logits differ, in training mode, for another reason than the noise of a penalty.

    That is, if it draws random numbers, or if the logit of an image depends on the other images. D is not changed, nor
    is the state of torch's random number generators.
    """
    names = [name for name in config.penalties if PENALTIES[name].perturbs]
    if not names:
        return
    device = next(D.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        x, y, z = torch.rand(3, 1, *spec.shape, device=device) * 2 - 1
        labels = torch.zeros(4, dtype=torch.long, device=device) if spec.num_classes else None
        before = rng_state(device)
        first, second = (copy.deepcopy(D).train()(torch.cat([x, x, other, other]), labels).float() for other in (y, z))
        draws = not torch.equal(before, rng_state(device))
    tolerance = 1e-3 * float(first.abs().max())
    if draws or not torch.allclose(first[0], first[1], atol=tolerance):
        raise UsageError(
            f"penalties.{names[0]}: D draws random numbers in training, as dropout does: D(x) and D(x + noise) would "
            "differ for that reason too; take r1 or r2, or a D without"
        )
    if not torch.allclose(first[0], second[0], atol=tolerance):
        raise UsageError(
            f"penalties.{names[0]}: in D the logit of one image depends on the other images, which the penalty adds "
            "to; take r1 or r2, or a D without"
        )


def rng_state(device: torch.device) -> Tensor:
    """The state of torch's generator of a device."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@torch.no_grad()
def check_networks(G: nn.Module, D: nn.Module, spec: SampleSpec, *, z_dim: int) -> None:
    """Run two images through the networks. Raises UsageError if they do not do what `models.build` says."""
    device = next(G.parameters()).device
    z = torch.randn(2, z_dim, device=device)
    images = torch.rand(2, *spec.shape, device=device) * 2 - 1
    for name, network, input, expected in (("G", G, z, (2, *spec.shape)), ("D", D, images, (2,))):
        training = network.training
        network.eval()
        outputs = []
        for label in range(min(spec.num_classes, 2) or 1):
            labels = torch.full((2,), label, device=device) if spec.num_classes else None
            try:
                outputs.append(network(input, labels))
            except Exception as error:  # a user's network may raise anything
                message = (str(error).splitlines() or [""])[0]
                call = "G(z, labels)" if name == "G" else "D(images, labels)"
                raise UsageError(f"model.name: {call} raises {type(error).__name__}: {message}") from error
        output = outputs[0]
        if not isinstance(output, Tensor) or output.shape != expected:
            returned = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UsageError(f"model.name: for 2 inputs {name} returns {returned}; it must return {list(expected)}")
        if len(outputs) > 1 and torch.equal(*outputs) and ignores_labels(network, input):
            raise UsageError(f"data.labels: {name} ignores labels")
        network.train(training)


def ignores_labels(network: nn.Module, input: Tensor) -> bool:
    """Whether two labels change nothing for other weights: at initialization classes may be alike, as in BatchNorm."""
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    labels = torch.zeros(len(input), dtype=torch.long, device=input.device)
    return torch.equal(other(input, labels), other(input, labels + 1))


def check_penalties(names: Iterable[str]) -> None:
    """Compute each penalty of a quadratic D on three images. Raises UsageError if it is not per-sample."""
    for name in names:
        real, fake = (torch.full((3, 1, 2, 2), value, requires_grad=True) for value in (0.5, -0.5))
        changes = (LogitChange(quadratic(x), quadratic(x + 0.1), 0.1) for x in (real, fake))
        forward = DForward(
            quadratic, real, fake, quadratic(real), quadratic(fake), None, torch.full((3,), 0.5), *changes
        )
        try:
            value = PENALTIES[name].compute(forward)
        except Exception as error:  # a user's penalty may raise anything
            message = (str(error).splitlines() or [""])[0]
            raise UsageError(f"penalties: {name} raises {type(error).__name__}: {message}") from error
        if not isinstance(value, Tensor) or value.shape != (3,):
            returned = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise UsageError(
                f"penalties: {name} returns {returned} for 3 images; it must return [3], per-sample penalties"
            )


def quadratic(images: Tensor, labels: object = None) -> Tensor:
    return images.square().sum((1, 2, 3))
