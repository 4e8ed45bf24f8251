"""Losses against their formulas, and at logits where half precision would saturate."""

import torch

from distgan.gan.losses import LOSSES


def test_bce_equals_the_paper():
    real, fake = torch.linspace(-3, 3, 7), torch.linspace(2, -4, 7)
    bce = LOSSES["bce"]
    D_real, D_fake = real.sigmoid(), fake.sigmoid()
    torch.testing.assert_close(bce.d(real, fake), -D_real.log() - (1 - D_fake).log())
    torch.testing.assert_close(bce.g(fake, None), -D_fake.log())


def test_bce_has_gradients_at_large_logits():
    logits = torch.tensor([-60.0, 60.0], requires_grad=True)
    LOSSES["bce"].d(logits, logits).sum().backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all() and (logits.grad.abs() > 0.5).all()
