"""Ring of 8 and grid of 25 Gaussians: modes covered by every loss with every penalty, trained by `train_step`.

    python tests/bench/mixtures.py [--seeds 3] [--mixture ring|grid] [--only rpgan:r1+r2] [--iterations N]

One CPU core, minutes. A point of two dimensions is an image of 2 channels and 1x1 pixels. Mixtures and scores are those
of VEEGAN (Srivastava et al. 2017, arXiv 1705.07761) with the numbers of PacGAN (Lin et al. 2018, arXiv 1712.04086).
Every row of a mixture has the same recipe, tuned for rpgan with r1 + r2. Prints Markdown; progress goes to stderr.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distgan import models
from distgan.gan.ema import EMA
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch, WeightedPenalty
from distgan.gan.penalties import PENALTIES
from distgan.gan.schedules import value_at
from distgan.gan.step import train_step
from distgan.rng import derive_seed
from distgan.samples import SampleSpec

BATCH, Z_DIM, POINTS = 64, 2, 2500
PENALTY_SETS: dict[str, Sequence[str]] = {"none": [], "r1": ["r1"], "r1+r2": ["r1", "r2"]}
VARIANTS = {f"{loss}:{name}": (loss, names) for loss in LOSSES for name, names in PENALTY_SETS.items()}
VARIANTS["wgan:wgan_gp"] = ("wgan", ["wgan_gp"])


@dataclass(frozen=True)
class Mixture:
    """Gaussians of equal weight and the same isotropic covariance, and the recipe that was tuned for them."""

    means: Tensor
    """[K, 2]"""
    std: float
    iterations: int
    lr: float
    """Of both networks at the start; falls to 0 by a cosine."""
    betas: tuple[float, float]
    gamma: float
    """Weight of r1 and of r2."""

    def sample(self, count: int, rng: torch.Generator) -> Tensor:
        """Points [count, 2, 1, 1]."""
        modes = torch.randint(len(self.means), (count,), generator=rng)
        points = self.means[modes] + self.std * torch.randn(count, 2, generator=rng)
        return points.view(count, 2, 1, 1)


class Score(NamedTuple):
    modes: float
    """Modes that are the nearest one of at least one high-quality point"""
    high_quality: float
    """Percentage of points within 3 standard deviations of the nearest mode (real points: 98.9)"""
    kl: float
    """KL(high-quality points by mode || uniform), in nats; nan without any"""


def score(points: Tensor, mixture: Mixture) -> Score:
    """Of points [N, 2, 1, 1]."""
    distances, nearest = torch.cdist(points.flatten(1).double(), mixture.means.double()).min(dim=1)
    near = distances < 3 * mixture.std
    counts = nearest[near].bincount(minlength=len(mixture.means))
    shares = counts / counts.sum()
    kl = math.log(len(counts)) + torch.special.xlogy(shares, shares).sum()
    return Score((counts > 0).sum().item(), 100 * near.double().mean().item(), kl.item())


def minibatch(mixture: Mixture, rng: torch.Generator) -> Minibatch:
    """Fresh real points, latents, and positions between real and fake points."""
    z, mix = torch.randn(BATCH, Z_DIM, generator=rng), torch.rand(BATCH, generator=rng)
    return Minibatch(mixture.sample(BATCH, rng), z, mix=mix)


def train(mixture: Mixture, loss: str, penalties: Iterable[str], seed: int) -> tuple[nn.Module, nn.Module]:
    """G and its EMA. The real points are drawn on the fly; a paired loss updates G on minibatches of its own."""
    G, D = models.build("mlp", SampleSpec(1, 1, 2, 0), z_dim=Z_DIM, options={}, seed=seed)
    adam = [torch.optim.Adam(network.parameters(), mixture.lr, mixture.betas, fused=True) for network in (G, D)]
    gan = GAN(G, D, G, D, *adam, loss=LOSSES[loss])
    weights = {"r1": mixture.gamma, "r2": mixture.gamma, "wgan_gp": 10.0}
    weighted = {name: WeightedPenalty(PENALTIES[name], weights[name]) for name in penalties}
    ema = EMA(G, half_life_images=BATCH * mixture.iterations / 50)
    decay = {"from": mixture.lr, "to": 0.0, "images": BATCH * mixture.iterations}
    rng = torch.Generator().manual_seed(derive_seed(seed, "mixture"))
    for images_seen in range(0, BATCH * mixture.iterations, BATCH):
        for optimizer in adam:
            optimizer.param_groups[0]["lr"] = value_at(decay, images_seen)
        g = [minibatch(mixture, rng)] if gan.loss.paired else None
        train_step(gan, Batches([[minibatch(mixture, rng)]], g), weighted)
        ema.update(G, ema.weight(BATCH, images_seen))
    return G, ema.module


@torch.no_grad()
def generated(G: nn.Module, seed: int) -> Tensor:
    """The points that are scored [POINTS, 2, 1, 1]."""
    rng = torch.Generator().manual_seed(derive_seed(seed, "scored points"))
    return G(torch.randn(POINTS, Z_DIM, generator=rng))


RING = torch.arange(8) * (2 * math.pi / 8)
GRID = torch.linspace(-1, 1, 5)
MIXTURES = {
    "ring": Mixture(torch.stack([RING.cos(), RING.sin()], 1), 0.01, 2500, lr=2e-3, betas=(0.5, 0.99), gamma=0.01),
    # PacGAN's has modes at -4, -2, 0, 2, 4 and a standard deviation of 0.05
    "grid": Mixture(torch.cartesian_prod(GRID, GRID), 0.0125, 5000, lr=3e-3, betas=(0.0, 0.95), gamma=0.01),
}


def cell(values: Sequence[float], form: Callable[[float], str]) -> str:
    """mean (min..max) over seeds"""
    return f"{form(statistics.fmean(values))} ({form(min(values))}..{form(max(values))})"


def row(variant: str, scores: Sequence[tuple[Score, Score]]) -> str:
    """A line of the table from the scores of G and of its EMA, by seed."""
    loss, penalty = variant.split(":")
    cells = [loss, penalty]
    for scored in zip(*scores, strict=True):
        modes, high_quality, kl = zip(*scored, strict=True)
        cells += [cell(modes, "{:.3g}".format), cell(high_quality, "{:.0f} %".format), f"{statistics.fmean(kl):.2f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mixture", choices=MIXTURES, action="append", help="default: all")
    parser.add_argument("--only", choices=VARIANTS, action="append", metavar="LOSS:PENALTIES", help=", ".join(VARIANTS))
    parser.add_argument("--iterations", type=int, help="default: the mixture's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.mixture or MIXTURES:
        mixture, began = MIXTURES[name], time.process_time()
        mixture = replace(mixture, iterations=args.iterations or mixture.iterations)
        modes = f"modes of {len(mixture.means)}"
        print(f"\n| {name}: loss | penalty | G: {modes} | high quality | KL | EMA: {modes} | high quality | KL |")
        print("|---" * 8 + "|", flush=True)
        for variant in args.only or VARIANTS:
            scores = []
            for seed in range(args.seeds):
                networks = train(mixture, *VARIANTS[variant], seed)
                scores.append(tuple(score(generated(G, seed), mixture) for G in networks))
                print(name, variant, f"seed {seed}", *scores[-1], file=sys.stderr, flush=True)
            print(row(variant, scores), flush=True)
        minutes = (time.process_time() - began) / 60
        print(f"\n{mixture.iterations:,} iterations of {BATCH} points, {minutes:.1f} CPU minutes", flush=True)


if __name__ == "__main__":
    main()
