"""Start-up: CPU seconds of commands, and of a run up to the end of its first iteration, for checkouts side by side.

.venv/bin/python tests/bench/startup.py [CHECKOUT ...]     # default: this one
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
COMMANDS = {
    "import torch, accelerate": ["-c", "import torch, accelerate"],
    "distgan --help": ["-m", "distgan", "--help"],
    "distgan train --help": ["-m", "distgan", "train", "--help"],
    "distgan train --print_config": ["-m", "distgan", "train", "--print_config"],
    "distgan train --bach 3 (refused)": ["-m", "distgan", "train", "--bach", "3"],
    "distgan train --batch 0 (refused)": ["-m", "distgan", "train", "--batch", "0"],
    "distgan shards --help": ["-m", "distgan", "shards", "--help"],
    "distgan shards order DIGITS": ["-m", "distgan", "shards", "order", "DIGITS"],
    "distgan shards verify DIGITS": ["-m", "distgan", "shards", "verify", "DIGITS"],
    "a run of one iteration": [
        *("distgan/train.py", "--data.shards", "DIGITS", "--images", "64", "--model.options.width", "8"),
        *("--fresh", "--run_dir", "RUN"),
    ],
}


def cpu_seconds(checkout: Path, command: list[str], places: dict[str, str]) -> float:
    """User and system time of a command and its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    words = [places.get(word, word) for word in command]
    subprocess.run([sys.executable, *words], cwd=checkout, env=env, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[ROOT])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    checkouts = [path.resolve() for path in args.checkouts]
    with tempfile.TemporaryDirectory() as folder:
        places = {"DIGITS": f"{folder}/digits", "RUN": f"{folder}/run"}
        make = ["-m", "distgan", "shards", "make", "digits", places["DIGITS"]]
        subprocess.run([sys.executable, *make], cwd=ROOT, capture_output=True, check=True)
        seconds: dict[tuple[str, Path], list[float]] = {(name, path): [] for name in COMMANDS for path in checkouts}
        for _ in range(args.rounds):
            for (name, path), values in seconds.items():
                values.append(cpu_seconds(path, COMMANDS[name], places))
    print(f"CPU seconds, medians of {args.rounds} interleaved rounds, load {os.getloadavg()[0]:.1f}")
    print("| | " + " | ".join(path.name for path in checkouts) + " |\n|---|" + "---|" * len(checkouts))
    for name in COMMANDS:
        medians = (statistics.median(seconds[name, path]) for path in checkouts)
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in medians) + " |")


if __name__ == "__main__":
    main()
