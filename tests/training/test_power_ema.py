"""Averages by power functions in a run: what is kept, resumed, written, counted, and refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training.test_finite import inject

import distgan
from distgan.config.keys import Config, EMAConfig, ModelConfig
from distgan.errors import UsageError
from distgan.models import build, count_parameters
from distgan.runs.checkpoint import load_weights
from distgan.samples import SampleSpec
from distgan.training.checks import check_config
from distgan.training.cost import estimate_cost
from helpers import TINY, launch, snapshots, train, weights

WIDTHS = ["--ema.power_widths", "[0.05, 0.1]", "--ema.snapshot_epochs", 0.5]


def images_of(run: Path) -> list[int]:
    """The times of the snapshots of each width."""
    times = {name: name.removesuffix(".safetensors").split("-") for name in snapshots(run)}
    assert {width for _, width in times.values()} == {"0.05", "0.1"}
    return sorted({int(images) for images, _ in times.values()})


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """A run of three epochs of 80 images, with a snapshot every 40, each after the iteration of 16 that reached it."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train("--data.shards", tiny, "--run_dir", folder, *TINY, *WIDTHS, "--epochs", 3) == 0
    return folder


def test_a_resumed_run_has_the_same_averages_and_snapshots(whole, trained):
    """Also of those after the checkpoint that it resumes from: they are written again."""
    trained(*WIDTHS, "--epochs", 2)
    run = trained(*WIDTHS, "--epochs", 2)
    assert images_of(run) == [48, 80, 128, 160]
    (run / "ema" / "128-0.1.safetensors").write_bytes(b"of another trajectory")
    (run / "ema" / "144-0.1.safetensors").write_bytes(b"of another cadence")
    (run / "ema" / ".160-0.1.safetensors.tmp").write_bytes(b"of a kill")
    (run / "checkpoints" / "160" / "state.json").unlink()  # it resumes at 80
    trained(*WIDTHS, "--epochs", 3)
    assert images_of(run) == [48, 80, 128, 160, 208, 240] and snapshots(run) == snapshots(whole)
    assert weights(run) == weights(whole) and "power_ema.safetensors" in weights(run)
    for name in ("generator", "discriminator", "ema"):  # the averages change nothing else
        plain = load_file(trained("--epochs", 3, name="plain") / f"checkpoints/240/{name}.safetensors")
        kept = load_file(run / f"checkpoints/240/{name}.safetensors")
        assert all(torch.equal(plain[key], kept[key]) for key in plain | kept)


def test_a_snapshot_is_the_average_in_the_checkpoint_and_a_generator(whole):
    for width in ("0.05", "0.1"):
        snapshot, metadata = load_weights(whole / "ema" / f"240-{width}.safetensors")
        state = load_file(whole / "checkpoints/240/power_ema.safetensors")
        assert all(torch.equal(snapshot[name], state[f"{width}.{name}"]) for name in snapshot)
        assert (metadata.images, metadata.ema_width) == (240, float(width))
    assert len(state) == 2 * len(snapshot)
    assert distgan.load(whole / "ema" / "240-0.1.safetensors").sample(4).shape == (4, 3, 8, 8)


def test_a_rollback_replaces_later_snapshots(whole, trained, monkeypatch):
    inject(monkeypatch, "data", at=224, once=True)
    run = trained(*WIDTHS, "--epochs", 3, "--guard.rollbacks", 1, "--checkpoint.wait", "true")
    after, before = snapshots(run), snapshots(whole)
    assert after.keys() == before.keys()
    assert {int(name.split("-")[0]) for name in after if after[name] != before[name]} == {208, 240}


@pytest.mark.slow
def test_two_processes_have_the_snapshots_of_one(tiny, tmp_path):
    words = ["--data.shards", tiny, *TINY, *WIDTHS, "--epochs", 1, "--model.options.norm", "group"]
    launch(1, *words, "--run_dir", tmp_path / "one", "--micro_batch", 8)
    launch(2, *words, "--run_dir", tmp_path / "two", "--micro_batch", 8)
    assert images_of(tmp_path / "one") == [48, 80] and snapshots(tmp_path / "one") == snapshots(tmp_path / "two")


def test_the_estimate_of_memory_counts_the_copies():
    spec = SampleSpec(32, 32, 3)
    model = ModelConfig(latent=16, options={"width": 32})
    without = estimate_cost(Config(batch=4, model=model), spec, 1)
    keys = Config(batch=4, model=model, ema=EMAConfig(power_widths=[0.05, 0.1, 0.2]))
    G, _ = build("dcgan", spec, z_dim=16, options=model.options, seed=0)
    copies = 3 * 4 * count_parameters(G)
    assert estimate_cost(keys, spec, 1).memory - without.memory == pytest.approx(copies, rel=0.05)


def test_refusals(whole, tiny, tmp_path, capsys):
    for widths, message in (
        ([0.3], "ema.power_widths: 0.3 is too wide: the mean of all weights so far has the width 0.2887"),
        ([0.1, 0.1], "ema.power_widths: [0.1, 0.1] has a width twice; give each once"),
    ):
        with pytest.raises(UsageError) as error:
            check_config(Config(ema=EMAConfig(power_widths=widths)))
        assert str(error.value).startswith(message)
    words = ["--data.shards", tiny, "--run_dir", whole, *TINY, "--epochs", 4]
    assert train(*words, "--ema.power_widths", "[0.05, 0.2]") == 2
    assert "ema.power_widths [0.05, 0.1] -> [0.05, 0.2]" in capsys.readouterr().err
    assert train(*words, "--ema.power_widths", "[0.05, 0.2]", "--resume.override", "true") == 2
    error = capsys.readouterr().err
    assert "has no average of the width 0.2, and an average cannot begin in the middle of a run" in error
    assert error.count("\n") == 1


def test_a_snapshot_that_cannot_be_written_ends_the_run_with_a_checkpoint(trained, tiny, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "ema").write_text("no folder")
    assert train("--data.shards", tiny, "--run_dir", run, *TINY, *WIDTHS, "--checkpoint.wait", "true") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("distgan: a snapshot could not be written") and printed.err.count("\n") == 1
    assert "latest checkpoint: 80 images" in printed.err and "a snapshot could not be written" in printed.out
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["80"]
