"""Index and order at scale, on a synthetic dataset: time to open, to seek and to plan, and bytes per image.

.venv/bin/python tests/bench/scale.py           # writes 2.4 GB to a temporary folder
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from distgan.data.index_file import COLUMNS, write_index
from distgan.data.manifest import write_manifest
from distgan.data.order import Lanes
from distgan.data.schema import FORMAT, Fields, ImageField, Manifest, Shard
from distgan.data.shardset import LocalStorage, open_shardset


def main() -> None:
    shards, each = 100_000, 1_000
    with tempfile.TemporaryDirectory() as folder:
        rows = [Shard(f"{i:06d}.tar", each, 10**8, "0" * 64) for i in range(shards)]
        columns = {name: np.zeros(shards * each, dtype) for name, dtype in COLUMNS.items()}
        columns["size"] += 64 * 64 * 3
        columns["label"] -= 1
        write_manifest(
            Path(folder),
            Manifest(
                format=FORMAT,
                samples=shards * each,
                fields=Fields(ImageField(64, 64, 3, "uint8", (0.0, 255.0), "npy")),
                classes=[],
                shards=rows,
                index=write_index(Path(folder), columns),
            ),
        )
        del columns
        index = Path(folder) / "index.npz"
        start = time.perf_counter()
        dataset = open_shardset(LocalStorage(Path(folder)), folder)
        seconds = time.perf_counter() - start
        print(f"open {shards * each:,} images in {shards:,} shards: {seconds:.2f} s")
        start = time.perf_counter()
        dataset.check_bounds()
        print(f"check its index: {time.perf_counter() - start:.2f} s")
        print(f"index: {index.stat().st_size / (shards * each):.1f} bytes per image")
        start = time.perf_counter()
        Lanes(dataset.counts, 0, 64).ids(10**8 - 64, 64)
        print(f"first minibatch at the end of the epoch: {1e3 * (time.perf_counter() - start):.1f} ms")
    counts, seeks = np.full(10_000, 1_000), []
    order = Lanes(counts, 0, 64)
    for seed in range(21):
        order = Lanes(counts, seed, 64)
        start = time.perf_counter()
        order.ids(10**7 - 10**7 % 64 - 64 * 100, 64)
        seeks.append(time.perf_counter() - start)
    milliseconds = 1e3 * statistics.median(seeks)
    print(f"seek to the end of 10,000,000 images, 64 lanes, one process, median of 21: {milliseconds:.1f} ms")
    start = time.perf_counter()
    for position in range(0, 64 * 4_000, 64):
        order.ids(position, 64)
    print(f"plan: {(time.perf_counter() - start) / (64 * 4_000) * 1e6:.2f} us per image")


if __name__ == "__main__":
    main()
