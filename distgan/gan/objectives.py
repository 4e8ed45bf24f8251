"""What D and G minimize on a micro-batch, and what their updates report: functions that may be compiled."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from distgan.gan.finite_difference import DInputs, first_rows, output_and_change
from distgan.gan.g_penalties import GSample
from distgan.gan.losses import Loss
from distgan.gan.outputs import Output, images_of, logits_of, shown_to_d
from distgan.gan.parts import (
    GAN,
    GPenalties,
    Minibatch,
    Penalties,
    Scalars,
    WeightedGPenalty,
)
from distgan.gan.penalties import DForward
from distgan.gan.terms import GForward


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
    weighted = weighted_penalties(penalties, forward)
    terms = weighted_terms(gan, "d", forward)
    total = d_loss + lazy_sum(penalties, weighted) + sum(terms.values())
    return total, detached(d_scalars(gan.loss, forward, d_loss) | weighted | terms)


def d_penalty_objective(
    gan: GAN, batch: Minibatch, fake: Tensor, penalties: Penalties, p: Tensor | float
) -> tuple[Tensor, Scalars]:
    """What D minimizes in an update for penalties alone, and what it reports. Fakes that none looks at are left out."""
    seen = fake if any(due.penalty.sees_fakes for due in penalties.values()) else fake[:0]
    forward = forward_d(gan, batch, seen, penalties, p)
    weighted = weighted_penalties(penalties, forward)
    outputs = [forward.real_logits, forward.fake_logits, *([] if forward.features is None else [forward.features])]
    return lazy_sum(penalties, weighted) + zero_of(outputs), detached(weighted)


def g_objective(
    gan: GAN, batch: Minibatch, fake: Output, p: Tensor | float, penalties: GPenalties
) -> tuple[Tensor, Scalars]:
    """What G minimizes on a micro-batch, and what the update reports: the loss of `fake`, which has a graph of G,
    through D as it is, the weighted terms and penalties."""
    fake_logits = logits_of(gan.raw_D(gan.augment(shown_to_d(fake), batch.u_g, p), batch.fake_labels))
    real_logits = None
    if gan.loss.paired:
        real_logits = logits_of(gan.raw_D(gan.augment(batch.real, batch.u_real, p), batch.labels))
    g_loss = gan.loss.g(fake_logits, real_logits).mean()
    terms = weighted_terms(gan, "g", GForward(fake))
    weighted, measured, _ = weighted_g_penalties(gan, batch, penalties)
    total = sum(terms.values(), g_loss) + lazy_sum(penalties, weighted)
    return total, detached({"g_loss": g_loss} | terms | weighted | measured)


def g_penalty_objective(gan: GAN, batch: Minibatch, penalties: GPenalties) -> tuple[Tensor, Scalars]:
    """What G minimizes in an update for penalties alone, and what it reports."""
    weighted, measured, outputs = weighted_g_penalties(gan, batch, penalties)
    return lazy_sum(penalties, weighted) + zero_of(outputs), detached(weighted | measured)


def weighted_penalties(penalties: Penalties, forward: DForward) -> dict[str, Tensor]:
    """The weighted penalties of D, by name; means over a micro-batch."""
    return {name: due.weight * due.penalty.compute(forward).mean() for name, due in penalties.items()}


def weighted_g_penalties(
    gan: GAN, batch: Minibatch, penalties: GPenalties
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """By name the weighted penalties of G; by NAME_mean the means of what they measure; and what G showed for each."""
    weighted: dict[str, Tensor] = {}
    means: dict[str, Tensor] = {}
    shown: list[Tensor] = []
    for name, due in penalties.items():
        measured, output = measure(gan, batch, due)
        weighted[name] = due.weight * due.penalty.compare(measured, due.mean).mean()
        means[f"{name}_mean"] = measured.mean()
        shown.append(shown_to_d(output))
    return weighted, means, shown


def measure(gan: GAN, batch: Minibatch, due: WeightedGPenalty) -> tuple[Tensor, Output]:
    """What a penalty measures of new images of its share of the latents, and what G returned for these."""
    z = batch.z[:: due.stride]
    output = gan.G(z, None if batch.fake_labels is None else batch.fake_labels[:: due.stride])
    assert isinstance(output, Mapping) and "w" in output, "the penalty differentiates with respect to w"
    return due.penalty.measure(GSample(images_of(output), output["w"], z)), output


def lazy_sum(penalties: Penalties | GPenalties, weighted: Mapping[str, Tensor]) -> Tensor | int:
    """The sum of weighted penalties, each as often as it is left out otherwise."""
    return sum(penalties[name].every * value for name, value in weighted.items())


def zero_of(outputs: Sequence[Tensor]) -> Tensor:
    """0, with a gradient in every parameter that the outputs depend on: a last bias would have none of a penalty's, and
    DDP would not average what it does not wait for."""
    return sum((output.sum() for output in outputs[1:]), outputs[0].sum()) * 0


def detached(values: Mapping[str, Tensor]) -> Scalars:
    """Means without a graph; compiled, a value that is an alias of the total would take its graph from it."""
    return {name: value.detach().mean() for name, value in values.items()}


def weighted_terms(gan: GAN, network: str, forward: DForward | GForward) -> dict[str, Tensor]:
    """The weighted terms of the objective of D or of G ("d" or "g"), by name; means over a micro-batch."""
    own = {name: each for name, each in gan.terms.items() if each.term.of == network}
    return {name: each.weight * each.term.compute(forward).mean() for name, each in own.items()}


def forward_d(gan: GAN, batch: Minibatch, fake: Tensor, penalties: Penalties, p: Tensor | float) -> DForward:
    """D on augmented real images and on augmented fakes, if there are any, with what the penalties take of it."""

    def D(images: Tensor, labels: Tensor | None) -> Tensor:
        return logits_of(gan.D(gan.augment(images, batch.u_real, p), labels))

    def output(inputs: DInputs) -> Output:
        return gan.D(gan.augment(inputs.images, inputs.u, p), inputs.labels)

    difference = {due.penalty.perturbs: due.difference for due in penalties.values()}
    real_inputs = DInputs(batch.real, batch.labels, batch.u_real, batch.noise_real)
    fake_inputs = DInputs(fake, batch.fake_labels, batch.u_fake, batch.noise_fake)
    real_output, real_change = output_and_change(output, real_inputs, difference.get("real"))
    fake_output, fake_change = first_rows(real_output, 0), None
    if len(fake):
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
