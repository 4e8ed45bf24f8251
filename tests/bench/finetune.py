"""Fine-tuning on few images against training from scratch: digits to 300 images of MNIST, curves and a table.

    distgan shards make digits data/digits-16 --size 16
    distgan shards make mnist data/mnist-16 --size 16
    distgan evaluate --train_extractor data/mnist-16 --out data/mnist-16.safetensors
    python tests/bench/finetune.py [--config FILE] [--images 30000] [--seeds 3] [--out runs/finetune] [KEYS]
    python tests/bench/finetune.py --plot_only

A run of the config on digits is the source; the variants are runs of the config on the first 300 images of MNIST, with
and without the source, `freeze_d` and adaptive augmentation, in the same numbers of images. The EMA of G is compared
with all 60,000 images of MNIST by the features of a classifier of these. One CPU core, about a minute a run
with configs/dcgan-finetune-cpu.yaml. Started again, runs go on where they were. Prints Markdown; the picture is
configs/results/finetune.png.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from distgan.data.dataset import open_dataset
from distgan.data.stream import Reader
from helpers import ROOT, launch_env, make_arrays, metrics

matplotlib.use("Agg")
from matplotlib import pyplot as plt

FEW = 300
EVALUATIONS = 10
SAMPLES = 5_000
SCRATCH = ["--init_from", "null", "--freeze_d", "0"]
PLAIN = ["--augment", "[]", "--augment_p", "1"]
VARIANTS = {
    "from scratch": [*SCRATCH, *PLAIN],
    "fine-tuned": ["--freeze_d", "0", *PLAIN],
    "fine-tuned, freeze_d": PLAIN,
    "from scratch, ADA": SCRATCH,
    "fine-tuned, ADA": ["--freeze_d", "0"],
    "fine-tuned, freeze_d, ADA": [],
}
"""What is changed in the config, which has the source, `freeze_d` and ADA."""
COLORS = {"from scratch": "#888888", "fine-tuned": "#1f77b4", "fine-tuned, freeze_d": "#d62728"}


def train(run: Path, words: Sequence[Any]) -> None:
    """A run on one core; goes on if it was interrupted. Raises CalledProcessError."""
    command = [sys.executable, ROOT / "distgan/train.py", *words, "--run_dir", run]
    run.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{run}.log", "a") as log:
        subprocess.run([*map(str, command)], env=launch_env(), stdout=log, stderr=log, check=True)


def make_few(folder: Path, mnist: Path) -> Path:
    """The first images of the dataset, with their classes, as a dataset; once."""
    if not (folder / "manifest.json").exists():
        dataset = open_dataset(str(mnist))
        ids = np.arange(FEW)
        make_arrays(folder, np.asarray(Reader(dataset).read(ids).images), labels=dataset.columns["label"][ids])
    return folder


def curve(run: Path, metric: str) -> tuple[list[int], list[float]]:
    """Images seen and the metric of each evaluation."""
    cards = [(row["images"], row["card"]["metrics"][metric]) for row in metrics(run) if "card" in row]
    return [images for images, _ in cards], [value for _, value in cards]


def run_of(out: Path, variant: str, seed: int) -> Path:
    return out / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}"


def print_table(out: Path, seeds: int) -> None:
    """The metric of each variant at the first evaluation and at the last, by seed."""
    print("| variant | fd_classifier at the first evaluation, by seed | mean | at the last, by seed | mean |")
    print("|---|---|---|---|---|")
    for variant in VARIANTS:
        curves = [curve(run_of(out, variant, seed), "fd_classifier") for seed in range(seeds)]
        cells = [variant]
        for place in (0, -1):
            found = [values[place] for _, values in curves]
            cells += [", ".join(f"{value:.0f}" for value in found), f"{statistics.mean(found):.0f}"]
        print("| " + " | ".join(cells) + " |", flush=True)


def plot(out: Path, seeds: int, picture: Path) -> None:
    """Curves of all seeds, and their mean, without and with adaptive augmentation."""
    plt.rcParams.update({"font.size": 8})
    figure, panels = plt.subplots(1, 2, figsize=(6.4, 2.6), sharey=True, layout="constrained")
    for panel, suffix in zip(panels, ("", ", ADA"), strict=True):
        for name, color in COLORS.items():
            curves = [curve(run_of(out, name + suffix, seed), "fd_classifier") for seed in range(seeds)]
            for images, values in curves:
                panel.plot(images, values, color=color, lw=0.5, alpha=0.6)
            mean = np.mean([values for _, values in curves], axis=0)
            panel.plot(curves[0][0], mean, color=color, lw=1.6, label=name)
        panel.set_title("adaptive augmentation" if suffix else "no augmentation", fontsize=8)
        panel.set_yscale("log")
        panel.set_xlabel("images seen")
    panels[0].set_ylabel("fd_classifier")
    panels[0].legend(frameon=False)
    figure.savefig(picture, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, default=ROOT / "configs/dcgan-finetune-cpu.yaml")
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--digits", type=Path, default=ROOT / "data/digits-16")
    parser.add_argument("--mnist", type=Path, default=ROOT / "data/mnist-16")
    parser.add_argument("--extractor", type=Path, default=ROOT / "data/mnist-16.safetensors")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/finetune")
    parser.add_argument("--picture", type=Path, default=ROOT / "configs/results/finetune.png")
    parser.add_argument("--plot_only", action="store_true")
    arguments, keys = parser.parse_known_args()
    if not arguments.plot_only:
        few = make_few(arguments.out / "few", arguments.mnist)
        words = ["--config", arguments.config, "--images", arguments.images, "--data.threads", 1, *keys]
        source = arguments.out / "source"
        train(source, [*words, *SCRATCH, *PLAIN, "--data.shards", arguments.digits])
        words += ["--data.shards", few, "--evaluate.every_epochs", arguments.images / EVALUATIONS / FEW]
        words += ["--evaluate.data", arguments.mnist, "--evaluate.samples", SAMPLES]
        words += ["--evaluate.extractor", arguments.extractor, "--evaluate.metrics", "[fid]"]
        for seed in range(arguments.seeds):
            for variant, changes in VARIANTS.items():
                run = run_of(arguments.out, variant, seed)
                train(run, [*words, "--init_from", source, *changes, "--seed", seed])
                print(f"{run} ended", file=sys.stderr, flush=True)
    print_table(arguments.out, arguments.seeds)
    plot(arguments.out, arguments.seeds, arguments.picture)


if __name__ == "__main__":
    main()
