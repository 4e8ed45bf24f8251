"""Combinations of losses, penalties, networks and augmentations that are refused, with the reason."""

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from distgan import UsageError
from distgan.config import Config
from distgan.gan.augment import AUGMENTATIONS
from distgan.gan.losses import LOSSES
from distgan.gan.penalties import PENALTIES


def check_config(config: Config) -> None:
    """Raises UsageError for an unknown name, and for a combination that cannot work whatever the networks are."""
    check_name("loss", "loss", config.loss, LOSSES)
    for name in config.penalties:
        check_name("penalties", "penalty", name, PENALTIES)
    for entry in config.augment:
        check_name("augment", "augmentation", entry if isinstance(entry, str) else next(iter(entry)), AUGMENTATIONS)
    if config.penalties and config.precision == "fp16":
        raise UsageError("penalties: gradients of gradients overflow and underflow in fp16; use precision bf16 or no")
    if is_adaptive(config) and LOSSES[config.loss].boundary is None:
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


def is_adaptive(config: Config) -> bool:
    """Whether the probability of augmentation follows sign(D(x))."""
    return isinstance(config.augment_p, dict) and "target" in config.augment_p


def check_name(key: str, what: str, name: str, known: Collection[str]) -> None:
    """Raises UsageError unless `name` is known."""
    if name not in known:
        choices = ", ".join(known)
        raise UsageError(f"{key}: unknown {what} {name!r}; choose from {choices}, or add it by `import`")
