"""How long the loop waits for a checkpoint, as a share of its time: behind the loop against in it, in one run.

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

from shared import make_dataset, noise, train


def main() -> None:
    torch.set_num_threads(2)
    shares: dict[str, list[float]] = {"false": [], "true": []}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        shards = make_dataset(Path(folder) / "set", noise(1024, 32))
        for turn in range(3):
            for wait, values in shares.items():
                run = Path(folder) / f"{wait}{turn}"
                words = ["--data.shards", shards, "--run_dir", run, "--epochs", 3, "--report.every_images", 512]
                began = time.perf_counter()
                code = train(*words, "--samples.every_epochs", 100, "--checkpoint.wait", wait)
                assert code == 0
                rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                saving = sum(row["save_seconds"] for row in rows)
                values.append(saving / (time.perf_counter() - began))
        newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
        size = sum(file.stat().st_size for file in newest.iterdir()) / 1e6
    print(f"DCGAN-32, a checkpoint of {size:.0f} MB every 1,024 images; share of the run that the loop waits:")
    for wait, values in shares.items():
        name = "in the loop" if wait == "true" else "behind the loop"
        print(f"{name:<16} {100 * statistics.median(values):.2f} %")


if __name__ == "__main__":
    main()
