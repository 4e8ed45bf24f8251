"""A synthetic calorimeter: showers with their energy as condition, and what G deposits against the truth.

    python tests/bench/showers.py make showers.h5 [--count 20000] [--seed 0]
    distgan shards make showers.h5 data/showers --image_key sqrt_energy --label_columns energy:number
    python tests/bench/showers.py compare RUN data/showers --out showers.png

A shower of energy E (1 to 100 GeV) is 24 layers of one radiation length by 16 cells. The mean profile is Longo's gamma
distribution (as in the PDG's review, "Electromagnetic cascades"): t_max = ln(E / E_c) + 0.5, E_c = 10 MeV, b = 0.5; it
starts at an exponential depth, and its lateral profile is a core and a halo around an axis that varies. Every 10 MeV is
deposited by itself: Poisson numbers in the cells, hence a resolution of about 10 % / sqrt(E). Stored is the square root
of a cell's GeV in float16: the deposits of a shower span four decades.
"""

import argparse
import math
from pathlib import Path

import numpy as np

LAYERS = 24
CELLS = 16
CRITICAL = 0.01
"""GeV"""
QUANTUM = 0.01
"""GeV of a deposit."""
LOW, HIGH = 1.0, 100.0
EDGES = np.array([1, 5, 10, 20, 40, 60, 80, 100.0])
"""Of the energy bins, GeV."""


def showers(energy: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """GeV in the cells [N, LAYERS, CELLS] of showers of `energy` [N] in GeV."""
    count = len(energy)
    b = 0.5
    shape = 1 + b * (np.log(energy / CRITICAL) + 0.5) * rng.lognormal(0, 0.06, count)
    start = rng.exponential(9 / 7, count)
    depth = np.clip(np.arange(LAYERS) + 0.5 - start[:, None], 1e-6, None)
    gamma = np.array([math.lgamma(a) for a in shape])
    longitudinal = np.exp(
        math.log(b) + (shape[:, None] - 1) * np.log(b * depth) - b * depth - gamma[:, None]
    )  # dE/dt / E
    longitudinal *= depth > 1e-6
    place = np.arange(CELLS) - (CELLS - 1) / 2 - rng.normal(0, 0.7, count)[:, None]
    core = np.exp(-0.5 * (place / 0.8) ** 2)
    halo = np.exp(-np.abs(place) / 2.5)
    lateral = 0.8 * core / core.sum(1, keepdims=True) + 0.2 * halo / halo.sum(1, keepdims=True)
    expected = energy[:, None, None] * longitudinal[:, :, None] * lateral[:, None, :]
    return rng.poisson(expected / QUANTUM) * QUANTUM


def make(path: Path, count: int, seed: int) -> None:
    import h5py

    rng = np.random.default_rng(seed)
    energy = rng.uniform(LOW, HIGH, count)
    with h5py.File(path, "w") as file:
        file["sqrt_energy"] = np.sqrt(showers(energy, rng))[..., None].astype(np.float16)
        file["energy"] = energy
    print(f"{path}: {count:,} showers")


def by_bin(energy: np.ndarray, cells: np.ndarray) -> list[tuple[float, float, float, float]]:
    """Of each energy bin: mean and standard deviation of the deposited share of the energy, and of the mean depth."""
    total = cells.sum((1, 2))
    share = total / energy
    depth = (cells.sum(2) * (np.arange(LAYERS) + 0.5)).sum(1) / np.maximum(total, 1e-9)
    rows = []
    for low, high in zip(EDGES[:-1], EDGES[1:], strict=True):
        inside = (energy >= low) & (energy < high)
        rows.append((share[inside].mean(), share[inside].std(), depth[inside].mean(), depth[inside].std()))
    return rows


def compare(run: str, dataset: str, out: Path, count: int, seed: int) -> None:
    """Print the table of real and generated showers by energy bin, and draw it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import torch

    import distgan
    from distgan.commands.shards import open_dataset
    from distgan.data.stream import Reader
    from distgan.gan.step import generate
    from distgan.pixels import to_stored

    data = open_dataset(dataset, None)
    ids = np.arange(min(count, data.manifest.samples))
    real_energy = np.asarray(data.columns["numbers"][ids, 0], np.float64)
    real = np.asarray(Reader(data).read(ids).images, np.float64)[..., 0] ** 2
    G = distgan.load(run)
    energy = np.random.default_rng(seed).uniform(LOW, HIGH, count)
    condition = G.spec.conditions[0]
    labels = torch.from_numpy(((energy - condition.mean) / condition.std).astype(np.float32))[:, None]
    images = generate(G, G.draw(count, seed), labels)
    fake = to_stored(images, G.spec).double().numpy()[..., 0] ** 2
    real_rows = by_bin(real_energy, real)
    fake_rows = by_bin(energy, fake)
    print("| GeV | share real | share G | width real | width G | depth real | depth G | its width real | G |")
    print("|---|---|---|---|---|---|---|---|---|")
    for low, high, a, b in zip(EDGES[:-1], EDGES[1:], real_rows, fake_rows, strict=True):
        cells = " | ".join(f"{value:.3f}" for pair in zip(a, b, strict=True) for value in pair)
        print(f"| {low:g} to {high:g} | {cells} |")
    middle = (EDGES[:-1] + EDGES[1:]) / 2
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    titles = ("mean of deposited energy / energy", "its standard deviation", "mean depth, radiation lengths")
    for axis, column, title in zip(axes, (0, 1, 2), titles, strict=True):
        for rows, name, style in ((real_rows, "simulation", "k-o"), (fake_rows, "G", "C1--s")):
            axis.plot(middle, [row[column] for row in rows], style, label=name, markersize=4)
        axis.set(title=title, xlabel="energy, GeV")
        axis.grid(alpha=0.3)
    axes[0].set_ylim(0.7, 1.1)
    axes[0].legend()
    figure.savefig(out, dpi=110)
    print(f"wrote {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make")
    maker.add_argument("file", type=Path)
    maker.add_argument("--count", type=int, default=20_000)
    maker.add_argument("--seed", type=int, default=0)
    comparer = commands.add_parser("compare")
    comparer.add_argument("run")
    comparer.add_argument("dataset")
    comparer.add_argument("--out", type=Path, default=Path("showers.png"))
    comparer.add_argument("--count", type=int, default=10_000)
    comparer.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.command == "make":
        make(args.file, args.count, args.seed)
    else:
        compare(args.run, args.dataset, args.out, args.count, args.seed)


if __name__ == "__main__":
    main()
