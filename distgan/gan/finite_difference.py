"""The change of D's logits when noise is added to the images, for penalties without a second derivative."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from distgan.gan.outputs import Output, logits_of
from distgan.noise import normal_noise

Returned = TypeVar("Returned", bound=Output)


class FiniteDifference(NamedTuple):
    """How images are perturbed: x + sigma e with e ~ N(0, I)."""

    sigma: float = 0.01
    """In units of images in [-1, 1]; that of Lin et al. 2025 (arXiv 2501.08316)."""
    stride: int = 1
    """Every so many images, one is perturbed: a share of 1 / stride."""


class LogitChange(NamedTuple):
    """D at M images and at the same images with noise added, computed in one pass."""

    logits: Tensor
    """[M] or [M, K], D(x)"""
    perturbed_logits: Tensor
    """The same, D(x + sigma e)"""
    sigma: float


class DInputs(NamedTuple):
    """Images for D, and what goes with them."""

    images: Tensor
    """[N, C, H, W], or the stages [N, K, C, H, W] of fakes, before augmentation"""
    labels: Tensor | None
    """[N] or [N, label_width]"""
    u: Tensor | None
    """[N, K] in (0, 1): augments them"""
    noise: Tensor | None
    """[N], int64 keys of the noise that a penalty adds to them"""


def output_and_change(
    D: Callable[[DInputs], Returned], inputs: DInputs, difference: FiniteDifference | None
) -> tuple[Returned, LogitChange | None]:
    """What D returns for N images, and the change of its logits where noise is added to them, before augmentation.

    The perturbed images have the labels and the random numbers of augmentation of the images they come from, and go
    through D in the same pass. Two passes would be two functions wherever a pass changes D, as in spectral
    normalization; a second pass over both would cost half as much again.
    """
    if difference is None:
        return D(inputs), None
    sigma, stride = difference
    assert inputs.noise is not None, "a penalty perturbs the images: each needs a key"

    def repeat_chosen(column: Tensor | None) -> Tensor | None:
        return None if column is None else torch.cat([column, column[::stride]])

    perturbed = perturb(inputs.images[::stride].detach(), inputs.noise[::stride], sigma)
    images = torch.cat([inputs.images, perturbed])
    output = D(DInputs(images, repeat_chosen(inputs.labels), repeat_chosen(inputs.u), None))
    logits = logits_of(output)
    n = len(inputs.images)
    return first_rows(output, n), LogitChange(logits[:n:stride], logits[n:], sigma)


def first_rows(output: Any, count: int) -> Any:
    """What D returned for the first `count` images."""
    if isinstance(output, Mapping):
        return {name: value[:count] for name, value in output.items()}
    return output[:count]


def perturb(images: Tensor, keys: Tensor, sigma: float) -> Tensor:
    """Images with noise of standard deviation `sigma`, in float32 or better: half precision would round it away."""
    dtype = torch.promote_types(images.dtype, torch.float32)
    return torch.add(images.to(dtype), normal_noise(keys, images.shape[1:]).to(dtype), alpha=sigma)


def squared_slope(change: LogitChange | None) -> Tensor:
    """((D(x + sigma e) - D(x)) / sigma)^2 [M], float32 or better; its mean over e is |grad D(x)|^2 + O(sigma^2).

    Of several logits of an image, it is the slope of their sum.
    """
    assert change is not None, "the penalty perturbs these images"
    dtype = torch.promote_types(change.logits.dtype, torch.float32)
    difference = change.perturbed_logits.to(dtype) - change.logits.to(dtype)
    return (difference.flatten(1).sum(1) if difference.ndim > 1 else difference).div(change.sigma).square()
