"""The data-copying test: are generated images nearer to the training images than held-out images are?"""

import math
from typing import NamedTuple

import numpy as np

NEAR = 0.01
"""The share of held-out images that are nearer to the training set than the bound of `copied`."""


class Copying(NamedTuple):
    """What the distances of generated and of held-out images to their nearest training images say."""

    copied: float
    """The share of generated images that are nearer than `bound`."""
    copied_expected: float
    """What it is for images of the distribution that the held-out ones are of: about 0.01, and more where fewer than
    99 are held out."""
    closer: float
    """The share of pairs of a generated and a held-out image in which the generated one is the nearer one, ties half.
    0.5 is expected."""
    copying_z: float
    """How many standard deviations `closer` is above 0.5; the paper's Z_U, with the other sign."""
    bound: float
    """The distance that only 1 % of the held-out images are below."""
    median_generated: float
    """Of the distances."""
    median_held_out: float


def compare_distances(generated: np.ndarray, held_out: np.ndarray) -> Copying:
    """The test of Meehan, Chaudhuri and Dasgupta 2020 (arXiv 2004.05675, section 3.1), over the whole space.

    `generated` [M] and `held_out` [N], one or more each, are distances to the nearest training images. Z_U is the
    statistic of Mann and Whitney 1947, whose variance is corrected for ties.

    `copied` is not in the paper: U is an average, in which few copies among images that are far from the training
    set do not show. Its bound is the k-th smallest distance of the held-out images, k = max(floor(0.01 (N + 1)), 1): an
    image of their distribution is below it with probability k / (N + 1), whatever the distribution (without ties).
    """
    ranked = np.sort(held_out)
    m, n = len(generated), len(held_out)
    not_above = np.searchsorted(ranked, generated, "right")
    below = np.searchsorted(ranked, generated, "left")
    pairs = float((n - not_above).sum() + (not_above - below).sum() / 2)
    k = max(math.floor(NEAR * (n + 1)), 1)
    bound = float(ranked[k - 1])
    _, ties = np.unique(np.concatenate([generated, held_out]), return_counts=True)
    total = m + n
    correction = float((ties.astype(np.float64) ** 3 - ties).sum()) / (total * (total - 1))
    std = math.sqrt(m * n / 12 * max(total + 1 - correction, 0.0))
    return Copying(
        copied=float((generated < bound).mean()),
        copied_expected=k / (n + 1),
        closer=pairs / (m * n),
        copying_z=(pairs - m * n / 2) / std if std else 0.0,
        bound=bound,
        median_generated=float(np.median(generated)),
        median_held_out=float(np.median(held_out)),
    )
