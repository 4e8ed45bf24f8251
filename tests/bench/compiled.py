"""What torch.compile gains on a CPU: iterations of the same run with and without the key `compile`, side by side.

    OMP_NUM_THREADS=1 python tests/bench/compiled.py [--only "DCGAN-64"] [--rounds 7]

An iteration is the run's own on one minibatch of noise that stays in memory; the demo has three classes here. Both
sides live in one process and take turns, a few iterations each, one thread; a ratio is the median of the per-round
ratios. Compile seconds: the first iteration with an empty cache of the compiler, the check of the gradients included.
Graphs: what dynamo traced; each becomes a forward and a backward.
"""

import argparse
import functools
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch._dynamo
from accelerate.state import AcceleratorState

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from distgan.config.read import read_config
from distgan.distributed.processes import Distributed
from distgan.logs.log import Terminal
from distgan.runs.checkpoint import Checkpoints
from distgan.training.build import build
from distgan.training.loop import Trainer
from distgan.training.stop import StopRequest
from helpers import ROOT, make_dataset, noise

NORM_FREE = ["--batch=64", '--model.options={"width": 64, "norm": "none"}']
R3GAN = [f"--config={ROOT}/configs/r3gan-stacked-mnist-small.yaml", "--precision=no", "--batch=32"]
R3GAN += ['--model.options={"widths": [64, 64, 64, 64], "group_width": 16}']
ROWS: dict[str, tuple[tuple[int, int], list[str]]] = {
    "configs/demo.yaml": ((32, 1), [f"--config={ROOT}/configs/demo.yaml"]),
    "DCGAN-64, batch 64": ((64, 3), ["--batch=64"]),
    "DCGAN-32 without norm, no penalty": ((32, 3), NORM_FREE),
    "DCGAN-32 without norm, r1 + r2": ((32, 3), [*NORM_FREE, '--penalties={"r1": 1, "r2": 1}']),
    "DCGAN-32 without norm, r1_fd + r2_fd": ((32, 3), [*NORM_FREE, '--penalties={"r1_fd": 1, "r2_fd": 1}']),
    "R3GAN-32, no penalty": ((32, 3), [*R3GAN, "--penalties={}"]),
    "R3GAN-32, r1 + r2": ((32, 3), R3GAN),
    "R3GAN-32, r1_fd + r2_fd": ((32, 3), [*R3GAN, '--penalties={"r1_fd": 1, "r2_fd": 1}']),
    "smallest DCGAN": ((8, 3), ["--batch=8", '--model.options={"width": 4}']),
}
"""Size and channels of the images, and the words of the run. DCGAN-32 has 64 images a minibatch, R3GAN-32 has 32 and
width 64. The last row only shows that the benchmark works."""


class Side:
    """One of the two runs of a row."""

    def __init__(self, folder: Path, words: list[str]) -> None:
        self.iterations = iterate(folder, words)
        before = graphs()
        self.first_seconds = self.seconds(1)
        self.graphs = graphs() - before
        self.seconds(1)

    def seconds(self, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            next(self.iterations)
        return time.perf_counter() - start


def graphs() -> int:
    """What dynamo has traced since it was reset."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def iterate(folder: Path, words: list[str]) -> Iterator[None]:
    """Yields after each iteration of a run."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run_dir = tempfile.mkdtemp(dir=folder)
    # what the row says comes first, since it may name a configuration
    argv = [*words, f"--run_dir={run_dir}", "--images=1_000_000_000", "--report.every_images=1_000_000_000"]
    config = read_config(argv, prog="bench", description="")[0]
    processes = Distributed(config)
    checkpoints = Checkpoints(Path(run_dir) / "checkpoints", 1)
    data, gan = build(config, processes)
    stop = StopRequest([])
    trainer = Trainer(config, processes, data, gan, terminal=Terminal(False), checkpoints=checkpoints, stop=stop)
    trainer.begin_iterations()
    batches = next(trainer.minibatches.iterations(0, 1, on_read=lambda batch: None))
    while True:
        trainer.iterate(itertools.repeat(batches))
        yield


def measure(size: int, channels: int, words: list[str], rounds: int, seconds: float) -> str:
    """A row's cells; `seconds` is the length of a round of the eager side, about."""
    torch._dynamo.reset()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        folder = Path(cache) / "runs"
        folder.mkdir()
        shards = make_dataset(folder / "set", noise(256, size, channels))
        side = functools.partial(Side, folder)
        eager = side([*words, f"--data.shards={shards}"])
        compiled = side([*words, f"--data.shards={shards}", "--compile=true"])
        count = max(1, int(seconds / eager.seconds(1)))
        times = [(eager.seconds(count), compiled.seconds(count)) for _ in range(rounds)]
    batch = batch_of(words)
    first, second = (batch * count / statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    return f"{first:,.0f} | {second:,.0f} | {ratio:.2f} | {compiled.first_seconds:.0f} | {compiled.graphs}"


def batch_of(words: list[str]) -> int:
    return read_config([*words, "--data.shards=unused"], prog="bench", description="")[0].batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose names contain this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a round of the eager side")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| | eager, images/s | compiled | ratio | compile seconds | graphs |\n|---|---|---|---|---|---|")
    for name, ((size, channels), words) in ROWS.items():
        if args.only not in name:
            continue
        print(f"| {name} | {measure(size, channels, words, args.rounds, args.seconds)} |", flush=True)
    print(f"\ntorch {torch.__version__}, 1 thread, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
