"""fp16's loss scaling, with torch's GradScaler on a CPU: scale and skipped updates in the log, stalled runs."""

import itertools

import pytest
import torch

import distgan.distributed.processes
from distgan.runs.checkpoint import load
from helpers import TINY, metrics, train, weights


@pytest.fixture
def scaler(monkeypatch):
    """Gives the run a GradScaler on the CPU, as Accelerate gives it one on a GPU."""
    initialize = distgan.distributed.processes.Distributed.__init__

    def arrange(scale: float) -> None:
        def patched(self, config):
            initialize(self, config)
            self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=7)

        monkeypatch.setattr(distgan.distributed.processes.Distributed, "__init__", patched)

    return arrange


@pytest.fixture
def overflow(monkeypatch):
    """Makes the gradients of every n-th update infinite."""
    check, count = torch.amp.GradScaler._check_inf_per_device, itertools.count(1)

    def arrange(every: int) -> None:
        def patched(self, optimizer):
            if next(count) % every == 0:
                for parameter in (p for group in optimizer.param_groups for p in group["params"]):
                    parameter.grad.fill_(float("inf"))
            return check(self, optimizer)

        monkeypatch.setattr(torch.amp.GradScaler, "_check_inf_per_device", patched)

    return arrange


def test_the_loss_scale_and_skipped_updates_are_logged(scaler, overflow, trained):
    """The weights and Adam's step counts are those of the updates that were not skipped; a resumed run is the same."""
    scaler(2.0**16)
    overflow(every=10)  # an epoch has ten updates: each epoch is alike, also after a resume
    run = trained("--epochs", 4, "--report.every_images", 80)
    rows = metrics(run)
    skipped = [row["fp16_skipped_steps"] for row in rows]
    optimizers = load(run / "checkpoints" / "320")[0]["optimizers"]
    steps = sum(optimizers[f"{name}.layers.0.weight.step"].item() for name in ("generator", "discriminator"))
    assert skipped == [1, 1, 1, 1] and steps == 2 * 20 - 4  # 20 iterations, one update of D and one of G in each
    assert all(2.0**10 < row["fp16_scale"] < 2.0**20 for row in rows)
    resumed = trained("--epochs", 2, "--report.every_images", 80, name="resumed")
    assert weights(trained("--epochs", 4, "--report.every_images", 80, name="resumed")) == weights(run)
    assert [row["fp16_skipped_steps"] for row in metrics(resumed)] == skipped


def test_gradients_that_always_overflow_end_the_run(scaler, overflow, tiny, tmp_path, capsys):
    """Nothing would be learned, and the run would end with exit code 0."""
    scaler(2.0**16)
    overflow(every=1)
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 20) == 1
    error = capsys.readouterr().err
    assert "precision: gradients overflow in fp16 at every loss scale (now " in error and error.count("\n") == 1
