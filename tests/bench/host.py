"""The host's work for an iteration of 64 images a process: at 1,024 processes against one.

    .venv/bin/python tests/bench/host.py

Three parts, on one core: sample ids (of 10,000,000 images in shards of 1,000), random numbers (latents of 100, labels,
flips), and reading raw images of 32 pixels. Variants run interleaved: times are medians over rounds, and a ratio is the
median of per-round ratios. The ids of 1,024 samples of a lane are computed at once: a round covers whole windows.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from distgan.config.keys import Config, DataConfig
from distgan.data.order import WINDOW, Lanes
from distgan.data.shardset import LocalStorage, open_shardset
from distgan.data.stream import Reader
from distgan.training.batches import Draws, Needs
from helpers import make_dataset, noise

SHARE, IMAGES, STORED = 64, 10_000_000, 16_000
VARIANTS = {
    "1 process, 64 lanes": (1, 64),
    "1,024 processes, 65,536 lanes": (1024, 65_536),
    "1,024 processes, 1,024 lanes": (1024, 1_024),
}
PARTS = ("ids", "random numbers", "reading")


def parts(reader: Reader, world_size: int, lanes: int, seed: int) -> dict[str, Callable[[int], object]]:
    """The parts of iteration i of the process in the middle of the world."""
    rank = world_size // 2
    batch = SHARE * world_size
    local = lanes // world_size
    order = Lanes(np.full(IMAGES // 1000, 1000), seed, lanes, rank * local, (rank + 1) * local)
    config = Config(batch=batch, seed=seed, data=DataConfig(labels=True, flip=True, lanes=lanes))
    draws = Draws(config, order, reader.shards.draw_labels, Needs())
    return {
        "ids": lambda i: order.ids(i * batch, batch),
        "random numbers": lambda i: draws(i * batch),
        "reading": lambda i: reader.read(order.ids(i * batch, batch) % STORED),
    }


def measure(work: dict[str, Callable[[int], object]]) -> dict[str, float]:
    """Seconds of each part for an iteration."""
    seconds = {}
    for name, part in work.items():
        iterations = WINDOW if name == "ids" else 64
        if name == "reading":
            part(0)  # computes the order's window, and opens files
        start = time.perf_counter()
        for i in range(iterations):
            part(i)
        seconds[name] = (time.perf_counter() - start) / iterations
    seconds["reading"] -= seconds["ids"]
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        make_dataset(Path(folder) / "set", noise(STORED, size=32), shards=16)
        reader = Reader(open_shardset(LocalStorage(Path(folder) / "set"), folder))
        reader.read(np.arange(STORED))  # into the page cache
        for seed in range(args.rounds):
            for name, (processes, lanes) in VARIANTS.items():
                row = measure(parts(reader, processes, lanes, seed))
                rows[name].append(row | {"sum": sum(row.values())})
    print(f"| microseconds per iteration | {' | '.join(PARTS)} | sum | ratio |")
    print("|---|---|---|---|---|---|")
    one = rows[next(iter(VARIANTS))]
    for name, measured in rows.items():
        cells = [f"{1e6 * statistics.median(row[part] for row in measured):,.0f}" for part in (*PARTS, "sum")]
        ratio = statistics.median(row["sum"] / base["sum"] for row, base in zip(measured, one, strict=True))
        print(f"| {name} | {' | '.join(cells)} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
