"""Losses against their formulas, and at logits where half precision would saturate."""

import math

import pytest
import torch

from distgan.gan.losses import LOSSES

REAL, FAKE = torch.linspace(-3, 3, 7), torch.linspace(2, -4, 7)


def test_bce_equals_the_paper():
    bce, D_real, D_fake = LOSSES["bce"], REAL.sigmoid(), FAKE.sigmoid()
    torch.testing.assert_close(bce.d(REAL, FAKE), -D_real.log() - (1 - D_fake).log())
    torch.testing.assert_close(bce.g(FAKE, None), -D_fake.log())


@pytest.mark.parametrize(
    ("loss", "real", "fake", "d", "g"),
    [
        ("bce", 0.0, 0.0, 2 * math.log(2), math.log(2)),
        ("hinge", 0.0, 0.0, 2.0, 0.0),
        ("hinge", 1.0, -1.0, 0.0, 1.0),  # at the margins
        ("hinge", 1.5, -1.5, 0.0, 1.5),  # D gains nothing beyond them, G does
        ("lsgan", 1.0, 0.0, 0.0, 0.5),  # at D's targets
        ("lsgan", 0.0, 1.0, 1.0, 0.0),
        ("wgan", 3.0, 1.0, -2.0, -1.0),
        ("rpgan", 5.0, 5.0, math.log(2), math.log(2)),
        ("rpgan", 1.0, 0.0, math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))),
    ],
)
def test_known_values(loss, real, fake, d, g):
    real, fake = torch.tensor([real]), torch.tensor([fake])
    torch.testing.assert_close(LOSSES[loss].d(real, fake), torch.tensor([d]))
    torch.testing.assert_close(LOSSES[loss].g(fake, real if LOSSES[loss].paired else None), torch.tensor([g]))


def test_rpgan_exchanges_real_and_fake():
    """G's loss is that of D with the roles exchanged, their difference is that of the logits, and an offset of all
    logits changes nothing."""
    rpgan = LOSSES["rpgan"]
    torch.testing.assert_close(rpgan.g(FAKE, REAL), rpgan.d(FAKE, REAL))
    torch.testing.assert_close(rpgan.d(REAL, FAKE) - rpgan.g(FAKE, REAL), FAKE - REAL)
    torch.testing.assert_close(rpgan.d(REAL + 7, FAKE + 7), rpgan.d(REAL, FAKE))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
def test_what_a_loss_says_of_itself(loss):
    far = torch.tensor([1e6])
    assert loss.bounded == bool(loss.d(far, -far) >= 0)
    if loss.boundary is not None:  # there D's loss of real images alone has a slope, or a fake is as far as a real one
        at = torch.tensor([loss.boundary])
        torch.testing.assert_close(loss.d(at, at + 10) - loss.d(at, at), loss.d(at - 10, at) - loss.d(at, at))


def test_bce_has_gradients_at_large_logits():
    logits = torch.tensor([-60.0, 60.0], requires_grad=True)
    LOSSES["bce"].d(logits, logits).sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and (logits.grad.abs() > 0.5).all()
