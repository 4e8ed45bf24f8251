"""Extra terms by their formulae, and where their gradients go."""

import pytest
import torch
import torch.nn.functional as F

from distgan.gan.penalties import DForward
from distgan.gan.terms import GForward, align, consistency, consistency_detached


def test_consistency_is_the_weighted_distance_to_the_image():
    stages = torch.randn(5, 4, 3, 8, 8, dtype=torch.float32, requires_grad=True)
    h = [stages[:, k] for k in range(4)]

    def distance(k: int) -> torch.Tensor:
        return (h[k] - h[3]).square().mean((1, 2, 3))

    expected = (distance(0) / 3 + distance(1) / 2 + distance(2)) / 3
    forward = GForward({"images": h[3], "stages": stages})
    torch.testing.assert_close(consistency(forward), expected)
    torch.testing.assert_close(consistency_detached(forward), expected)
    (both,) = torch.autograd.grad(consistency(forward).sum(), stages)
    (detached,) = torch.autograd.grad(consistency_detached(forward).sum(), stages)
    assert torch.equal(both[:, :3], detached[:, :3])
    assert both[:, 3].abs().max() > 0 and detached[:, 3].abs().max() == 0


def test_consistency_of_one_tensor_is_a_mistake():
    with pytest.raises(AssertionError, match="stages"):
        consistency(GForward(torch.zeros(2, 3, 8, 8)))


def test_align_is_one_minus_the_cosine():
    features, targets = torch.randn(2, 5, 17, 12)
    logits = torch.zeros(5)
    images = torch.zeros(5, 3, 8, 8)
    forward = DForward(lambda x, y: x, images, images, logits, logits, None, None, features=features, targets=targets)
    expected = []
    for n in range(5):
        cosines = [float(F.normalize(features[n, t], dim=0) @ F.normalize(targets[n, t], dim=0)) for t in range(17)]
        expected.append(1 - cosines[0] + sum(1 - c for c in cosines[1:]) / 16)
    torch.testing.assert_close(align(forward), torch.tensor(expected), rtol=1e-5, atol=1e-6)
    same = forward._replace(targets=3 * features)
    torch.testing.assert_close(align(same), torch.zeros(5), rtol=0, atol=1e-5)
