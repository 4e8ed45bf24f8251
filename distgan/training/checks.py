"""What is refused, with the reason: combinations that cannot work, and parts of a user's that do not do their work."""

import copy
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from distgan.config.keys import Config
from distgan.errors import UsageError
from distgan.gan.augment import AUGMENTATIONS
from distgan.gan.finite_difference import LogitChange
from distgan.gan.g_penalties import G_PENALTIES
from distgan.gan.losses import LOSSES
from distgan.gan.outputs import images_of, logits_of, shown_to_d
from distgan.gan.penalties import PENALTIES, DForward
from distgan.gan.power_ema import WIDEST
from distgan.gan.terms import TERMS
from distgan.models import example_labels
from distgan.models.layers import has_torch_spectral_norm
from distgan.samples import SampleSpec
from distgan.training.noise_checks import check_perturbations
from distgan.training.penalty_checks import check_names, check_separate
from distgan.training.per_sample import check_per_sample


def check_config(config: Config) -> None:
    """Raises UsageError for an unknown name, and for a combination that cannot work whatever the networks are."""
    check_name("loss", "loss", config.loss, LOSSES)
    for name in config.penalties:
        check_name("penalties", "penalty", name, PENALTIES)
    for name in config.terms:
        check_name("terms", "term", name, TERMS)
        if name in config.penalties:
            raise UsageError(f"terms.{name}: a penalty has the same name; rename one of yours")
    if config.g_minibatch == "next" and not LOSSES[config.loss].paired:
        raise UsageError(f"g_minibatch: the loss {config.loss} is not paired; set it to same, or take the loss rpgan")
    for name in config.g_penalties:
        check_name("g_penalties", "penalty of G", name, G_PENALTIES)
    check_names(config)
    check_power_widths(config.ema.power_widths)
    check_separate(config)
    check_perturbations(config)
    for entry in config.augment_entries:
        check_name("augment", "augmentation", entry.name, AUGMENTATIONS)
    differentiating = [name for name in config.penalties if PENALTIES[name].differentiates]
    for key, names in (("penalties", differentiating), ("g_penalties", config.g_penalties)):
        if config.precision == "fp16" and names:
            raise UsageError(f"{key}: gradients of gradients overflow and underflow in fp16; use precision bf16 or no")
    if config.adaptive_p and LOSSES[config.loss].boundary is None:
        raise UsageError(
            f"augment_p: the sign of D(x) means nothing for the loss {config.loss}: only differences of logits count; "
            "give a probability or a schedule"
        )


def check_power_widths(widths: Sequence[float]) -> None:
    """Raises UsageError for a width that no power function has, and for one that is there twice."""
    for width in widths:
        if width >= WIDEST:
            raise UsageError(
                f"ema.power_widths: {width:g} is too wide: the mean of all weights so far has the width {WIDEST:.4f}; "
                "give smaller ones, e.g. [0.05, 0.1]"
            )
    if len(set(widths)) < len(widths):
        raise UsageError(f"ema.power_widths: {list(widths)} has a width twice; give each once")


def check_graph(config: Config, device: torch.device) -> None:
    """Raises UsageError where an iteration cannot be captured as a CUDA graph."""
    if not config.graph:
        return
    if device.type != "cuda":
        raise UsageError(f"graph: CUDA graphs need a CUDA GPU, and this run is on {device.type}; set graph to false")
    for key, keys in (("g_optimizer", config.g_optimizer), ("d_optimizer", config.d_optimizer)):
        if config.precision == "fp16" and isinstance(keys.betas[1], dict):
            raise UsageError(
                f"graph: with fp16 the host decides whether {key} skips a step, unless {key}.betas are two numbers; "
                "use precision bf16, or set graph to false"
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


def check_compile(G: nn.Module, D: nn.Module) -> None:
    """Raises UsageError for a network that torch.compile differentiates wrongly."""
    for name, network in (("G", G), ("D", D)):
        if has_torch_spectral_norm(network):
            raise UsageError(
                f"compile: {name} uses torch's spectral norm, whose gradients torch.compile gets wrong; "
                "use distgan.models.layers.spectral_norm"
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
        check_per_sample(f"loss: {call} of {name}", compute, "logits", "losses")


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
        for variant in range(2 if spec.conditional else 1):
            try:
                outputs.append(network(input, example_labels(spec, 2, device, variant)))
            except Exception as error:  # a user's network may raise anything
                message = (str(error).splitlines() or [""])[0]
                call = "G(z, labels)" if name == "G" else "D(images, labels)"
                raise UsageError(f"model.name: {call} raises {type(error).__name__}: {message}") from error
        of = images_of if name == "G" else logits_of
        check_output(name, outputs[0], of, expected)
        first, second = of(outputs[0]), of(outputs[-1])
        if len(outputs) > 1 and torch.equal(first, second) and ignores_labels(network, input, spec, of):
            raise UsageError(f"data.labels: {name} ignores labels")
        network.train(training)


def check_output(name: str, output: object, of: Callable[[object], object], expected: tuple[int, ...]) -> None:
    """Raises UsageError unless what `of` takes of the output of G or D has the expected shape; logits may be [N, K]."""
    try:
        main = of(output)
    except (KeyError, TypeError):
        main = output
    shape = tuple(main.shape) if isinstance(main, Tensor) else None
    if shape != expected and not (name == "D" and shape is not None and len(shape) == 2 and shape[0] == expected[0]):
        returned = type(main).__name__ if shape is None else list(shape)
        raise UsageError(f"model.name: for 2 inputs {name} returns {returned}; it must return {list(expected)}")


@torch.no_grad()
def check_stages(config: Config, G: nn.Module, D: nn.Module, spec: SampleSpec) -> None:
    """Raises UsageError where D cannot take what G shows it, or a term lacks what it compares."""
    device = next(G.parameters()).device
    labels = example_labels(spec, 2, device)
    output = G(torch.zeros(2, config.model.latent, device=device), labels)
    shown = shown_to_d(output)
    stages = shown.shape[1] if shown.ndim == 5 else 1
    levels = len(getattr(D, "noise_levels", ()))
    if levels and stages not in (1, levels):
        raise UsageError(f"model.options: G has {stages} stages, and D has {levels} noise levels; give as many")
    try:
        D(shown, labels)
    except Exception as error:  # a user's network may raise anything
        message = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"model.name: D of G's output {list(shown.shape)} raises {type(error).__name__}: {message}"
        ) from error
    for name in config.terms:
        if TERMS[name].stages and stages < 2:
            raise UsageError(f"terms.{name}: G has no stages to compare; take the model cat or gat")


def check_widths(config: Config, G: nn.Module, D: nn.Module) -> None:
    """Raises UsageError for a learning rate by width of a network that has none."""
    for key, network, keys in (("g_optimizer", G, config.g_optimizer), ("d_optimizer", D, config.d_optimizer)):
        if keys.base_width and not getattr(network, "width", 0):
            raise UsageError(f"{key}.base_width: the network {config.model.name} has no width; leave it out")


def ignores_labels(
    network: nn.Module, input: Tensor, spec: SampleSpec, of: Callable[[object], Tensor] = logits_of
) -> bool:
    """Whether two labels change nothing for other weights: at initialization classes may be alike, as in BatchNorm."""
    other = copy.deepcopy(network)
    for parameter in other.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    first, second = (of(other(input, example_labels(spec, len(input), input.device, variant))) for variant in (0, 1))
    return torch.equal(first, second)


def check_penalties(names: Iterable[str]) -> None:
    """Compute each penalty of a quadratic D on three images. Raises UsageError if it is not per-sample."""
    for name in names:
        real, fake = (torch.full((3, 1, 2, 2), value, requires_grad=True) for value in (0.5, -0.5))
        changes = [LogitChange(quadratic(x), quadratic(x + 0.1), 0.1) for x in (real, fake)]
        forward = DForward(
            quadratic, real, fake, quadratic(real), quadratic(fake), None, torch.full((3,), 0.5), changes[0], changes[1]
        )
        check_per_sample(f"penalties: {name}", partial(PENALTIES[name].compute, forward), "images", "penalties")


def quadratic(images: Tensor, labels: object = None) -> Tensor:
    return images.square().sum((1, 2, 3))
