"""Numbers that are none, injected at a known image: the run stops there and names the culprit; or rolls back."""

import subprocess
import sys

import pytest
import torch

import distgan.train
from distgan.gan.step import Minibatch
from shared import ROOT, TINY, launch_env, metrics, train, weights

AT = 240  # images; the third epoch of 80 ends there


def overflow(optimizer: torch.optim.Optimizer, *_: object) -> None:
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad.fill_(float("inf"))


def inject(monkeypatch, what: str, at: int = AT, once: bool = False) -> None:
    """Spoil the data or the gradients of the iteration that follows image `at`, or the weights of D or G there."""
    step, left = distgan.train.train_step, [1 if once else 10**9]
    seen = [0]

    def spoiled(gan, parts):
        now = seen[0] == at and left[0] > 0
        left[0] -= now
        if now and what == "data":
            parts = [Minibatch(part.real * float("nan"), *part[1:]) for part in parts]
        elif now and what == "gradient":
            gan.d_optimizer.optimizer.register_step_pre_hook(overflow)
        scalars = step(gan, parts)
        seen[0] += 16
        if seen[0] == at and what in "DG":
            with torch.no_grad():
                {"D": gan.D, "G": gan.G}[what].get_parameter("layers.0.weight")[0, 0, 0, 0] = float("nan")
        return scalars

    monkeypatch.setattr(distgan.train, "train_step", spoiled)


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("D", "the weights of D.layers.0.weight were not finite"),
        ("G", "the weights of G.layers.0.weight were not finite"),
        ("data", "the real images, or what D made of them, were not finite"),
        ("gradient", "D's update ended in weights that are not finite"),
    ],
)
def test_it_stops_at_that_iteration_and_names_it(tiny, tmp_path, monkeypatch, capsys, what, cause):
    inject(monkeypatch, what, AT + 16)
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--batch", 16, "--model.options.width", 8]
    assert train(*words, "--epochs", 10) == 1
    error = capsys.readouterr().err
    assert f"the iteration up to image {AT + 32} is not finite" in error and cause in error and error.count("\n") == 1
    assert f"checkpoints/{AT} stands" in error and weights(tmp_path / "run")["images"] == AT


def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path, monkeypatch, capsys):
    inject(monkeypatch, "G")
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 10) == 1
    assert f"at image {AT} the weights of G.layers.0.weight are not finite" in capsys.readouterr().err
    assert weights(tmp_path / "run")["images"] == AT - 80


def test_after_it_stopped_the_same_command_gives_the_undisturbed_run(trained, tiny, tmp_path, monkeypatch):
    whole = trained("--epochs", 5, name="whole")
    with monkeypatch.context() as spoiled:
        inject(spoiled, "G", AT + 16)
        assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 5) == 1
    assert weights(trained("--epochs", 5)) == weights(whole)


def test_with_rollback_it_finishes(trained, tmp_path, monkeypatch, capsys):
    inject(monkeypatch, "data", once=True)
    run = trained("--epochs", 6, "--guard.rollbacks", 2, "--report.every_images", 16)
    assert "rollback 1 of 2" in capsys.readouterr().out
    assert [row["images"] for row in metrics(run)] == list(range(16, 481, 16))  # each once
    monkeypatch.undo()
    assert weights(run) != weights(trained("--epochs", 6, name="whole"))  # other latents after image AT


def test_rollbacks_are_counted(tiny, tmp_path, monkeypatch, capsys):
    step = distgan.train.train_step
    monkeypatch.setattr(
        distgan.train, "train_step", lambda gan, parts: {k: v * float("nan") for k, v in step(gan, parts).items()}
    )
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 2]
    assert train(*words, "--guard.rollbacks", 3) == 1
    assert "there is no checkpoint yet" in capsys.readouterr().err
    monkeypatch.undo()
    assert train(*words, "--epochs", 1) == 0
    monkeypatch.setattr(
        distgan.train, "train_step", lambda gan, parts: {k: v * float("nan") for k, v in step(gan, parts).items()}
    )
    assert train(*words, "--guard.rollbacks", 3) == 1
    out, err = capsys.readouterr()
    assert "rollback 3 of 3" in out and "rollback 4" not in out and "checkpoints/80 stands" in err


DRIFT = """
import sys, torch
import distgan.train as train
step = train.train_step
seen = [0]
def spoiled(gan, parts):
    scalars = step(gan, parts)
    seen[0] += 16
    if seen[0] == 64 and WHAT == "drift" and train.dist.get_rank() == 1:
        with torch.no_grad():
            next(gan.critic.parameters())[0, 0, 0, 0] += 1e-7
    if seen[0] == 64 and WHAT == "nan" and train.dist.get_rank() == 1:
        scalars["d_loss"] = scalars["d_loss"] * float("nan")
    return scalars
train.train_step = spoiled
sys.exit(train.main())
"""


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("drift", "the processes drifted apart: the weights of process 0 and of process 1 differ"),
        ("nan", "the iteration up to image 64 is not finite"),
    ],
)
def test_on_two_processes(tiny, tmp_path, what, message):
    (tmp_path / "spoiled.py").write_text(DRIFT.replace("WHAT", repr(what)))
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(ROOT / "launch/accelerate/cpu.yaml"),
    ]
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 100, "--report.every_images", 80]
    command += ["--main_process_port", "0", str(tmp_path / "spoiled.py"), *map(str, words)]
    env = launch_env(PYTHONPATH=str(ROOT))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode != 0 and message in done.stderr, done.stderr
