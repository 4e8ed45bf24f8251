"""Kill tests: SIGKILL at random times does not change the result of a run; a hung process is detected."""

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from helpers import TINY, children, computed, launch, metrics, snapshots, start, weights

# One iteration is 0.2 epochs: a checkpoint after every iteration.
ARGS = ["--epochs", 40, "--checkpoint.every_epochs", 0.2, "--report.digests", "true"]
# In the middle of schedules, of an adaptive probability and of a lazy penalty; G's latents and real images are its own
# in the other recipe.
SCHEDULED = ["--g_optimizer.lr", "{from: 2e-3, to: 1e-4, images: 3000}", "--model.options.d_norm", "group"]
SCHEDULED += ["--d_optimizer.betas", "[0, {from: 0.9, to: 0.99, images: 2000, shape: linear}]"]
SCHEDULED += ["--ema.power_widths", "[0.05, 0.1]", "--ema.snapshot_epochs", 0.4]
SCHEDULED += ["--ema.half_life_images", "{from: 0, to: 500, images: 2000}", "--augment", "[color, cutout]"]
HINGE = ["--loss", "hinge", "--penalties", "{r1: {weight: {from: 1, to: 0.1, images: 2000}, every: 3}}"]
RECIPES = {
    "adaptive": [*SCHEDULED, *HINGE, "--augment_p", "{target: 0.2, images: 500}"],
    "bands": ["--data.labels", "true", "--data.flip", "true", "--model.options.norm", "group", "--augment", "[color]"],
    "paired": [*SCHEDULED, "--loss", "rpgan", "--penalties", "{r1: 1, r2: 1}", "--n_critic", 2],
    # of latents: posterior noise, noise levels, penalties that add noise, a frozen network
    "gat": [
        *("--model.name", "gat", "--data.vae", "VAE", "--loss", "rpgan", "--epochs", 8, "--data.flip", "true"),
        *("--model.options", "{width: 16, depth: 2, heads: 2, embedding: 8, stages: 2}", "--augment", "[flip]"),
        *("--penalties", "{r1_fd: {weight: 100, sigma: 0.1, share: 0.5}, r2_fd: {weight: 100, sigma: 0.1}}"),
        *("--terms", "{align: {weight: 0.1, path: DINOV2}, consistency: 0.1}"),
    ],
}


def has_not_exited(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1][:3]
    except (FileNotFoundError, ProcessLookupError):
        return False


def run_and_kill(num_processes: int, args: list[object], rng: random.Random, run_dir: Path) -> bool:
    """Start the run and kill it, or one of its processes, at a random time; returns whether it was killed."""
    before = {path.name for path in (run_dir / "checkpoints").glob("*")}
    process = start(num_processes, *args)
    try:
        # Wait for the first new checkpoint, so that every start makes progress.
        while process.poll() is None and not {p.name for p in (run_dir / "checkpoints").glob("[0-9]*")} - before:
            time.sleep(0.005)
        start_time, delay = time.monotonic(), rng.uniform(0, 0.6)
        before = {path.name for path in (run_dir / "checkpoints").glob("*")}
        if rng.random() < 0.5:  # while a checkpoint is being written
            while process.poll() is None and time.monotonic() - start_time < 5:
                now = {path.name for path in (run_dir / "checkpoints").glob("*")}
                if any(name.endswith(".tmp") for name in now - before):
                    break
        else:
            time.sleep(delay)
        if process.poll() is not None:
            return False
        ranks = children(process.pid) if num_processes > 1 else []
        if ranks and rng.random() < 0.5:
            os.kill(rng.choice(ranks), signal.SIGKILL)  # the other processes must exit by themselves
            process.wait(timeout=120)
        else:
            for pid in [process.pid, *ranks]:
                os.kill(pid, signal.SIGKILL)
            process.wait()
        for pid in ranks:  # the lock on the run folder is held until the killed process has exited
            while has_not_exited(pid):
                time.sleep(0.01)
        return True
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("num_processes", "num_kills", "recipe"),
    [
        (1, 3, "adaptive"),
        pytest.param(1, 20, "bands", marks=pytest.mark.slow),
        pytest.param(2, 20, "bands", marks=pytest.mark.slow),
        pytest.param(1, 50, "paired", marks=pytest.mark.slow),
        pytest.param(2, 40, "adaptive", marks=pytest.mark.slow),
        pytest.param(1, 8, "gat", marks=pytest.mark.slow),
    ],
)
def test_random_kills_do_not_change_the_result(request, tmp_path, num_processes, num_kills, recipe, capsys):
    """Weights, averages and optimizer state have the same sha256 as those of an uninterrupted run, and so have
    snapshots of averages."""
    seed = int(os.environ.get("DISTGAN_KILL_SEED", random.randrange(10**6)))
    rng = random.Random(seed)
    data = request.getfixturevalue({"bands": "bands", "gat": "latents"}.get(recipe, "tiny"))
    args = ["--data.shards", data, *TINY, *ARGS, *RECIPES[recipe]]
    if recipe == "gat":
        paths = {"VAE": request.getfixturevalue("tiny_vae"), "DINOV2": request.getfixturevalue("tiny_dinov2")}
        for name, path in paths.items():
            args = [str(word).replace(name, str(path)) for word in args]
    launch(num_processes, *args, "--run_dir", tmp_path / "reference")
    expected_snapshots = snapshots(tmp_path / "reference")
    assert bool(expected_snapshots) == ("--ema.power_widths" in args)
    expected_weights, expected_metrics = weights(tmp_path / "reference"), computed(tmp_path / "reference")
    if recipe == "adaptive":
        probabilities = {row["augment_p"] for row in expected_metrics if "augment_p" in row}
        assert len(probabilities) > 1 and 0 < max(probabilities) <= 1
    kills = runs = 0
    while kills < num_kills:
        run_dir, runs = tmp_path / f"run{runs}", runs + 1
        while kills < num_kills and run_and_kill(num_processes, [*args, "--run_dir", run_dir], rng, run_dir):
            kills += 1
        launch(num_processes, *args, "--run_dir", run_dir)
        assert weights(run_dir) == expected_weights, f"seed {seed}, after {kills} kills"
        assert computed(run_dir) == expected_metrics, f"seed {seed}, after {kills} kills"
        assert snapshots(run_dir) == expected_snapshots, f"seed {seed}, after {kills} kills"
        assert not list((run_dir / "checkpoints").glob(".*")), "a partial checkpoint was not removed"
    with capsys.disabled():
        print(f"\n{kills} kills in {runs} runs on {num_processes} process(es), seed {seed}: all results equal")


@pytest.mark.slow
def test_resume_with_another_number_of_processes(tiny, tmp_path):
    """1, 2, 4, then 1 process: samples and latents of every minibatch are those of a run on one process, and so are
    the losses of a network without normalisation layers, up to rounding."""
    args = ["--data.shards", tiny, *TINY, "--model.options.norm", "none", "--report.every_images", 16]
    args += ["--report.digests", "true"]
    launch(1, *args, "--run_dir", tmp_path / "reference", "--epochs", 4)
    for epochs, num_processes in enumerate((1, 2, 4, 1), 1):
        done = launch(num_processes, *args, "--run_dir", tmp_path / "resumed", "--epochs", epochs)
        assert f"{num_processes} process(es)" in done.stdout
    rows = [metrics(tmp_path / name) for name in ("reference", "resumed")]
    assert [row["images"] for row in rows[0]] == [row["images"] for row in rows[1]] == list(range(16, 321, 16))
    assert [row["digest"] for row in rows[0]] == [row["digest"] for row in rows[1]]
    assert len({row["digest"] for row in rows[0]}) == 20
    for key in ("d_loss", "g_loss"):
        assert max(abs(a[key] - b[key]) for a, b in zip(*rows, strict=True)) < 1e-4


@pytest.mark.slow
def test_hung_process_times_out_and_is_named(tiny, tmp_path):
    args = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 100_000]
    process = start(2, *args, DISTGAN_TIMEOUT_SECONDS="6")
    try:
        while process.poll() is None and not (tmp_path / "run" / "metrics.jsonl").exists():
            time.sleep(0.05)
        other, hung = sorted(children(process.pid))
        os.kill(hung, signal.SIGSTOP)
        start_time = time.monotonic()
        while has_not_exited(other) and time.monotonic() - start_time < 60:
            time.sleep(0.1)
        while process.poll() is None and time.monotonic() - start_time < 90:
            time.sleep(0.1)
            if Path(f"/proc/{hung}").exists():  # let it receive the launcher's SIGTERM
                os.kill(hung, signal.SIGCONT)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert re.search(r"process 0: process 1 is unreachable \(exited or hung\); .*checkpoint", out), out
