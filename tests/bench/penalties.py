"""What penalties and augmentations cost: images/s of `train_step` as a ratio to none, DCGAN at 32 px without norm.

    python tests/bench/penalties.py [--rounds 9] [--width 32]

One minibatch of 64 that stays in memory, one thread; the variants are interleaved, a few iterations each, and a ratio
is the median of the per-round ratios.
"""

import argparse
import itertools
import os
import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from distgan import models
from distgan.gan.augment import AUGMENTATIONS, Pipeline
from distgan.gan.finite_difference import FiniteDifference
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch, WeightedPenalty, unaugmented
from distgan.gan.penalties import PENALTIES
from distgan.gan.step import train_step
from distgan.samples import SampleSpec

ADA = [name for name in AUGMENTATIONS if name.startswith("ada_")]
VARIANTS: dict[str, dict] = {
    "none": {},
    "r1": {"penalties": ["r1"]},
    "r1 + r2": {"penalties": ["r1", "r2"]},
    "r1 + r2, every 4 iterations": {"penalties": ["r1", "r2"], "every": 4},
    "r1_fd + r2_fd": {"penalties": ["r1_fd", "r2_fd"]},
    "r1_fd + r2_fd, share 0.25": {"penalties": ["r1_fd", "r2_fd"], "stride": 4},
    "wgan_gp": {"penalties": ["wgan_gp"]},
    "rpgan, G on latents of its own": {"loss": "rpgan"},
    "rpgan + r1 + r2": {"loss": "rpgan", "penalties": ["r1", "r2"]},
    "rpgan + r1_fd + r2_fd": {"loss": "rpgan", "penalties": ["r1_fd", "r2_fd"]},
    "D with spectral norm": {"d_norm": "spectral"},
    "color, translation, cutout": {"augment": ["color", "translation", "cutout"]},
    "the four of ada": {"augment": ADA},
    "rpgan + r1 + r2, the four of ada": {"loss": "rpgan", "penalties": ["r1", "r2"], "augment": ADA},
}


def iterations(
    width: int,
    *,
    loss: str = "bce",
    penalties: Sequence[str] = (),
    every: int = 1,
    stride: int = 1,
    augment: Sequence[str] = (),
    d_norm: str = "none",
) -> Iterator[None]:
    """Yields after each iteration."""
    options = {"width": width, "norm": "none", "d_norm": d_norm}
    networks = models.build("dcgan", SampleSpec(32, 32, 3, 0), z_dim=64, options=options, seed=0)
    G, D = (network.to(memory_format=torch.channels_last) for network in networks)  # type: ignore[call-overload]
    adam = [torch.optim.Adam(network.parameters(), 2e-4, (0.5, 0.999), fused=True) for network in (G, D)]
    pipeline = Pipeline([(name, 1.0) for name in augment])
    gan = GAN(G, D, G, D, *adam, loss=LOSSES[loss], augment=pipeline if augment else unaugmented)
    real = (torch.rand(64, 3, 32, 32) * 2 - 1).to(memory_format=torch.channels_last)
    u, v, w = torch.rand(3, 64, pipeline.columns)
    keys = torch.randint(2**62, (2, 64))
    batch = Minibatch(real, torch.randn(64, 64), None, None, u, v, w, torch.rand(64), *keys)
    difference = FiniteDifference(stride=stride)
    weighted = {name: WeightedPenalty(PENALTIES[name], 0.1, every, difference) for name in penalties}
    for i in itertools.count():
        train_step(gan, Batches([[batch]], [batch] if LOSSES[loss].paired else None), {} if i % every else weighted)
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--width", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    runs = {name: iterations(args.width, **keys) for name, keys in VARIANTS.items()}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(args.rounds + 1):
        for name, run in runs.items():
            start = time.process_time()  # of this process: other load on the machine counts little
            for _ in range(args.iterations):
                next(run)
            if round_number:  # the first is a warm-up
                rates[name].append(64 * args.iterations / (time.process_time() - start))
    print(f"torch {torch.__version__}, 1 thread, load {os.getloadavg()[0]:.1f}, images per CPU second\n")
    print("| | images/s | ratio |\n|---|---|---|")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["none"], strict=True))
        print(f"| {name} | {statistics.median(values):.0f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
