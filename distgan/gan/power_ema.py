"""Averages of G's weights by power functions of the images seen, and other widths that are put together from them.

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models" (arXiv 2312.02696), section 3
and appendix C. The average at t images with exponent gamma weighs the weights of G at s images by the profile

    p(s) = (gamma + 1) s^gamma / t^(gamma + 1),  0 <= s <= t,

whose width relative to t is sigma_rel. Between two updates the weights of G are constant, and an update gives them
exactly the integral of p over that time: the inner products of profiles below, which are integrals, are exact too.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distgan.gan.ema import AveragedGenerator

WIDEST = 12**-0.5
"""sigma_rel of gamma = 0, the mean of all weights so far; the limit of widths, about 0.28867."""
SINGULAR = 1e-14
"""Singular values below this share of the largest one count as 0: profiles of many snapshots are almost dependent."""


class Profile(NamedTuple):
    """How an average weighs the weights of G over the images seen."""

    images: int
    """t, the images seen at the time of the average."""
    width: float
    """sigma_rel."""


class Fit(NamedTuple):
    """A profile as a linear combination of others."""

    coefficients: Tensor
    """float64 [N], of sum 1."""
    residual: float
    """The norm of what is left of the profile, as a share of the profile's own norm (L2 over the images seen)."""


def gamma_of(width: float) -> float:
    """The exponent of the power function of relative width `width`, above 0; appendix C.1.

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)); gamma is the positive root of a cubic. Raises ValueError
    unless 0 < width < WIDEST.
    """
    if not 0 < width < WIDEST:
        raise ValueError(f"width {width} is not between 0 and {WIDEST:.4f}")
    square = width**-2
    gamma = 1 / width
    # the cubic is convex and positive from here down to its root: Newton's steps only fall, up to rounding
    while True:
        value = ((gamma + 7) * gamma + 16 - square) * gamma + 12 - square
        slope = (3 * gamma + 14) * gamma + 16 - square
        below = gamma - value / slope
        if not 0 < below < gamma:
            return gamma
        gamma = below


class PowerEMA(AveragedGenerator):
    """The average of G's weights by a power function of relative width `width`; it starts with the first update.

    BatchNorm's running statistics are those of the last G: `distgan.generators.batchnorm_statistics` estimates them
    anew for the average. Raises ValueError as `gamma_of` does.
    """

    def __init__(self, G: nn.Module, width: float) -> None:
        super().__init__(G)
        self.width = width
        self.gamma = gamma_of(width)

    def weight(self, batch: int, images_seen: int) -> float:
        """The share of G's new weights after an iteration of `batch` images that began at `images_seen`.

        1 - beta of equation 7, with the time t in images: beta = (1 - batch / t)^(gamma + 1).
        """
        return 1 - (images_seen / (images_seen + batch)) ** (self.gamma + 1)


def inner_products(rows: Sequence[Profile], columns: Sequence[Profile]) -> Tensor:
    """The integral of the product of each two profiles over the images seen, float64 [rows, columns]; appendix C.2.

    With t' <= t, (gamma + 1) (gamma' + 1) / ((gamma + gamma' + 1) t) (t' / t)^gamma, gamma being that of t.
    """
    t_rows, gamma_rows = (each[:, None] for each in times_and_exponents(rows))
    t_columns, gamma_columns = (each[None, :] for each in times_and_exponents(columns))
    first = torch.minimum(t_rows, t_columns)
    last = torch.maximum(t_rows, t_columns)
    gamma_last = torch.where(t_rows > t_columns, gamma_rows, gamma_columns)
    scale = (gamma_rows + 1) * (gamma_columns + 1) / (gamma_rows + gamma_columns + 1)
    return scale / last * (first / last) ** gamma_last


def times_and_exponents(profiles: Sequence[Profile]) -> tuple[Tensor, Tensor]:
    """t and gamma of each, float64 [N]."""
    t = torch.tensor([profile.images for profile in profiles], dtype=torch.float64)
    return t, torch.tensor([gamma_of(profile.width) for profile in profiles], dtype=torch.float64)


def fit_profile(snapshots: Sequence[Profile], wanted: Profile) -> Fit:
    """The combination of the profiles of snapshots that is nearest to the wanted one, by least squares; appendix C.2.

    Unlike the paper's, the coefficients sum to 1, so that weights which never change come out as they are: free ones
    for the width 0.25 of 25 snapshots sum to 0.991, and shrink G by 1 %.
    """
    gram = inner_products(snapshots, snapshots)
    products = inner_products(snapshots, [wanted])[:, 0]
    norms = gram.diagonal().sqrt()
    # the conditions for a minimum with a Lagrange multiplier, in units of the norms of the profiles
    n = len(snapshots)
    ones = norms.min() / norms
    system = gram.new_zeros(n + 1, n + 1)
    system[:n, :n] = gram / norms / norms[:, None]
    system[:n, n] = ones
    system[n, :n] = ones
    right = torch.cat([products / norms, norms.min()[None]])
    solution = torch.linalg.lstsq(system, right[:, None], rcond=SINGULAR, driver="gelsd").solution
    coefficients = solution[:n, 0] / norms
    own = inner_products([wanted], [wanted])[0, 0]
    left = own - 2 * coefficients @ products + coefficients @ gram @ coefficients
    return Fit(coefficients, float((left / own).clamp(min=0).sqrt()))
