"""Schedules: pure functions of images seen; and the rule of the adaptive probability."""

import math

import pytest
import torch

from distgan.gan.schedules import adapt_probability, iterations_averaged, value_at


def test_a_number_is_constant():
    assert value_at(0.3, 0) == value_at(0.3, 10**9) == 0.3


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("linear", [2.0, 1.75, 1.5, 1.0, 1.0]), ("cosine", [2.0, 2 - (1 - math.cos(math.pi / 4)) / 2, 1.5, 1.0, 1.0])],
)
def test_shapes(shape, expected):
    schedule = {"from": 2.0, "to": 1.0, "images": 400, "shape": shape}
    assert [value_at(schedule, images) for images in (0, 100, 200, 400, 10**6)] == pytest.approx(expected)
    later = schedule | {"start": 1000}
    assert [value_at(later, images + 1000) for images in (-500, 0, 100, 200, 400)] == pytest.approx(
        [2.0, *expected[:4]]
    )


def test_cosine_is_the_default_and_ends_are_exact():
    schedule = {"from": 0.1, "to": 0.7, "images": 3}
    assert value_at(schedule, 0) == 0.1 and value_at(schedule, 3) == 0.7
    assert value_at(schedule, 1) == value_at(schedule | {"shape": "cosine"}, 1)
    assert value_at({"from": 0.1, "to": 0.0, "images": 3}, 4) == 0


@pytest.mark.parametrize("batch", [12, 16, 24, 32, 36, 64, 128])
def test_the_mean_that_the_adaptive_probability_holds_is_its_target(batch):
    """D takes a real image for real with a fixed probability: where the mean of sign(D(x)) is 0.03 above the target, p
    rises, where it is 0.03 below, p falls. With the sign of single iterations it rises at 0.57 with a batch of 16."""
    target, averaged = 0.6, iterations_averaged(batch)
    for mean, rises in ((target + 0.03, True), (target - 0.03, False)):
        n = averaged * batch
        k = torch.arange(n + 1, dtype=torch.float64)
        share = (1 + mean) / 2
        binomial = torch.lgamma(torch.tensor(n + 1.0).double()) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
        chance = (binomial + k * math.log(share) + (n - k) * math.log(1 - share)).exp()
        start = torch.tensor(0.5)
        moves = [adapt_probability(start, sign, target=target, images=10, step=1) - start for sign in 2 * k / n - 1]
        drift = (torch.stack(moves).double() * chance).sum()
        assert (drift > 0) == rises, (mean, float(drift))


def test_the_adaptive_probability():
    """It moves by step / images towards the target, and stays in [0, 1]."""
    p = torch.tensor(0.5)
    for sign, expected in ((0.9, 0.51), (0.1, 0.49), (0.6, 0.5)):
        moved = adapt_probability(p, torch.tensor(sign), target=0.6, images=6400, step=64)
        torch.testing.assert_close(moved, torch.tensor(expected))
    for start, sign in ((0.995, 1.0), (0.005, -1.0)):
        moved = adapt_probability(torch.tensor(start), torch.tensor(sign), target=0.6, images=640, step=64)
        assert moved == round(start)
