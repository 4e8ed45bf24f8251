"""The iteration: what it updates, in which direction, and that its parts add up."""

import copy

import pytest
import torch
import torch.nn.functional as F

from distgan import models
from distgan.gan.losses import LOSSES, Loss
from distgan.gan.step import GAN, Minibatch, discriminator_step, generator_step, train_step


def make(loss: Loss = LOSSES["bce"], norm: str = "batch", classes: int = 0, lr: float = 2e-4) -> GAN:
    options = {"width": 4, "norm": norm}
    G, D = models.build("dcgan", size=16, channels=3, classes=classes, latent=8, options=options, seed=0)
    adam = (torch.optim.Adam(network.parameters(), lr=lr, betas=(0.5, 0.999)) for network in (G, D))
    return GAN(G=G, D=D, critic=D, g_optimizer=next(adam), d_optimizer=next(adam), loss=loss)


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


def test_an_iteration_is_the_textbooks():
    """Against the loop of the DCGAN tutorial, written out: two backwards for D, D open while G is updated."""
    ours, textbook, batch = make(), make(), minibatch()
    for _ in range(3):
        train_step(ours, [batch])
        textbook.d_optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(textbook.D(batch.real), torch.ones(8)).backward()
        fake = textbook.G(batch.z)
        F.binary_cross_entropy_with_logits(textbook.D(fake.detach()), torch.zeros(8)).backward()
        textbook.d_optimizer.step()
        textbook.g_optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(textbook.D(fake), torch.ones(8)).backward()
        textbook.g_optimizer.step()
    for mine, theirs in ((ours.G, textbook.G), (ours.D, textbook.D)):
        for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_what_is_logged():
    """d_loss is the sum of D's two errors, d_real and d_fake the means of sigmoid(logits) before the update."""
    gan, batch = make(), minibatch()
    real, fake = (copy.deepcopy(gan.D)(images) for images in (batch.real, copy.deepcopy(gan.G)(batch.z)))
    scalars = train_step(gan, [batch])
    torch.testing.assert_close(scalars["d_real"], real.sigmoid().mean().detach())
    torch.testing.assert_close(scalars["d_fake"], fake.sigmoid().mean().detach(), rtol=1e-3, atol=1e-4)
    errors = F.binary_cross_entropy_with_logits(real, torch.ones(8)) + F.binary_cross_entropy_with_logits(
        fake, torch.zeros(8)
    )
    torch.testing.assert_close(scalars["d_loss"], errors.detach(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_each_update_leaves_the_other_network_alone(loss):
    gan, batch = make(loss), minibatch()
    G, D = state(gan.G), state(gan.D)
    fakes = [gan.G(batch.z)]
    discriminator_step(gan, [batch], fakes)
    assert equal(G, state(gan.G)) and not equal(D, state(gan.D))
    assert all(p.grad is None for p in gan.G.parameters())
    D = state(gan.D)
    gradients = {name: grad(p).clone() for name, p in gan.D.named_parameters()}
    generator_step(gan, [batch], fakes)
    assert equal(D, state(gan.D)) and not equal(G, state(gan.G))
    assert all(torch.equal(gradients[name], grad(p)) for name, p in gan.D.named_parameters())


def rises(loss: Loss) -> tuple[bool, bool]:
    """Whether D's update moves real logits above fake ones, and G's update raises the logits of its fakes."""
    gan, batch = make(loss, norm="none", lr=1e-3), minibatch()
    for _ in range(20):
        discriminator_step(gan, [batch], [gan.G(batch.z).detach()])
    with torch.no_grad():
        fake_before = gan.D(gan.G(batch.z)).mean()
        d_rises = bool(gan.D(batch.real).mean() > fake_before)
    generator_step(gan, [batch], None)
    with torch.no_grad():
        return d_rises, bool(gan.D(gan.G(batch.z)).mean() > fake_before)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_targets_point_the_right_way(loss):
    assert rises(loss) == (True, True)


def test_swapped_targets_are_noticed():
    bce = LOSSES["bce"]
    swapped = Loss(d=lambda real, fake: bce.d(fake, real), g=lambda fake: bce.g(-fake))
    assert rises(swapped) == (False, False)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
@pytest.mark.parametrize("classes", [0, 3])
def test_parts_add_up_to_the_minibatch(loss, classes):
    """Gradient accumulation: two and four parts give the whole minibatch's update (no batch statistics)."""
    batch, results = minibatch(classes=classes), []
    for parts in (1, 2, 4):
        gan = make(loss, norm="group", classes=classes)
        columns = [c.chunk(parts) if c is not None else [None] * parts for c in batch]
        scalars = train_step(gan, [Minibatch(*part) for part in zip(*columns, strict=True)])
        results.append((scalars, state(gan.G), state(gan.D)))
    for scalars, G, D in results[1:]:
        for name, value in results[0][0].items():
            torch.testing.assert_close(scalars[name], value, rtol=1e-5, atol=1e-6)
        for mine, whole in ((G, results[0][1]), (D, results[0][2])):
            for name in whole:
                torch.testing.assert_close(mine[name], whole[name], rtol=1e-3, atol=2e-5)


def test_it_trains_labels():
    gan, batch = make(classes=3), minibatch(classes=3)
    before = state(gan.G), state(gan.D)
    train_step(gan, [batch])
    of_labels = [weights["layers.0.weight"][-3:] for weights in (before[0], state(gan.G))]
    assert not torch.equal(*of_labels)
    assert not torch.equal(before[1]["embed.weight"], gan.D.get_parameter("embed.weight"))
