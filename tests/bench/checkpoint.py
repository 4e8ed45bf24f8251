"""Benchmark: checkpoint stall, the share of the run time in which the training loop waits; asynchronous and blocking.

.venv/bin/python tests/bench/checkpoint.py
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import make_dataset, noise, train


def main() -> None:
    torch.set_num_threads(2)
    stalls: dict[str, list[float]] = {"false": [], "true": []}  # by checkpoint.wait
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder)
        shards = make_dataset(Path(folder) / "dataset", noise(1024, 32))
        for repeat in range(3):
            for wait, values in stalls.items():
                run_dir = Path(folder) / f"{wait}{repeat}"
                args = ["--data.shards", shards, "--run_dir", run_dir, "--epochs", 3, "--report.every_images", 512]
                start_time = time.perf_counter()
                code = train(*args, "--samples.every_epochs", 100, "--checkpoint.wait", wait)
                assert code == 0
                rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
                values.append(sum(row["save_seconds"] for row in rows) / (time.perf_counter() - start_time))
        latest = max((run_dir / "checkpoints").iterdir(), key=lambda path: int(path.name))
        size = sum(file.stat().st_size for file in latest.iterdir()) / 1e6
    print(f"DCGAN-32, a checkpoint of {size:.0f} MB every 1,024 images; checkpoint stall, share of the run time:")
    for wait, values in stalls.items():
        name = "blocking" if wait == "true" else "asynchronous"
        print(f"{name:<16} {100 * statistics.median(values):.2f} %")


if __name__ == "__main__":
    main()
