"""The pictures of the manual, in configs/results/: `python tests/bench/figures.py [NAME ...]`, by default all.

demo: a strip of the grids of `make demo`, which must have run; digits: of rpgan-digits-cpu, seeds 0 to 2. loss: d_loss
of the demo's networks on one process, on two, and killed and resumed (about five minutes on two cores). lanes: the
order of the images. ladder: KL and confident share against time, from the cards of the runs in RATES, which must have
ended. fashion: the cards of runs/fashion-mnist by epoch.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from distgan.data.order import Lanes

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "configs" / "results"
EPOCHS = (10, 30, 60)
RATES = {"rpgan-stacked-mnist-cpu": 815, "dcgan-stacked-mnist": 1010, "dcgan-stacked-mnist-cpu": 653}
"""Images per second of one process on one idle core, by run."""


def demo() -> None:
    """Grids of epochs 10, 30 and 60 of the demo."""
    strip([ROOT / f"runs/demo/samples/fake-{epoch:04d}.png" for epoch in EPOCHS], "demo")


def digits() -> None:
    """The last grids of rpgan-digits-cpu with seeds 0, 1 and 2, in runs/rpgan-digits-cpu, -1 and -2."""
    runs = [ROOT / f"runs/rpgan-digits-cpu{suffix}" for suffix in ("", "-1", "-2")]
    strip([max((run / "samples").glob("fake-*.png")) for run in runs], "rpgan-digits")


def strip(paths: list[Path], name: str) -> None:
    """Three pictures side by side, grey, in their own pixels."""
    grids = [np.asarray(Image.open(path).convert("L")) for path in paths]
    gap = np.full((len(grids[0]), 12), 255, np.uint8)
    picture = np.hstack([grids[0], gap, grids[1], gap, grids[2]])
    Image.fromarray(picture).save(RESULTS / f"{name}.png", optimize=True)


def losses(run: Path) -> tuple[list[int], list[float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["images"] for row in rows], [row["d_loss"] for row in rows]


def train(run: Path, processes: int, kill_at: int | None = None) -> None:
    """Eight epochs of the demo with GroupNorm, in micro-batches of 16 images per process.

    With `kill_at` it is killed at that checkpoint and run again.
    """
    config = ["--config_file", str(ROOT / "launch/accelerate/cpu.yaml"), "--num_processes", str(processes)]
    command = [sys.executable, "-m", "accelerate.commands.launch", *config, "--main_process_port", "0"]
    command = command if processes > 1 else [sys.executable]
    command += [str(ROOT / "distgan/train.py"), "--config", str(ROOT / "configs/demo.yaml"), "--epochs", "8"]
    command += ["--run_dir", str(run), "--report.every_images", "448", "--checkpoint.every_epochs", "1"]
    command += ["--data.shards", str(ROOT / "data/digits"), "--model.options.norm", "group", "--micro_batch", "16"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if kill_at is not None:
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (run / "checkpoints" / str(kill_at)).exists():
            time.sleep(0.05)
        time.sleep(1)  # into the next epoch: what it computed there is lost, and computed again
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)


def loss() -> None:
    """d_loss of three runs of one configuration, on top of each other."""
    plt.rcParams.update({"font.size": 8})
    figure, axes = plt.subplots(figsize=(6.4, 2.2), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        styles = {
            "1 process": (1, None, dict(lw=5, color="#c6dbef")),
            "2 processes": (2, None, dict(lw=2.2, color="#fd8d3c")),
            "1 process, killed at 7,168 images and resumed": (1, 7168, dict(lw=0.8, color="black")),
        }
        for label, (processes, kill_at, style) in styles.items():
            run = Path(folder) / str(len(axes.lines))
            train(run, processes, kill_at)
            axes.plot(*losses(run), label=label, solid_capstyle="butt", **style)
            shutil.rmtree(run)
    axes.set(xlabel="images seen", ylabel="d_loss", title="configs/demo.yaml, 8 epochs, norm group, micro_batch 16")
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(RESULTS / "loss.png", dpi=110)


def lanes() -> None:
    """Three shards, four lanes, two processes: where each position of an epoch is read from."""
    counts, lanes_, world_size = np.array([10, 8, 14]), 4, 2
    order = Lanes(counts, 3, lanes_)
    ids = order.ids(0, order.epoch_images).reshape(-1, lanes_)
    shard_of = np.searchsorted(np.cumsum(counts), np.arange(counts.sum()), side="right")
    colors = ("#9ecae1", "#fdae6b", "#a1d99b")
    plt.rcParams.update({"font.size": 8})
    figure, axes = plt.subplots(figsize=(6.4, 2.3), layout="constrained")
    for id in range(counts.sum()):
        axes.add_patch(Rectangle((id * 0.45, 5.2), 0.4, 0.8, color=colors[shard_of[id]]))
    axes.text(-0.3, 5.6, "3 shards on disk", ha="right", va="center")
    for slot, row in enumerate(ids):
        for lane, id in enumerate(row):
            x, y = slot * 1.8, 3 - lane
            axes.add_patch(Rectangle((x, y), 1.6, 0.8, color=colors[shard_of[id]]))
            axes.text(x + 0.8, y + 0.4, str(slot * lanes_ + lane), ha="center", va="center")
    for lane in range(lanes_):
        axes.text(-0.3, 3.4 - lane, f"lane {lane}, process {lane * world_size // lanes_}", ha="right", va="center")
    axes.set(xlim=(-5.2, 14.5), ylim=(-0.3, 6.2))
    axes.axis("off")
    figure.savefig(RESULTS / "lanes.png", dpi=110)


def cards(run: Path) -> list[dict]:
    """The metric cards of a run, from its evaluations and from `distgan evaluate`, by images seen."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [row["card"] for row in rows if "card" in row]
    found += [json.loads(path.read_text()) for path in (run / "cards").glob("*.json")]
    return sorted(found, key=lambda card: card["generator"]["images"])


def ladder() -> None:
    """KL and confident share of the EMA against minutes of one core, with those of real images."""
    plt.rcParams.update({"font.size": 8})
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.4), layout="constrained")
    labels = ("rpgan + r1 + r2, width 16", "tuned DCGAN, width 16", "tuned DCGAN, width 32")
    colors = ("#08519c", "#fdae6b", "#e6550d")
    for (run, rate), label, color in zip(RATES.items(), labels, colors, strict=True):
        found = cards(ROOT / "runs" / run)
        minutes = [card["generator"]["images"] / rate / 60 for card in found]
        for axis, metric in zip(axes, ("kl", "confident"), strict=True):
            axis.plot(minutes, [card["metrics"][metric] for card in found], ".-", label=label, color=color, lw=1)
            axis.axhline(found[0]["floor"][metric], color="grey", lw=0.8, ls="--")
    axes[0].set(xlabel="minutes of one CPU core", ylabel="KL to uniform over 1,000 modes", yscale="log")
    axes[1].set(xlabel="minutes of one CPU core", ylabel="share of confident images", ylim=(0, 1))
    axes[1].legend(frameon=False, loc=(0.25, 0.6))
    figure.savefig(RESULTS / "ladder.png", dpi=110)


def fashion() -> None:
    """Frechet distance and recall of the EMA by epoch, with those of real images; the best checkpoint is marked."""
    plt.rcParams.update({"font.size": 8})
    figure, axes = plt.subplots(1, 2, figsize=(6.4, 2.2), layout="constrained")
    run = ROOT / "runs" / "fashion-mnist"
    found, best = cards(run), json.loads((run / "best.json").read_text())["images"]
    epochs = [card["generator"]["images"] / 59_968 for card in found]
    for axis, metric in zip(axes, ("fd_classifier", "recall"), strict=True):
        values = [card["metrics"][metric] for card in found]
        axis.plot(epochs, values, ".-", color="#08519c", lw=1)
        axis.axhline(found[-1]["floor"][metric], color="grey", lw=0.8, ls="--")
        for epoch, value, card in zip(epochs, values, found, strict=True):
            if card["generator"]["images"] == best:
                axis.plot(epoch, value, "o", color="#e6550d", label="best by fd_classifier")
    axes[0].set(xlabel="epoch", ylabel="fd_classifier", yscale="log")
    axes[1].set(xlabel="epoch", ylabel="recall", ylim=(0, 1))
    axes[0].legend(frameon=False)
    figure.savefig(RESULTS / "fashion.png", dpi=110)


FIGURES = {"demo": demo, "digits": digits, "loss": loss, "lanes": lanes, "ladder": ladder, "fashion": fashion}

if __name__ == "__main__":
    RESULTS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or list(FIGURES):
        FIGURES[name]()
