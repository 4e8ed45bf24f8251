"""Averages by power functions: against their definition, and other widths from snapshots against averages kept."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from distgan.gan.power_ema import WIDEST, PowerEMA, Profile, fit_profile, gamma_of, inner_products

ITERATIONS = 4000
BATCH = 16
KEPT = (0.05, 0.1)
WANTED = (0.03, 0.07, 0.15, 0.2, 0.25)


def profile(s: torch.Tensor, at: Profile) -> torch.Tensor:
    """The definition, float64."""
    gamma = gamma_of(at.width)
    return torch.where(s <= at.images, (gamma + 1) / at.images * (s / at.images) ** gamma, 0)


def midpoints(n: int = 200_000) -> torch.Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def test_exponents_are_those_of_the_paper():
    """Section 3.1 names them: 16.97 and 6.94. And the standard deviation of a profile is its width."""
    assert (gamma_of(0.05), gamma_of(0.1)) == pytest.approx((16.97, 6.94), abs=0.005)
    for width in (0.001, 0.02, 0.1, 0.25, 0.2886):
        gamma = gamma_of(width)
        assert math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2) == pytest.approx(width, rel=1e-12)
    s = midpoints()
    p = profile(s, Profile(1, 0.1))
    mean = (p * s).mean()
    assert float(p.mean()) == pytest.approx(1) and float((p * (s - mean) ** 2).mean().sqrt()) == pytest.approx(0.1)
    for width in (0.0, -0.1, WIDEST, math.nan):
        with pytest.raises(ValueError, match="width"):
            gamma_of(width)


def test_the_average_is_the_weighted_sum_of_all_weights():
    """The share of the weights after iteration i of n is the integral of the profile over that iteration's images."""
    iterates = torch.randn(50, 3, 2, dtype=torch.float64)
    batches = [7, 16, 3, 24, 50] * 10
    G = nn.Linear(2, 3).double()
    averages = [PowerEMA(G, width) for width in (*KEPT, 0.28)]
    seen = [0]
    for weight, batch in zip(iterates, batches, strict=True):
        G.weight.data = weight.clone()
        for average in averages:
            average.update(G, average.weight(batch, seen[-1]))
        seen.append(seen[-1] + batch)
    times = torch.tensor(seen, dtype=torch.float64) / seen[-1]
    for average in averages:
        shares = (times ** (average.gamma + 1)).diff()
        expected = (shares[:, None, None] * iterates).sum(0)
        torch.testing.assert_close(average.module.weight, expected, rtol=1e-12, atol=1e-12)


def test_inner_products_are_integrals():
    s = midpoints()
    profiles = [Profile(1, 0.05), Profile(1, 0.25), Profile(0.5, 0.1), Profile(0.3, 0.2)]  # type: ignore[arg-type]
    values = torch.stack([profile(s, each) for each in profiles])
    products = inner_products(profiles, profiles)
    torch.testing.assert_close(products, values @ values.T / len(s), rtol=2e-5, atol=1e-12)
    torch.testing.assert_close(products, products.T)


@pytest.fixture(scope="module")
def trajectory() -> dict[Profile, torch.Tensor]:
    """Averages of weights that drift and tremble, at 400 times, float64."""
    generator = torch.Generator().manual_seed(0)
    G = nn.Linear(32, 8, bias=False).double()
    nn.init.normal_(G.weight, generator=generator)
    averages = [PowerEMA(G, width) for width in (*KEPT, *WANTED)]
    kept = {}
    for i in range(ITERATIONS):
        noise = torch.randn(8, 32, generator=generator, dtype=torch.float64)
        G.weight.data += 0.01 * noise + 0.002 * torch.cos(G.weight.data + 3 * i / ITERATIONS)
        for average in averages:
            average.update(G, average.weight(BATCH, i * BATCH))
        if (i + 1) % 10 == 0:
            for average in averages:
                kept[Profile((i + 1) * BATCH, average.width)] = average.module.get_parameter("weight").clone()
    return kept


def reconstruct(kept: dict[Profile, torch.Tensor], times: Sequence[int], width: float) -> tuple[torch.Tensor, float]:
    snapshots = [Profile(time, each) for time in times for each in KEPT]
    fit = fit_profile(snapshots, Profile(times[-1], width))
    assert float(fit.coefficients.sum()) == pytest.approx(1, abs=1e-9)
    return torch.tensordot(fit.coefficients, torch.stack([kept[one] for one in snapshots]), 1), fit.residual


@pytest.mark.parametrize(
    ("count", "limits"), [(400, (1e-6, 1e-7, 1e-7, 1e-6, 2e-4)), (25, (5e-4, 5e-5, 1e-4, 2e-3, 2e-2))]
)
def test_other_widths_from_snapshots_of_two(trajectory, count, limits):
    """Relative errors against averages of these widths that were kept all along; less than the residuals."""
    kept = trajectory
    end = ITERATIONS * BATCH
    times = [end * (k + 1) // count for k in range(count)]
    for width, limit in zip(WANTED, limits, strict=True):
        found, residual = reconstruct(kept, times, width)
        expected = kept[Profile(end, width)]
        error = float((found - expected).norm() / expected.norm())
        assert error < min(limit, residual), (width, error, residual)


def test_a_kept_width_is_its_own_snapshot(trajectory):
    kept = trajectory
    times = [k * ITERATIONS * BATCH // 25 for k in range(1, 26)]
    found, residual = reconstruct(kept, times, 0.1)
    assert residual < 1e-6
    torch.testing.assert_close(found, kept[Profile(times[-1], 0.1)], rtol=0, atol=1e-9)
