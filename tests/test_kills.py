"""A run that is killed again and again, at any instant, ends as the run that never was."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from shared import TINY, children, computed, launch, metrics, start, weights

LENGTH = ["--epochs", 40, "--checkpoint.every_epochs", 0.2, "--report.digests", "true"]  # a checkpoint an iteration


def run_and_kill(processes: int, words: list[object], rng: random.Random, run: Path) -> bool:
    """Start the run and kill all of it, or one process, at a random instant of its work; whether it was killed."""
    before = {p.name for p in (run / "checkpoints").glob("*")}
    process = start(processes, *words)
    try:
        while process.poll() is None and not {p.name for p in (run / "checkpoints").glob("[0-9]*")} - before:
            time.sleep(0.005)  # until this start has trained and saved, past what the one before left
        began, wait = time.monotonic(), rng.uniform(0, 0.6)
        before = {p.name for p in (run / "checkpoints").glob("*")}
        if rng.random() < 0.5:  # the instant that a checkpoint is being written
            while process.poll() is None and time.monotonic() - began < 5:
                now = {p.name for p in (run / "checkpoints").glob("*")}
                if any(name.endswith(".tmp") for name in now - before):
                    break
        else:
            time.sleep(wait)
        if process.poll() is not None:
            return False
        victims = children(process.pid) if processes > 1 else []
        if victims and rng.random() < 0.5:
            os.kill(rng.choice(victims), signal.SIGKILL)  # one of them: the others end by themselves
            process.wait(timeout=120)
        else:
            for pid in [process.pid, *victims]:
                os.kill(pid, signal.SIGKILL)
            process.wait()
        for pid in victims:  # the lock of a killed process is free once the kernel is through with it
            while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]:
                time.sleep(0.01)
        return True
    finally:
        process.kill()
        process.communicate()


MANY = pytest.mark.slow  # with the default run's ten, more than a hundred


@pytest.mark.parametrize(
    ("processes", "wanted"), [(1, 10), pytest.param(1, 60, marks=MANY), pytest.param(2, 40, marks=MANY)]
)
def test_killed_at_random_it_ends_the_same(tiny, tmp_path, processes, wanted, capsys):
    """Weights, EMA and optimizer state have the sha256 of an undisturbed run's files, every time."""
    seed = int(os.environ.get("DISTGAN_KILL_SEED", random.randrange(10**6)))
    rng = random.Random(seed)
    words = ["--data.shards", tiny, *TINY, *LENGTH]
    launch(processes, *words, "--run_dir", tmp_path / "whole")
    expected, lines = weights(tmp_path / "whole"), computed(tmp_path / "whole")
    kills = runs = 0
    while kills < wanted:
        run, runs = tmp_path / f"run{runs}", runs + 1
        while kills < wanted and run_and_kill(processes, [*words, "--run_dir", run], rng, run):
            kills += 1
        launch(processes, *words, "--run_dir", run)
        assert weights(run) == expected, f"seed {seed}, after {kills} kills"
        assert computed(run) == lines, f"seed {seed}, after {kills} kills"
        assert not list((run / "checkpoints").glob(".*")), "something half written was left"
    with capsys.disabled():
        print(f"\n{kills} kills of {runs} runs on {processes} process(es), seed {seed}: all ended the same")


@pytest.mark.slow
def test_the_number_of_processes_may_change(tiny, tmp_path):
    """1 -> 2 -> 4 -> 1 processes: the samples and latents of every minibatch are those of the run on one process, and
    so are the losses of a norm-free network, up to rounding."""
    words = ["--data.shards", tiny, *TINY, "--model.options.norm", "none", "--report.every_images", 16]
    words += ["--report.digests", "true"]
    launch(1, *words, "--run_dir", tmp_path / "whole", "--epochs", 4)
    for epochs, processes in enumerate((1, 2, 4, 1), 1):
        done = launch(processes, *words, "--run_dir", tmp_path / "parts", "--epochs", epochs)
        assert f"{processes} process(es)" in done.stdout
    rows = [metrics(tmp_path / name) for name in ("whole", "parts")]
    assert [row["images"] for row in rows[0]] == [row["images"] for row in rows[1]] == list(range(16, 321, 16))
    assert [row["digest"] for row in rows[0]] == [row["digest"] for row in rows[1]]
    assert len({row["digest"] for row in rows[0]}) == 20
    for key in ("d_loss", "g_loss"):
        assert max(abs(a[key] - b[key]) for a, b in zip(*rows, strict=True)) < 1e-4


def test_a_lost_process_ends_the_others_and_is_named(tiny, tmp_path):
    """One hangs: the others wait no longer than the time-out, and say which."""
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 100_000]
    process = start(2, *words, DISTGAN_TIMEOUT_SECONDS="6")
    try:
        while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        victim = max(children(process.pid))
        os.kill(victim, signal.SIGSTOP)
        began = time.monotonic()
        while process.poll() is None and time.monotonic() - began < 60:
            time.sleep(0.1)
            if time.monotonic() - began > 15:
                os.kill(victim, signal.SIGCONT) if Path(f"/proc/{victim}").exists() else None
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert re.search(r"process 0: process 1 \(counted from 0\) is gone or hangs; the last checkpoint stands", out), out
