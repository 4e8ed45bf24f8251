"""What the sections share: recording facts, runs in processes of their own, runs in this process, timing."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from helpers import computed, noise, weights

ROOT = Path(__file__).resolve().parents[3]
TRAIN, SHARE_GPU = ROOT / "distgan" / "train.py", Path(__file__).resolve().parent / "share_gpu.py"
DRY = os.environ.get("GPU_KIT_DRY") == "1"
OUT, WORK = Path(os.environ.get("OUT", "runs/gpu-report")), Path(os.environ.get("GPU_KIT_WORK", "runs/gpu-work"))
DIGITS, NOISE = WORK / "digits", WORK / "noise"
DEVICE = "cpu" if DRY else "cuda"
PRECISIONS = ["no", "bf16"] if DRY else ["no", "bf16", "fp16"]
SIZE, WIDTH = (16, 4) if DRY else (64, 64)
BATCH = 16 if DRY else 64

STARTED = time.monotonic()
SECONDS = float(os.environ.get("GPU_KIT_SECONDS", "inf"))
"""What this process may take."""

failures: list[str] = []


class Skipped(Exception):
    """The section does not apply to this machine."""


def seconds_left() -> float:
    """Until the time limit of the section."""
    return SECONDS - (time.monotonic() - STARTED)


def record(name: str, value: object) -> None:
    """Add a line to the report."""
    print("FACT " + json.dumps({name: value}, default=str), flush=True)


def expect(name: str, value: object, ok: bool) -> None:
    """Add a line to the report; the section fails unless `ok`."""
    record(name, value if ok else f"UNEXPECTED: {value}")
    if not ok:
        failures.append(name)


def make_datasets() -> None:
    """Drawn digits in 32x32, ten classes, which need no download; noise in 64x64, three classes."""
    from distgan.dataset_tool import make
    from distgan.dataset_tool.sources.source import from_arrays

    count = 320 if DRY else 1792
    random, digits = np.random.default_rng(0), []
    for i in range(count):
        image = Image.new("L", (32, 32))
        font = ImageFont.load_default(size=float(random.integers(20, 29)))
        x, y = (float(value) for value in random.uniform(13, 19, 2))
        ImageDraw.Draw(image).text((x, y), str(i % 10), fill=255, font=font, anchor="mm")
        digits.append(np.asarray(image.rotate(random.uniform(-15, 15))))
    images = {DIGITS: (np.stack(digits), 10), NOISE: (noise(128 if DRY else 8192, SIZE), 3)}
    for folder, (array, classes) in images.items():
        labels = np.arange(len(array)) % classes
        source = from_arrays(folder.name, array, labels, [str(i) for i in range(classes)])
        make.make(source, folder, make.Options(shard_mb=len(array) * (array[0].size + 2048) / 4e6), 1)
        record(folder.name, f"{len(array):,} images {array.shape[1]}x{array.shape[2]}")


# runs in processes of their own


def train_command(words: list[object], *, processes: int = 0, script: Path = TRAIN) -> list[str]:
    """`distgan/train.py`, or another script, by itself, or started by `accelerate launch` in `processes` processes."""
    launcher: list[object] = []
    if processes:
        launcher = ["-m", "accelerate.commands.launch", "--config_file", ROOT / "launch/accelerate/multi-gpu.yaml"]
        launcher += ["--num_processes", processes, "--main_process_port", 0]
    return [sys.executable, *map(str, [*launcher, script, *words])]


def train_env(env: dict[str, str] | None) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})


def train(
    words: list[object],
    *,
    processes: int = 0,
    check: bool = True,
    timeout: float = 140,
    env: dict[str, str] | None = None,
    script: Path = TRAIN,
) -> subprocess.CompletedProcess:
    """Run to the end. Raises RuntimeError if it fails, TimeoutExpired after `timeout` seconds."""
    command = train_command(words, processes=processes, script=script)
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=train_env(env))
    print(done.stdout[-3000:], done.stderr[-3000:], sep="\n", flush=True)
    if check and done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {last_line(done.stderr)}")
    return done


def start_train(words: list[object], *, processes: int = 0, env: dict[str, str] | None = None) -> subprocess.Popen:
    """The same, in the background; its output goes to a pipe."""
    command = train_command(words, processes=processes)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=train_env(env))


def train_on_one_gpu(words: list[object], *, script: Path, timeout: float = 140) -> tuple[list[int], str]:
    """Two processes on the first GPU, without a launcher; returns their exit codes and their output.

    distgan refuses more processes than GPUs on a node; these two are presented as two nodes that have a GPU each.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks, deadline = [], time.monotonic() + timeout
    with tempfile.TemporaryFile("w+") as output:
        for rank in ("0", "1"):
            env = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONUNBUFFERED": "1"}
            command = [sys.executable, str(script), *map(str, words)]
            ranks.append(subprocess.Popen(command, stdout=output, stderr=output, env=train_env(env)))
        try:
            codes = [process.wait(max(1.0, deadline - time.monotonic())) for process in ranks]
        finally:
            for process in ranks:
                process.kill()
            output.seek(0)
            text = output.read()
            print(text[-5000:], flush=True)
    return codes, text


def nvidia_smi(fields: str) -> str:
    """The fields of the first GPU, or why there are none."""
    try:
        command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return f"unknown: {type(error).__name__}"


def wait_for(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 60) -> None:
    """Until the condition holds, the process ends, or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)


def last_line(text: str) -> str:
    """The last line with words in it, and not the frame of the launcher's summary."""
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return lines[-1][:200] if lines else "no output"


def digits_run(run_dir: Path, images: int, *more: object) -> list[object]:
    """Arguments of a run on the digits, with labels, four checkpoints per epoch."""
    words: list[object] = ["--data.shards", DIGITS, "--data.labels", "true", "--batch", BATCH]
    words += ["--run_dir", run_dir, "--images", images, "--report.every_images", BATCH * 10]
    words += ["--samples.every_epochs", 1, "--checkpoint.every_epochs", 0.25, "--checkpoint.keep", 2]
    return [*words, "--model.options.width", WIDTH, *more]


def results(run_dir: Path) -> dict[str, object]:
    """What a run computed: the sha256 of every file of the newest checkpoint and of every grid, and its metrics."""
    pictures = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (run_dir / "samples").glob("*.png")}
    state = json.loads((newest_checkpoint(run_dir) / "state.json").read_text())
    return {**weights(run_dir), **pictures, "metrics.jsonl": computed(run_dir), "scaler": state["scaler"]}


def newest_checkpoint(run_dir: Path) -> Path:
    return max((run_dir / "checkpoints").glob("[0-9]*"), key=lambda path: int(path.name))


def compare(reference: Path, other: Path) -> str:
    """ "equal", or the names of what differs. A run in two parts may have one more grid, where the first part ended."""
    first, second = results(reference), results(other)
    different = [key for key, value in first.items() if second.get(key) != value]
    return f"different: {', '.join(different)}" if different else f"equal ({len(first) - 3} files and the metrics)"


def differences(a: Path, b: Path) -> str:
    """The largest difference of losses and scores of two runs, in the first iteration and in all.

    Both runs log each iteration. Rounding grows with training.
    """
    found = differences_by_line(a, b)
    return f"{found[0]:.1e} in the first iteration, {max(found):.1e} in {len(found)}"


def differences_by_line(a: Path, b: Path) -> list[float]:
    """The largest difference of losses and scores of two runs in each line of their metrics, but for alarms."""
    keys = ("d_loss", "g_loss", "d_real", "d_fake")
    first, second = ([row for row in computed(run) if "d_loss" in row] for run in (a, b))
    return [max(abs(x[key] - y[key]) for key in keys) for x, y in zip(first, second, strict=True)]


# runs in this process


def build_run(*words: object, recipe: Iterable[object] = ("--model.options.width", WIDTH), batch: int = BATCH):
    """A run on the noise in this process, as a `training.loop.Trainer`; nothing is due before its end.

    `words` and the other arguments override `recipe`, which may name a configuration.
    """
    from accelerate.state import AcceleratorState

    from distgan.config.read import read_config
    from distgan.distributed.processes import Distributed
    from distgan.logs.log import Terminal
    from distgan.runs.checkpoint import Checkpoints
    from distgan.training.build import build
    from distgan.training.loop import Trainer
    from distgan.training.stop import StopRequest

    AcceleratorState._reset_state(reset_partial_state=True)
    run_dir = Path(tempfile.mkdtemp(dir=WORK))
    argv = [*recipe, "--data.shards", NOISE, "--batch", batch]
    argv += ["--run_dir", run_dir, "--images", 10**9, "--report.every_images", 10**9]
    argv += ["--samples.every_epochs", 10**6, "--checkpoint.every_epochs", 10**6, *words]
    config = read_config([str(word) for word in argv], prog="gpu", description="")[0]
    processes = Distributed(config)
    return Trainer(
        config,
        processes,
        *build(config, processes),
        terminal=Terminal(True),
        checkpoints=Checkpoints(run_dir / "checkpoints", 1),
        stop=StopRequest([]),
    )


def run_loop(trainer, visit: Callable[[int], bool]) -> None:
    """The run's own training loop; `visit(i)` is called before iteration i, and a true value stops the loop.

    The loop asks its stop request once per iteration, on the host: this is where measurements start and end.
    """
    from distgan.training.stop import StopRequest

    class Visits(StopRequest):
        count = 0

        def requested(self) -> bool:
            if self.reason is None and visit(self.count):
                self.reason = "measured"
            self.count += 1
            return self.reason is not None

    trainer.stop.close()
    trainer.stop = Visits([])
    try:
        with contextlib.closing(trainer.checkpoints), contextlib.closing(trainer.stop):
            trainer.start()
            trainer.loop()
    finally:
        shutil.rmtree(trainer.run_dir)


def repeat(iterations: Iterator[None], visit: Callable[[int], bool]) -> None:
    """The same for a generator that yields after each iteration."""
    count = 0
    while not visit(count):
        next(iterations)
        count += 1


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


class Stopwatch:
    """Images per second: the median of four stretches of a quarter of a second, after a warm-up."""

    def __init__(self, batch: int) -> None:
        self.batch, self.rates, self.start, self.length = batch, [], 0.0, 1
        self.rounds, self.stretch, self.next = (1, 0.0, 1) if DRY else (4, 0.25, 8)
        self.warming_up = 2  # the warm-up, and one iteration that gives the length of a stretch

    def __call__(self, i: int) -> bool:
        if i < self.next:
            return False
        synchronize()
        seconds = time.perf_counter() - self.start
        if self.warming_up == 1:
            self.length = max(1, int(self.stretch / seconds))
        elif not self.warming_up:
            self.rates.append(self.length * self.batch / seconds)
        self.warming_up = max(0, self.warming_up - 1)
        self.next, self.start = i + self.length, time.perf_counter()
        return len(self.rates) == self.rounds

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def peak_gb(held: int = 0) -> str:
    """Peak memory of the GPU, without `held` bytes that were there before."""
    return f"{(torch.cuda.max_memory_allocated() - held) / 1e9:.2f} GB" if DEVICE == "cuda" else "no GPU memory"
