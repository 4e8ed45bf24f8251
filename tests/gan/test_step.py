"""The training step: what it updates, in which direction, and that micro-batches add up to the minibatch."""

import copy

import pytest
import torch
import torch.nn.functional as F

from distgan import models
from distgan.gan.losses import LOSSES, Loss
from distgan.gan.step import GAN, Batches, Minibatch, discriminator_step, generator_step, train_step

PAIRED = LOSSES["rpgan"]  # G's loss sees real logits


def make(loss: Loss = LOSSES["bce"], norm: str = "batch", classes: int = 0, lr: float = 2e-4) -> GAN:
    options = {"width": 4, "norm": norm}
    G, D = models.build("dcgan", size=16, channels=3, num_classes=classes, z_dim=8, options=options, seed=0)
    adam = (torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999)) for network in (G, D))
    return GAN(G=G, D=D, raw_D=D, g_optimizer=next(adam), d_optimizer=next(adam), loss=loss)


def minibatch(n: int = 8, classes: int = 0) -> Minibatch:
    torch.manual_seed(1)
    labels = torch.arange(n) % classes if classes else None
    return Minibatch(torch.rand(n, 3, 16, 16) * 2 - 1, torch.randn(n, 8), labels, labels)


def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(dict(network.named_parameters()))


def grad(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def equal(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(before[name], after[name]) for name in before)


def test_step_equals_the_textbook_loop():
    """Against the loop of the DCGAN tutorial: two backwards for D, D not frozen in the G update."""
    ours, textbook, batch = make(), make(), minibatch()
    for _ in range(3):
        train_step(ours, Batches([[batch]]))
        textbook.d_optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(textbook.D(batch.real), torch.ones(8)).backward()
        fake = textbook.G(batch.z)
        F.binary_cross_entropy_with_logits(textbook.D(fake.detach()), torch.zeros(8)).backward()
        textbook.d_optimizer.step()
        textbook.g_optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(textbook.D(fake), torch.ones(8)).backward()
        textbook.g_optimizer.step()
    for network, reference in ((ours.G, textbook.G), (ours.D, textbook.D)):
        for a, b in zip(network.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_scalars():
    """d_loss is the sum of D's two errors, d_real and d_fake the means of sigmoid(logits) before the update of D."""
    gan, batch = make(), minibatch()
    real, fake = (copy.deepcopy(gan.D)(images) for images in (batch.real, copy.deepcopy(gan.G)(batch.z)))
    scalars = train_step(gan, Batches([[batch]]))
    torch.testing.assert_close(scalars["d_real"], real.sigmoid().mean().detach())
    torch.testing.assert_close(scalars["d_fake"], fake.sigmoid().mean().detach(), rtol=1e-3, atol=1e-4)
    errors = F.binary_cross_entropy_with_logits(real, torch.ones(8)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros(8)
    )
    torch.testing.assert_close(scalars["d_loss"], errors.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_each_update_changes_one_network_only(loss):
    gan, batch = make(loss), minibatch()
    G, D = state(gan.G), state(gan.D)
    fakes = [gan.G(batch.z)]
    discriminator_step(gan, [batch], fakes, {})
    assert equal(G, state(gan.G)) and not equal(D, state(gan.D))
    assert all(p.grad is None for p in gan.G.parameters())
    D = state(gan.D)
    gradients = {name: grad(p).clone() for name, p in gan.D.named_parameters()}
    generator_step(gan, [batch], fakes)
    assert equal(D, state(gan.D)) and not equal(G, state(gan.G))
    assert all(torch.equal(gradients[name], grad(p)) for name, p in gan.D.named_parameters())


def raises_logits(loss: Loss) -> tuple[bool, bool]:
    """Whether updates of D move real logits above fake ones, and an update of G raises the logits of its fakes."""
    gan, batch = make(loss, norm="none", lr=1e-3), minibatch()
    for _ in range(20):
        discriminator_step(gan, [batch], [gan.G(batch.z).detach()], {})
    with torch.no_grad():
        fake_before = gan.D(gan.G(batch.z)).mean()
        d_rises = bool(gan.D(batch.real).mean() > fake_before)
    generator_step(gan, [batch], None)
    with torch.no_grad():
        return d_rises, bool(gan.D(gan.G(batch.z)).mean() > fake_before)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_targets_have_the_right_sign(loss):
    assert raises_logits(loss) == (True, True)


def test_swapped_targets_are_detected():
    bce = LOSSES["bce"]
    swapped = Loss(d=lambda real, fake: bce.d(fake, real), g=lambda fake, real: bce.g(-fake, real))
    assert raises_logits(swapped) == (False, False)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("classes", [0, 3])
def test_micro_batches_add_up_to_the_minibatch(loss, classes):
    """Gradient accumulation: two and four micro-batches give the update of the minibatch (no BatchNorm)."""
    batch, results = minibatch(classes=classes), []
    for count in (1, 2, 4):
        gan = make(loss, norm="group", classes=classes)
        columns = [c.chunk(count) if c is not None else [None] * count for c in batch]
        scalars = train_step(gan, Batches([[Minibatch(*rows) for rows in zip(*columns, strict=True)]]))
        results.append((scalars, state(gan.G), state(gan.D)))
    for scalars, G, D in results[1:]:
        for name, value in results[0][0].items():
            torch.testing.assert_close(scalars[name], value, rtol=1e-5, atol=1e-6)
        for accumulated, single in ((G, results[0][1]), (D, results[0][2])):
            for name in single:
                torch.testing.assert_close(accumulated[name], single[name], rtol=1e-3, atol=2e-5)


def test_label_weights_are_trained():
    gan, batch = make(classes=3), minibatch(classes=3)
    before = state(gan.G), state(gan.D)
    train_step(gan, Batches([[batch]]))
    of_labels = [weights["layers.0.weight"][-3:] for weights in (before[0], state(gan.G))]
    assert not torch.equal(*of_labels)
    assert not torch.equal(before[1]["embed.weight"], gan.D.get_parameter("embed.weight"))


def test_a_paired_loss_sees_the_real_logits_of_the_same_row():
    """G's gradient is that of the loss written out, and none reaches D."""
    gan, batch = make(PAIRED, norm="none"), minibatch()
    reference = copy.deepcopy(gan)
    generator_step(gan, [batch], None)
    loss = F.softplus(reference.D(batch.real) - reference.D(reference.G(batch.z))).mean()
    expected = torch.autograd.grad(loss, list(reference.G.parameters()))
    for parameter, gradient in zip(gan.G.parameters(), expected, strict=True):
        torch.testing.assert_close(grad(parameter), gradient)
    assert all(parameter.grad is None for parameter in gan.D.parameters())


def test_the_order_of_the_scalars():
    """The check for NaN and Inf takes the first non-finite one for the cause."""
    assert list(train_step(make(), Batches([[minibatch()]]))) == ["d_real", "d_fake", "d_loss", "d_sign", "g_loss"]
