"""NaN and Inf injected at a known image: the run stops there and names the cause, or rolls back."""

import subprocess
import sys

import pytest
import torch

import distgan.training.iteration
from distgan.gan.parts import Minibatch
from helpers import ROOT, TINY, launch_env, metrics, train, weights

AT = 240  # images; the third epoch of 80 ends there


def overflow(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad.fill_(float("inf"))


def inject(monkeypatch, what: str, at: int = AT, once: bool = False) -> None:
    """Put NaN or Inf into the data or the gradients of the iteration after image `at`, or into the weights there."""
    step, left = distgan.training.iteration.train_step, [1 if once else 10**9]
    seen = [0]

    def faulty(gan, batches, *rest):
        now = seen[0] == at and left[0] > 0
        left[0] -= now
        if now and what == "data":
            nan = [Minibatch(batch.real * float("nan"), *batch[1:]) for batch in batches.d[0]]
            batches = batches._replace(d=[nan])
        elif now and what == "gradient":
            gan.d_optimizer.optimizer.register_step_pre_hook(overflow)
        scalars = step(gan, batches, *rest)
        seen[0] += 16
        if seen[0] == at and what in "DG":
            with torch.no_grad():
                {"D": gan.D, "G": gan.G}[what].get_parameter("layers.0.weight")[0, 0, 0, 0] = float("nan")
        return scalars

    monkeypatch.setattr(distgan.training.iteration, "train_step", faulty)


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("D", "the weights D.layers.0.weight were not finite before it"),
        ("G", "the weights G.layers.0.weight were not finite before it"),
        ("data", "(d_real, d_loss, d_grad_norm, g_loss, g_grad_norm): first in d_real"),
        ("gradient", "(g_loss, g_grad_norm): first in g_loss: probably the update of D left non-finite weights"),
    ],
)
def test_the_run_stops_at_that_iteration_and_names_the_cause(tiny, tmp_path, monkeypatch, capsys, what, cause):
    inject(monkeypatch, what, AT + 16)
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--batch", 16, "--model.options.width", 8]
    assert train(*words, "--epochs", 10) == 1
    error = capsys.readouterr().err
    assert f"NaN or Inf in the iteration up to image {AT + 32}" in error and cause in error and error.count("\n") == 1
    assert f"latest checkpoint: {AT} images" in error and weights(tmp_path / "run")["images"] == AT


def test_non_finite_weights_are_not_saved(tiny, tmp_path, monkeypatch, capsys):
    inject(monkeypatch, "G")
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 10) == 1
    assert f"NaN or Inf after {AT} images in the weights G.layers.0.weight" in capsys.readouterr().err
    assert weights(tmp_path / "run")["images"] == AT - 80


def test_after_a_stop_the_same_command_gives_the_uninterrupted_run(trained, tiny, tmp_path, monkeypatch):
    whole = trained("--epochs", 5, name="whole")
    with monkeypatch.context() as faulty:
        inject(faulty, "G", AT + 16)
        assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 5) == 1
    assert weights(trained("--epochs", 5)) == weights(whole)


def test_with_rollback_the_run_finishes(trained, tmp_path, monkeypatch, capsys):
    inject(monkeypatch, "data", once=True)
    run = trained("--epochs", 6, "--guard.rollbacks", 2, "--report.every_images", 16)
    assert "rollback 1 of 2" in capsys.readouterr().out
    assert [row["images"] for row in metrics(run)] == list(range(16, 481, 16))  # each once
    monkeypatch.undo()
    assert weights(run) != weights(trained("--epochs", 6, name="whole"))  # other latents after the rollback


def test_rollbacks_are_limited(tiny, tmp_path, monkeypatch, capsys):
    step = distgan.training.iteration.train_step

    def faulty(gan, batches, *rest):
        return {name: value * float("nan") for name, value in step(gan, batches, *rest).items()}

    monkeypatch.setattr(distgan.training.iteration, "train_step", faulty)
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 2]
    assert train(*words, "--guard.rollbacks", 3) == 1
    assert "there is no checkpoint yet" in capsys.readouterr().err
    monkeypatch.undo()
    assert train(*words, "--epochs", 1) == 0
    monkeypatch.setattr(distgan.training.iteration, "train_step", faulty)
    assert train(*words, "--guard.rollbacks", 3) == 1
    out, err = capsys.readouterr()
    assert "rollback 3 of 3" in out and "rollback 4" not in out and "latest checkpoint: 80 images" in err


FAULTY = """
import sys, torch, torch.distributed as dist
import distgan.commands.train
import distgan.training.iteration as iteration
step = iteration.train_step
seen = [0]
def faulty(gan, batches, *rest):
    scalars = step(gan, batches, *rest)
    seen[0] += 16
    if seen[0] == 64 and WHAT == "out of sync" and dist.get_rank() == 1:
        with torch.no_grad():
            next(gan.raw_D.parameters())[0, 0, 0, 0] += 1e-7
    if seen[0] == 64 and WHAT == "nan" and dist.get_rank() == 1:
        scalars["d_loss"] = scalars["d_loss"] * float("nan")
    return scalars
iteration.train_step = faulty
sys.exit(distgan.commands.train.main())
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("out of sync", "processes out of sync after 80 images: the weights of process 0 and of process 1 differ"),
        ("nan", "NaN or Inf in the iteration up to image 64"),
    ],
)
def test_on_two_processes(tiny, tmp_path, what, message):
    (tmp_path / "faulty.py").write_text(FAULTY.replace("WHAT", repr(what)))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "launch/accelerate/cpu.yaml"),
    ]
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 100, "--report.every_images", 80]
    command += ["--main_process_port", "0", str(tmp_path / "faulty.py"), *map(str, words)]
    env = launch_env(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode != 0 and message in done.stderr, done.stderr
