"""From DCGAN to the relativistic recipe on StackedMNIST: modes and KL of each rung, with a tuned learning rate.

    distgan shards make stacked-mnist data/stacked-mnist
    distgan evaluate --train_extractor data/stacked-mnist --out data/stacked-digits.safetensors
    python tests/bench/ladder.py RUNG [--lr 2e-3] [--seeds 3] [--images 250000] [KEYS OF THE CONFIG]

One CPU core, up to eight minutes a seed. Every rung is configs/rpgan-stacked-mnist-cpu.yaml with the keys of RUNGS and
minibatches of 16, for --images images, the last 40 % of them with a learning rate that falls to a hundredth. Without
--lr the rate is searched: the one of LRS with the lowest KL after a quarter of the images at a constant rate. The EMA
of G is evaluated half-way and at the end; of a DCGAN, G itself too. Started again, runs go on where they were. Prints
Markdown; progress goes to stderr.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers import ROOT, launch_env, metrics

NARROW = ["--model.options", "{width: 16, norm: none, init: he}"]
BATCHNORM = ["--model.options", "{width: 16}", "--penalties", "{}"]
CLASSIC_BETAS = ["--g_optimizer.betas", "[0.5, 0.999]", "--d_optimizer.betas", "[0.5, 0.999]"]
GAMMA = "{from: 1, to: 0.1, images: 400_000, shape: cosine}"
ONE_PENALTY = ["--penalties", f"{{r1: {GAMMA}}}"]
FINITE_DIFFERENCES = ["--penalties", f"{{r1_fd: {GAMMA}, r2_fd: {GAMMA}}}"]
LARGE_SIGMA = f"{{weight: {GAMMA}, sigma: 0.1}}"
LARGE_DIFFERENCES = ["--penalties", f"{{r1_fd: {LARGE_SIGMA}, r2_fd: {LARGE_SIGMA}}}"]
RUNGS = {
    "dcgan": ["--loss", "bce", *BATCHNORM, *CLASSIC_BETAS],
    "bce+r1": ["--loss", "bce", *NARROW, *ONE_PENALTY],
    "rpgan+r1": ["--loss", "rpgan", *NARROW, *ONE_PENALTY],
    "rpgan+r1+r2": NARROW,
    "rpgan+r1_fd+r2_fd": [*NARROW, *FINITE_DIFFERENCES],  # sigma 0.01
    "rpgan+r1_fd+r2_fd-large": [*NARROW, *LARGE_DIFFERENCES],  # 0.1
}
IMAGES = 128_000  # of stacked-mnist, an epoch
LRS = ["1e-3", "2e-3", "4e-3"]
COLUMNS = ("modes", "kl", "confident", "recall")


def train(run: Path, lr: str, images: int, words: Sequence[str], decay: bool = True) -> None:
    """A run on one core; goes on if it was interrupted. Raises CalledProcessError."""
    falls = (
        f"{{from: {lr}, to: {float(lr) / 100}, images: {0.4 * images:.0f}, start: {0.6 * images:.0f}, shape: linear}}"
    )
    command = [sys.executable, ROOT / "distgan/train.py", "--config", ROOT / "configs/rpgan-stacked-mnist-cpu.yaml"]
    command += ["--run_dir", run, "--images", images, "--batch", 16, "--data.threads", 1, "--checkpoint.keep", 0]
    for optimizer in ("g_optimizer", "d_optimizer"):
        command += [f"--{optimizer}.lr", falls if decay else lr]
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(run.with_suffix(".log"), "a") as log:
        subprocess.run([*map(str, command), *words], env=launch_env(), stdout=log, stderr=log, check=True)


def cards(run: Path) -> dict[int, dict[str, float]]:
    """The metrics of every evaluation by images seen."""
    return {row["images"]: row["card"]["metrics"] for row in metrics(run) if "card" in row}


def rate(run: Path) -> float:
    """Images per second: the median of the run's lines, without evaluations."""
    return statistics.median(row["images_per_second"] for row in metrics(run) if "images_per_second" in row)


def search(rung: str, words: Sequence[str], arguments: argparse.Namespace) -> str:
    """The learning rate with the lowest KL after a quarter of the images."""
    images, found = arguments.images // 4, {}
    for lr in LRS:
        run = arguments.out / f"{rung}-search-{lr}"
        train(run, lr, images, words, decay=False)
        found[lr] = list(cards(run).values())[-1]["kl"]
    print(f"{rung}: KL by learning rate after {images:,} images: {found}", file=sys.stderr, flush=True)
    return min(found, key=lambda lr: found[lr])


def evaluate_g(run: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """The metrics of G itself at the end of a run, on one core."""
    newest = max((run / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))
    card = run / "cards" / "g.json"
    command = [sys.executable, ROOT / "distgan/evaluate.py", newest / "generator.safetensors", "--out", card]
    command += ["--data", arguments.data, "--metrics", "modes,precision_recall", "--extractor", arguments.extractor]
    if not card.exists():
        subprocess.run([*map(str, command)], env=launch_env(), stdout=subprocess.DEVNULL, check=True)
    return json.loads(card.read_text())["metrics"]


def row(*cells: Any) -> str:
    return "| " + " | ".join(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("rung", choices=RUNGS)
    parser.add_argument("--lr")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=250_000)
    parser.add_argument("--data", type=Path, default=ROOT / "data/stacked-mnist")
    parser.add_argument("--extractor", type=Path, default=ROOT / "data/stacked-digits.safetensors")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/ladder")
    arguments, keys = parser.parse_known_args()
    words = [*RUNGS[arguments.rung], "--data.shards", str(arguments.data), *keys]
    words += ["--evaluate.extractor", str(arguments.extractor), "--evaluate.metrics", "[modes, precision_recall]"]
    words += ["--evaluate.every_epochs", str(arguments.images / 2 / IMAGES), "--evaluate.best", "kl"]
    lr = arguments.lr or search(arguments.rung, words, arguments)
    print(row("rung", "lr", "seed", "images", *COLUMNS, "images/s"), row(*["---"] * 9), sep="\n")
    for seed in range(arguments.seeds):
        run = arguments.out / f"{arguments.rung}-{lr}-{seed}"
        train(run, lr, arguments.images, [*words, "--seed", str(seed)])
        for images, values in cards(run).items():
            print(row(arguments.rung, lr, seed, images, *(values[name] for name in COLUMNS), round(rate(run))))
        if arguments.rung == "dcgan":
            values = evaluate_g(run, arguments)
            print(row(f"{arguments.rung}, G", lr, seed, arguments.images, *(values[name] for name in COLUMNS), ""))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
