"""The algorithm: one iteration of a GAN, D first, then G.

Algorithm 1 of Goodfellow et al. 2014, as in the DCGAN tutorial: G's update takes the same fakes, and the non-saturating
loss if the loss is BCE. With a relativistic loss it is that of R3GAN (Huang et al. 2024, arXiv 2501.05441).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn

from distgan.gan.objectives import d_objective, d_penalty_objective, g_objective, g_penalty_objective, inputs_of_d
from distgan.gan.outputs import Output, images_of
from distgan.gan.parts import GAN, Batches, GPenalties, Minibatch, Penalties, Scalars, WeightedGPenalty, WeightedPenalty

Objective = tuple[Tensor, Scalars]
"""Of a micro-batch: what is minimized, and what is reported."""
Due = TypeVar("Due", WeightedPenalty, WeightedGPenalty)


def train_step(
    gan: GAN,
    batches: Batches,
    penalties: Penalties | None = None,
    p: Tensor | float = 1.0,
    g_penalties: GPenalties | None = None,
) -> Scalars:
    """One iteration, in place: update D on each minibatch of `batches.d`, then update G through the updated D.

    `penalties` of D and `g_penalties` are those that are due, by name; `p` is the probability of augmentation. Returns
    d_real and d_fake, the means of sigmoid(logits) of real and of fake images in the updates of D, d_loss, d_sign, the
    mean of sign(D(x)) where the loss has a boundary, the weighted penalties and terms, g_loss, NAME_mean, the mean of
    what a penalty of G measures, and the norms of both gradients before clipping, where `clip_d` and `clip_g` return
    them; d_penalty_grad_norm and g_penalty_grad_norm are those of the updates for penalties alone.
    """
    penalties = penalties or {}
    g_penalties = g_penalties or {}
    *first, last = batches.d
    scalars = [update_d(gan, micro_batches, fakes_for_d(gan, micro_batches), penalties, p) for micro_batches in first]
    if batches.g is None and len(last) == 1:
        # the classic recipe: one forward pass of G serves both updates
        fakes = [gan.compile(gan.G)(last[0].z, last[0].fake_labels)]
        scalars.append(update_d(gan, last, fakes, penalties, p))
        return means(scalars) | update_g(gan, last, p, fakes, g_penalties)
    # one graph of G in memory at a time: its update makes the fakes of each micro-batch itself
    scalars.append(update_d(gan, last, fakes_for_d(gan, last), penalties, p))
    return means(scalars) | update_g(gan, last if batches.g is None else batches.g, p, penalties=g_penalties)


@torch.no_grad()
def fakes_for_d(gan: GAN, micro_batches: Sequence[Minibatch]) -> list[Output]:
    """What G returns for each micro-batch, without a graph."""
    return [gan.compile(gan.G)(batch.z, batch.fake_labels) for batch in micro_batches]


def update_d(
    gan: GAN, micro_batches: Sequence[Minibatch], fakes: Sequence[Output], penalties: Penalties, p: Tensor | float = 1.0
) -> Scalars:
    """(1) Update D on real images (target 1 in BCE) and on fakes (target 0). No gradient reaches G.

    Then once more for the penalties that are separate, if any are due.
    """
    unfreeze_d(gan)
    joint, separate = by_update(penalties)
    objective = gan.compile(d_objective)

    def total_of(i: int) -> Objective:
        targets = gan.frozen_features(micro_batches[i], p)
        return objective(gan, *inputs_of_d(micro_batches[i], fakes[i], joint), joint, p, targets)

    scalars = minimize_d(gan, total_of, len(micro_batches), "d_grad_norm")
    if not separate:
        return scalars
    penalty_objective = gan.compile(d_penalty_objective)

    def penalty_of(i: int) -> Objective:
        return penalty_objective(gan, *inputs_of_d(micro_batches[i], fakes[i], separate), separate, p)

    return scalars | minimize_d(gan, penalty_of, len(micro_batches), "d_penalty_grad_norm")


def update_g(
    gan: GAN,
    micro_batches: Sequence[Minibatch],
    p: Tensor | float = 1.0,
    fakes: Sequence[Output] | None = None,
    penalties: GPenalties | None = None,
) -> Scalars:
    """(2) Update G on fakes (target 1 in BCE): on `fakes`, which have a graph of G, or on new ones of `micro_batches`.

    The gradient passes through the updated D, frozen, into G only. Then once more for the penalties that are separate.
    """
    gan.raw_D.requires_grad_(False)
    joint, separate = by_update(penalties or {})
    objective = gan.compile(g_objective)

    def total_of(i: int) -> Objective:
        batch = micro_batches[i]
        fake = fakes[i] if fakes else gan.compile(gan.G)(batch.z, batch.fake_labels)
        return objective(gan, batch, fake, p, joint)

    scalars = minimize_g(gan, total_of, len(micro_batches), "g_grad_norm")
    if not separate:
        return scalars
    penalty_objective = gan.compile(g_penalty_objective)

    def penalty_of(i: int) -> Objective:
        return penalty_objective(gan, micro_batches[i], separate)

    return scalars | minimize_g(gan, penalty_of, len(micro_batches), "g_penalty_grad_norm")


def unfreeze_d(gan: GAN) -> None:
    """Let D's parameters have gradients, those that its optimizer updates: others keep their values."""
    for group in gan.d_optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)


def by_update(penalties: Mapping[str, Due]) -> tuple[dict[str, Due], dict[str, Due]]:
    """The penalties that are added to the loss, and those that have an update of their own."""
    joint = {name: due for name, due in penalties.items() if not due.separate}
    return joint, {name: due for name, due in penalties.items() if due.separate}


def minimize_d(gan: GAN, objective: Callable[[int], Objective], count: int, norm_name: str) -> Scalars:
    """A step of D's optimizer on the mean of the objectives of `count` micro-batches; what they report, and the norm
    of the gradient before clipping."""
    gan.d_optimizer.zero_grad()
    scalars = accumulate(gan, gan.D, objective, count)
    gan.average_d()
    norm = gan.clip_d()
    gan.d_optimizer.step()
    return scalars | ({norm_name: norm} if norm is not None else {})


def minimize_g(gan: GAN, objective: Callable[[int], Objective], count: int, norm_name: str) -> Scalars:
    """The same for G."""
    gan.g_optimizer.zero_grad()
    scalars = accumulate(gan, gan.G, objective, count)
    gan.average_g()
    norm = gan.clip_g()
    gan.g_optimizer.step()
    return scalars | ({norm_name: norm} if norm is not None else {})


def accumulate(gan: GAN, network: nn.Module, objective: Callable[[int], Objective], count: int) -> Scalars:
    """Accumulate the gradient of the mean of the objectives of `count` micro-batches; means of what they report.

    One backward for all of an objective: each gradient of the wrapped `network` is reduced once, with the last.
    """
    scalars = []
    for i in range(count):
        with nullcontext() if i == count - 1 else gan.no_sync(network):
            total, reported = objective(i)
            gan.backward(total / count)
        scalars.append(reported)
    return means(scalars)


def means(scalars: Sequence[Scalars]) -> Scalars:
    """Each value's mean over micro-batches, or over updates."""
    if len(scalars) == 1:
        return dict(scalars[0])
    return {name: torch.stack([each[name] for each in scalars]).mean() for name in scalars[0]}


@torch.no_grad()
def generate(G: nn.Module, z: Tensor, labels: Tensor | None, batch: int = 64) -> Tensor:
    """The images [N, C, H, W] of G in eval mode, `batch` at a time, on the CPU; G's mode is restored."""
    training = G.training
    G.eval()
    starts = range(0, len(z), batch)
    outputs = (G(z[i : i + batch], labels[i : i + batch] if labels is not None else None) for i in starts)
    images = [images_of(output).cpu() for output in outputs]
    G.train(training)
    return torch.cat(images)
