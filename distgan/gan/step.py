"""The algorithm: one iteration of a GAN, D first, then G.

Algorithm 1 of Goodfellow et al. 2014, as in the DCGAN tutorial: G's update takes the same fakes, and the non-saturating
loss if the loss is BCE. With a relativistic loss it is that of R3GAN (Huang et al. 2024, arXiv 2501.05441).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distgan.gan.finite_difference import DInputs, FiniteDifference, output_and_change
from distgan.gan.losses import Loss
from distgan.gan.outputs import Output, images_of, logits_of, shown_to_d
from distgan.gan.penalties import DForward, Penalty
from distgan.gan.terms import GForward, WeightedTerm

Scalars = dict[str, Tensor]
"""Means over the minibatch by name, in the order they are computed; detached, on the device."""


def unaugmented(images: Tensor, u: Tensor | None, p: Tensor | float) -> Tensor:
    return images


def no_features(batch: "Minibatch", p: Tensor | float) -> None:
    return None


@dataclass(frozen=True)
class GAN:
    """Networks, optimizers, loss, and what the launcher adds to backward and update.

    G and D may be wrapped (for DDP); `raw_G` and `raw_D` are the networks without their wrappers.
    """

    G: nn.Module
    D: nn.Module
    raw_G: nn.Module
    raw_D: nn.Module
    g_optimizer: torch.optim.Optimizer
    d_optimizer: torch.optim.Optimizer
    loss: Loss
    augment: Callable[[Tensor, Any, Tensor | float], Tensor] = unaugmented
    """(images [N, C, H, W] or stages [N, K, C, H, W], their random numbers, probability) -> what D sees."""
    backward: Callable[[Tensor], None] = Tensor.backward
    no_sync: Callable[[nn.Module], AbstractContextManager] = lambda network: nullcontext()
    """A context in which a network's gradients accumulate without being reduced."""
    compile: Callable[[Any], Any] = lambda function: function
    """What compiles G and the two objectives: the same functions of the same arguments."""
    average_g: Callable[[], None] = lambda: None
    """Averages G's gradient over processes, if its wrapper does not."""
    average_d: Callable[[], None] = lambda: None
    """The same for D."""
    clip_g: Callable[[], Tensor | None] = lambda: None
    """Clips G's gradient before its optimizer's step; returns the norm it had, for the log."""
    clip_d: Callable[[], Tensor | None] = lambda: None
    """The same for D."""
    terms: Mapping[str, WeightedTerm] = field(default_factory=dict)
    """Added to the objectives of D and of G, by name."""
    frozen_features: Callable[["Minibatch", Tensor | float], Tensor | None] = no_features
    """(minibatch, probability of augmentation) -> what a term of D compares its features with, [N, tokens, F]."""


class Minibatch(NamedTuple):
    """N real images, and the random numbers that go with them."""

    real: Tensor
    """[N, C, H, W] in [-1, 1]"""
    z: Tensor
    """[N, z_dim], N(0, 1)"""
    labels: Tensor | None = None
    """[N], classes, or [N, label_width], numbers; of the real images"""
    fake_labels: Tensor | None = None
    """Those of the fakes; the same as `labels` if the loss is paired or a penalty interpolates"""
    u_real: Tensor | None = None
    """[N, columns] in (0, 1), uniform: augments the real images"""
    u_fake: Tensor | None = None
    """[N, columns], augments the fakes in the update of D"""
    u_g: Tensor | None = None
    """[N, columns], augments the fakes in the update of G"""
    mix: Tensor | None = None
    """[N] in (0, 1), uniform, for penalties that interpolate"""
    noise_real: Tensor | None = None
    """[N], int64 keys of the noise that penalties add to the real images"""
    noise_fake: Tensor | None = None
    """[N], of that for the fakes"""
    pixels: Tensor | None = None
    """[N, 1 or 3, H, W] in [-1, 1], the real images, where `real` are latents and a frozen network sees the images"""


class Batches(NamedTuple):
    """The minibatches of one iteration, each as equal micro-batches, usually a single one."""

    d: Sequence[Sequence[Minibatch]]
    """One for each update of D."""
    g: Sequence[Minibatch] | None = None
    """For the update of G; None: the last of `d`, with the fakes that D saw."""


class WeightedPenalty(NamedTuple):
    """A penalty that is due in this iteration."""

    penalty: Penalty
    weight: Tensor | float
    """A number, or a 0-dim tensor on the device."""
    every: int = 1
    """Iterations between two applications; the weight counts as many times."""
    difference: FiniteDifference = FiniteDifference()
    """How a penalty that perturbs images does it; one penalty may perturb the real images, one the fakes."""


Penalties = Mapping[str, WeightedPenalty]


def train_step(gan: GAN, batches: Batches, penalties: Penalties | None = None, p: Tensor | float = 1.0) -> Scalars:
    """One iteration, in place: update D on each minibatch of `batches.d`, then update G through the updated D.

    `penalties` are those that are due, by name; `p` is the probability of augmentation. Returns d_real and d_fake, the
    means of sigmoid(logits) of real and of fake images in the updates of D, d_loss, d_sign, the mean of sign(D(x))
    where the loss has a boundary, the weighted penalties and terms, g_loss, and the norms of both gradients before
    clipping, where `clip_d` and `clip_g` return them.
    """
    penalties = penalties or {}
    *first, last = batches.d
    scalars = [update_d(gan, micro_batches, fakes_for_d(gan, micro_batches), penalties, p) for micro_batches in first]
    if batches.g is None and len(last) == 1:
        # the classic recipe: one forward pass of G serves both updates
        fakes = [gan.compile(gan.G)(last[0].z, last[0].fake_labels)]
        scalars.append(update_d(gan, last, fakes, penalties, p))
        return means(scalars) | update_g(gan, last, p, fakes)
    # one graph of G in memory at a time: its update makes the fakes of each micro-batch itself
    scalars.append(update_d(gan, last, fakes_for_d(gan, last), penalties, p))
    return means(scalars) | update_g(gan, last if batches.g is None else batches.g, p)


@torch.no_grad()
def fakes_for_d(gan: GAN, micro_batches: Sequence[Minibatch]) -> list[Output]:
    """What G returns for each micro-batch, without a graph."""
    return [gan.compile(gan.G)(batch.z, batch.fake_labels) for batch in micro_batches]


def update_d(
    gan: GAN, micro_batches: Sequence[Minibatch], fakes: Sequence[Output], penalties: Penalties, p: Tensor | float = 1.0
) -> Scalars:
    """(1) Update D on real images (target 1 in BCE) and on fakes (target 0). No gradient reaches G."""
    unfreeze_d(gan)
    gan.d_optimizer.zero_grad()
    objective = gan.compile(d_objective)
    scalars = []
    for i, (batch, fake) in enumerate(zip(micro_batches, fakes, strict=True)):
        with nullcontext() if i == len(micro_batches) - 1 else gan.no_sync(gan.D):
            targets = gan.frozen_features(batch, p)
            total, reported = objective(gan, *inputs_of_d(batch, fake, penalties), penalties, p, targets)
            # one backward for loss and penalties: each gradient is reduced once
            gan.backward(total / len(micro_batches))
        scalars.append(reported)
    gan.average_d()
    norm = gan.clip_d()
    gan.d_optimizer.step()
    return means(scalars) | ({"d_grad_norm": norm} if norm is not None else {})


def unfreeze_d(gan: GAN) -> None:
    """Let D's parameters have gradients, those that its optimizer updates: others keep their values."""
    for group in gan.d_optimizer.param_groups:
        for parameter in group["params"]:
            parameter.requires_grad_(True)


def inputs_of_d(batch: Minibatch, fake: Output, penalties: Penalties) -> tuple[Minibatch, Tensor]:
    """The images for the update of D, detached from G; they require a gradient if a penalty differentiates D."""
    differentiable = any(due.penalty.differentiates for due in penalties.values())
    real, shown = (images.detach().requires_grad_(differentiable) for images in (batch.real, shown_to_d(fake)))
    return batch._replace(real=real), shown


def d_objective(
    gan: GAN, batch: Minibatch, fake: Tensor, penalties: Penalties, p: Tensor | float, targets: Tensor | None = None
) -> tuple[Tensor, Scalars]:
    """What D minimizes on a micro-batch, the loss, the weighted penalties and terms; and what the update reports."""
    forward = forward_d(gan, batch, fake, penalties, p)._replace(targets=targets)
    d_loss = gan.loss.d(forward.real_logits, forward.fake_logits).mean()
    weighted = {name: due.weight * due.penalty.compute(forward).mean() for name, due in penalties.items()}
    terms = weighted_terms(gan, "d", forward)
    total = d_loss + sum(penalties[name].every * value for name, value in weighted.items()) + sum(terms.values())
    reported = d_scalars(gan.loss, forward, d_loss) | weighted | terms
    return total, {name: value.detach().mean() for name, value in reported.items()}


def weighted_terms(gan: GAN, network: str, forward: DForward | GForward) -> dict[str, Tensor]:
    """The weighted terms of the objective of D or of G ("d" or "g"), by name; means over a micro-batch."""
    own = {name: each for name, each in gan.terms.items() if each.term.of == network}
    return {name: each.weight * each.term.compute(forward).mean() for name, each in own.items()}


def forward_d(gan: GAN, batch: Minibatch, fake: Tensor, penalties: Penalties, p: Tensor | float) -> DForward:
    """D on augmented real images and on augmented fakes, with what the penalties take of it."""

    def D(images: Tensor, labels: Tensor | None) -> Tensor:
        return logits_of(gan.D(gan.augment(images, batch.u_real, p), labels))

    def output(inputs: DInputs) -> Output:
        return gan.D(gan.augment(inputs.images, inputs.u, p), inputs.labels)

    difference = {due.penalty.perturbs: due.difference for due in penalties.values()}
    real_inputs = DInputs(batch.real, batch.labels, batch.u_real, batch.noise_real)
    fake_inputs = DInputs(fake, batch.fake_labels, batch.u_fake, batch.noise_fake)
    real_output, real_change = output_and_change(output, real_inputs, difference.get("real"))
    fake_output, fake_change = output_and_change(output, fake_inputs, difference.get("fake"))
    real_logits, fake_logits = logits_of(real_output), logits_of(fake_output)
    features = real_output.get("features") if isinstance(real_output, Mapping) else None
    changes = real_change, fake_change
    return DForward(D, batch.real, fake, real_logits, fake_logits, batch.labels, batch.mix, *changes, features)


def d_scalars(loss: Loss, forward: DForward, d_loss: Tensor) -> dict[str, Tensor]:
    """What the update of D reports, without penalties and terms."""
    reported = {"d_real": forward.real_logits.sigmoid(), "d_fake": forward.fake_logits.sigmoid(), "d_loss": d_loss}
    if loss.boundary is not None:
        reported["d_sign"] = (forward.real_logits - loss.boundary).sign()
    return reported


def update_g(
    gan: GAN, micro_batches: Sequence[Minibatch], p: Tensor | float = 1.0, fakes: Sequence[Output] | None = None
) -> Scalars:
    """(2) Update G on fakes (target 1 in BCE): on `fakes`, which have a graph of G, or on new ones of `micro_batches`.

    The gradient passes through the updated D, frozen, into G only.
    """
    gan.raw_D.requires_grad_(False)
    gan.g_optimizer.zero_grad()
    objective = gan.compile(g_objective)
    scalars = []
    for i, batch in enumerate(micro_batches):
        with nullcontext() if i == len(micro_batches) - 1 else gan.no_sync(gan.G):
            fake = fakes[i] if fakes else gan.compile(gan.G)(batch.z, batch.fake_labels)
            total, reported = objective(gan, batch, fake, p)
            gan.backward(total / len(micro_batches))
        scalars.append(reported)
    gan.average_g()
    norm = gan.clip_g()
    gan.g_optimizer.step()
    return means(scalars) | ({"g_grad_norm": norm} if norm is not None else {})


def g_objective(gan: GAN, batch: Minibatch, fake: Output, p: Tensor | float) -> tuple[Tensor, Scalars]:
    """What G minimizes on a micro-batch, and what the update reports: the loss of `fake`, which has a graph of G,
    through D as it is, and the weighted terms."""
    fake_logits = logits_of(gan.raw_D(gan.augment(shown_to_d(fake), batch.u_g, p), batch.fake_labels))
    real_logits = None
    if gan.loss.paired:
        real_logits = logits_of(gan.raw_D(gan.augment(batch.real, batch.u_real, p), batch.labels))
    g_loss = gan.loss.g(fake_logits, real_logits).mean()
    terms = weighted_terms(gan, "g", GForward(fake))
    # compiled, a value that is an alias of the total would take its graph from it
    reported = {name: value.detach().mean() for name, value in ({"g_loss": g_loss} | terms).items()}
    return sum(terms.values(), g_loss), reported


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
