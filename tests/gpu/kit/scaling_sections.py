"""The section `weak_scaling`: images/s on 1, 2, 4, ... GPUs with as many images for each, and what collectives take."""

import json
from pathlib import Path
from typing import Any

import torch
from cases import MODES
from common import DRY, Skipped, last_line, record, seconds_left, train

SCALE_RUN = Path(__file__).resolve().parent / "scale_run.py"
NETWORKS = ["DCGAN-64"] if DRY else ["DCGAN-64", "R3GAN small"]
SECONDS = {"eager": 25, "both": 90}
"""What a launch takes, about; those of `both` after the first find their code in the compiler's cache."""


def weak_scaling() -> None:
    """Eager, where DDP averages gradients, and compiled and captured, where distgan does it after the backward pass."""
    gpus = 2 if DRY else torch.cuda.device_count()
    if gpus < 2:
        raise Skipped("needs two GPUs")
    counts = [1 << k for k in range(gpus.bit_length()) if 1 << k <= gpus]
    # all GPUs after one, since their ratio matters most
    ordered = [counts[0], counts[-1], *counts[1:-1]]
    for mode in SECONDS:
        for network in NETWORKS:
            if DRY and "--graph=true" in MODES[mode]:
                record(f"{network}, {mode}", "skipped: needs CUDA")
                continue
            single = 0.0
            for count in ordered:
                label = f"{network}, {mode}, processes: {count}"
                if seconds_left() < SECONDS[mode]:
                    record(label, "skipped: no time left; --only weak_scaling")
                    continue
                found = launch(network, mode, count)
                single = single or found["rate"] / count
                record(label, describe(found, single, count))


def launch(network: str, mode: str, processes: int) -> dict[str, Any]:
    """What scale_run.py says of a run. Raises RuntimeError if it fails."""
    done = train([network, mode], processes=processes, script=SCALE_RUN, timeout=240)
    lines = [line for line in done.stdout.splitlines() if line.startswith("SCALE ")]
    if not lines:
        raise RuntimeError(f"scale_run.py: {last_line(done.stdout + done.stderr)}")
    return json.loads(lines[-1].removeprefix("SCALE "))


def describe(found: dict[str, Any], single: float, processes: int) -> str:
    """Rate, efficiency against one process, and the collectives of an iteration."""
    text = f"{found['rate']:,.0f} img/s, efficiency {found['rate'] / (processes * single):.2f}"
    megabytes = f"{found['bytes'] / 1e6:.2f} MB" if found["bytes"] else "bytes unknown"
    collectives = f"{found['collectives']:.0f} collectives, {megabytes}, {found['milliseconds']:.2f} ms"
    return f"{text}; {collectives} of {found['iteration_milliseconds']:.2f} ms an iteration"


SECTIONS = {"weak_scaling": weak_scaling}
