"""`distgan ema`: an average of a width as a file, and several evaluated; what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distgan
import distgan.commands.ema
import distgan.commands.evaluate
from distgan.commands.datasets import trained_on
from distgan.generators.batchnorm_statistics import batchnorm_layers, estimate_statistics
from distgan.rng import rng
from helpers import TINY, launch, reset_accelerate, train

EVALUATION = ["--extractor", "pixels", "--samples", 60, "--metrics", "fid"]


def ema(*words: object) -> int:
    reset_accelerate()
    return distgan.commands.ema.main([str(word) for word in words])


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    """A run on three classes, with 20 snapshots of two widths, and of a third that is not to be used."""
    folder = tmp_path_factory.mktemp("averaged") / "run"
    words = ["--data.shards", tiny, "--run_dir", folder, *TINY, "--data.labels", "true", "--epochs", 4]
    words += ["--ema.power_widths", "[0.05, 0.07, 0.1]", "--ema.snapshot_epochs", 0.2, "--g_optimizer.lr", 1e-3]
    assert train(*words) == 0
    (folder / "kept").mkdir()
    for path in folder.glob("ema/*-0.07.safetensors"):
        shutil.move(path, folder / "kept")
    return folder


def test_a_width_is_that_of_an_average_kept_all_along(run, tmp_path, capsys):
    """At the end and before; buffers are those of G there. The file is a generator like any other."""
    out = tmp_path / "a.safetensors"
    for at in (320, 256):
        assert ema(run, "--width", 0.07, "--at", at, "--out", out, "--batchnorm_images", 0) == 0
        line = capsys.readouterr().out
        assert f"of {at // 8} snapshots; at {at} images" in line and "residual of the profile" in line
        kept = load_file(run / f"kept/{at}-0.07.safetensors")
        last = load_file(run / f"ema/{at}-0.1.safetensors")
        for name, tensor in load_file(out).items():
            if "running" in name or "tracked" in name:
                assert torch.equal(tensor, last[name])
            else:
                error = (tensor - kept[name]).norm() / (last[name] - kept[name]).norm()
                assert error < 0.01, (name, float(error))
    assert distgan.load(out).sample(6).shape == (6, 3, 8, 8)


def test_statistics_of_batchnorm_are_those_of_generated_images(run):
    """With them, in evaluation mode, a layer normalizes the same images to mean 0 and variance 1."""
    G = distgan.load(run / "ema/320-0.1.safetensors")
    layers = batchnorm_layers(G)
    before = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    estimate_statistics(G, 200)
    after = {name: tensor.clone() for name, tensor in G.state_dict().items()}
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("running" in name or "tracked" in name for name in changed)
    assert all(layer.training is False and layer.momentum == 0.1 for layer in layers)
    seen = []
    layers[0].register_forward_hook(lambda layer, inputs, output: seen.append(output.clone()))
    G.network(G.draw(200, 0), G.labels(rng(0, "classes of BatchNorm").integers(3, size=200)))
    normalized = (seen[0] - layers[0].bias[:, None, None]) / layers[0].weight[:, None, None]
    torch.testing.assert_close(normalized.mean((0, 2, 3)), torch.zeros(len(layers[0].weight)), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalized.var((0, 2, 3)), torch.ones(len(layers[0].weight)), rtol=0, atol=1e-2)  # eps
    estimate_statistics(G, 200)
    assert all(torch.equal(after[name], tensor) for name, tensor in G.state_dict().items())


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_several_widths_are_evaluated(run, tmp_path, capsys):
    """The card of a width is that of its file; the best one is written."""
    words = [*EVALUATION, "--cache_dir", tmp_path / "cache", "--seed", 5]
    assert ema(run, "--widths", "0.1,0.05,0.15", *words, "--out", tmp_path / "best.safetensors") == 0
    printed = capsys.readouterr().out
    curve = read(run / "ema/curve-320-pixels-fid-n60-seed5.json")
    assert (run / "ema/curve-320-pixels-fid-n60-seed5.png").read_bytes().startswith(b"\x89PNG")
    assert [row["width"] for row in curve["curve"]] == [0.05, 0.1, 0.15] and curve["batchnorm_images"] == 4096
    values = {row["width"]: row["card"]["metrics"]["fd_pixels"] for row in curve["curve"]}
    assert curve["metric"] == "fd_pixels" and values[curve["best"]] == min(values.values())
    assert f"best by fd_pixels: width {curve['best']:g}" in printed and "EMA of G of width 0.15" in printed
    reset_accelerate()
    out = tmp_path / "card.json"
    words = [tmp_path / "best.safetensors", "--data", trained_on(run), *words, "--out", out]
    assert distgan.commands.evaluate.main([str(word) for word in words]) == 0
    card = read(out)
    assert card["metrics"]["fd_pixels"] == pytest.approx(values[curve["best"]], rel=1e-9)
    assert card["generator"]["ema"] is True and card["generator"]["ema_width"] == curve["best"]


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(run, tmp_path):
    words = [run, "--widths", "0.05,0.15", *EVALUATION]
    assert ema(*words, "--cache_dir", tmp_path / "1", "--curve", tmp_path / "1.json") == 0
    launch(2, *words, "--cache_dir", tmp_path / "2", "--curve", tmp_path / "2.json", script="ema.py")
    one, two = read(tmp_path / "1.json"), read(tmp_path / "2.json")
    for first, second in zip(one["curve"], two["curve"], strict=True):
        assert second["card"]["code"]["processes"] == 2 and first["residual"] == second["residual"]
        assert first["card"]["metrics"] == pytest.approx(second["card"]["metrics"], rel=1e-9)


REFUSED = [
    (["--width", 0.3, "--out", "a.safetensors"], "width: no average has the width 0.3"),
    (["--width", 0.002, "--out", "a.safetensors"], "width: 0.002 is too far from what there is: 40 snapshots of the"),
    (["--width", 0.1], "out: give the file to write, as --out FILE.safetensors"),
    (["--width", 0.1, "--out", "a.pt"], "out: a.pt must end in .safetensors"),
    (["--width", 0.1, "--at", 100, "--out", "a.safetensors"], "at: there is no snapshot at 100 images"),
    (["--width", 0.1, "--out", "a.safetensors", "--samples", 9], "samples: it is of the evaluations of --widths"),
    (["--width", 0.1, "--widths", "0.1"], "give --width WIDTH and --out FILE.safetensors, or --widths"),
    (["--widths", "0.1,x"], "widths: '0.1,x' is no list of numbers"),
    (["--widths", "0.1,0.4", *EVALUATION], "width: no average has the width 0.4"),
    (["--widths", "0.1", "--curve", "a.png"], "curve: a.png must end in .json"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_refusals_are_one_line(run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert ema(run, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distgan: {message}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_without_snapshots_is_refused(tmp_path, capsys):
    assert ema(tmp_path, "--width", 0.1, "--out", tmp_path / "a.safetensors") == 2
    assert (
        "has no snapshots of averages; give a run that was trained with --ema.power_widths" in capsys.readouterr().err
    )
