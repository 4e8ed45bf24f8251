"""`distgan nearest`: its files and errors, the same on one and two processes; and the test during a run."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import distgan.commands.nearest
from distgan.logs.alarms import Alarms
from helpers import TINY, computed, launch, make_dataset, metrics, noise, reset_accelerate, train


def nearest(*words: object) -> int:
    reset_accelerate()
    return distgan.commands.nearest.main([str(word) for word in words])


@pytest.fixture(scope="module")
def held_out(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("held out") / "set", noise(50, seed=5))


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Path:
    """In three chunks."""
    return make_dataset(tmp_path_factory.mktemp("training") / "set", noise(300))


def keys(tiny: Path) -> list[object]:
    """Of a run that is evaluated by pixels, with 30 images against the training set."""
    evaluations = ["--evaluate.every_epochs", 1, "--evaluate.extractor", "pixels", "--evaluate.samples", 40]
    return ["--data.shards", tiny, *TINY, "--data.labels", "true", *evaluations, "--evaluate.nearest", 30]


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nearest") / "run"
    words = ["--run_dir", folder, "--epochs", 3, "--evaluate.cache_dir", folder.parent / "cache"]
    assert train(*keys(tiny), *words) == 0
    return folder


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_run_is_tested_at_each_evaluation(run):
    rows = [row for row in metrics(run) if "copied" in row]
    assert [row["images"] for row in rows] == [80, 160, 240]
    assert all(0 <= row["copied"] <= 1 and 0 <= row["closer"] <= 1 and row["copying_z"] for row in rows)
    assert sorted(path.name for path in run.glob("samples/nearest-*")) == [f"nearest-000{i}.png" for i in (1, 2, 3)]


def test_the_images_of_the_grid(run, capsys):
    """They are the first ones of the test in the run too."""
    assert nearest(run, "--grid", "--extractor", "pixels", "--rows", 4) == 0
    line, sheet, card = capsys.readouterr().out.splitlines()
    assert sheet == str(run / "cards/nearest-240-grid-pixels.png") and card == str(Path(sheet).with_suffix(".json"))
    assert line.startswith("copied ")
    assert "EMA of G at 240 images; 16 generated, 80 training images; 80 held out" in line
    found = read(Path(card))
    assert len(found["images"]) == 16 and found["held_out"] == "training images against the others"
    shown = read_picture(Path(sheet))
    grid = read_picture(run / "samples/fake-0003.png")
    assert shown.shape == (4 * 10 + 2, 4 * 10 + 2, 3)
    number = found["images"][0]["image"]
    y, x = (2 + 10 * place for place in divmod(number, 4))
    assert (grid[y : y + 8, x : x + 8] == shown[2:10, 2:10]).all()
    of_grid = {grid[y : y + 8, x : x + 8].tobytes() for y in range(2, 42, 10) for x in range(2, 42, 10)}
    sheet_of_run = read_picture(run / "samples/nearest-0003.png")
    of_run = {sheet_of_run[y : y + 8, 2:10].tobytes() for y in range(2, 162, 10)}
    assert len(of_run) == 16 and 2 <= len(of_run & of_grid) < 16  # 16 of 30, of which 16 are of the grid


def test_a_stopped_run_looks_for_copies_again_and_logs_the_same(run, tiny, tmp_path):
    """The labels and latents of the grid come first, then those of evaluations."""
    words = [*keys(tiny), "--run_dir", tmp_path / "parts", "--evaluate.cache_dir", run.parent / "cache"]
    for epochs in (1, 3):
        assert train(*words, "--epochs", epochs) == 0
    rows = [[row for row in computed(folder) if "copied" in row] for folder in (run, tmp_path / "parts")]
    assert rows[0] == rows[1]
    sheets = [(folder / "samples/nearest-0003.png").read_bytes() for folder in (run, tmp_path / "parts")]
    assert sheets[0] == sheets[1]


@pytest.mark.slow
def test_two_processes_find_what_one_does(training, held_out, tmp_path):
    """In three chunks of training images, also mirrored."""
    words = ["--generated", held_out, "--data", training, "--flip", "true", "--extractor", "pixels", "--samples", 40]
    assert nearest(*words, "--out", tmp_path / "1.png") == 0
    launch(2, *words, "--out", tmp_path / "2.png", script="nearest.py")
    one, two = read(tmp_path / "1.json"), read(tmp_path / "2.json")
    assert (one["code"]["processes"], two["code"]["processes"]) == (1, 2)
    assert one["images"] == two["images"] and one["summary"] == two["summary"] and one["counts"] == two["counts"]
    assert any(each.get("mirrored") for row in one["images"] for each in row["nearest"])
    assert (tmp_path / "1.png").read_bytes() == (tmp_path / "2.png").read_bytes()


def test_images_that_are_the_training_images(training, held_out, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--generated", training, "--data", training, "--held_out", held_out, "--extractor", "pixels"]
    assert nearest(*words) == 0
    assert capsys.readouterr().out.startswith("copied 100.0% (2.0% expected), closer 1.000 (0.5 expected), z ")
    card = read(tmp_path / "nearest.json")
    assert all(row["distance"] == 0 and row["nearest"][0]["id"] == row["image"] for row in card["images"])
    assert card["counts"] == {"generated": 64, "training": 300, "held_out": 50}
    assert card["held_out"] == str(held_out) and len(card["held_out_manifest"]) == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a run folder or a .safetensors file, or images with --generated ADDRESS"),
        (["--generated", "SET"], "data: give the dataset"),
        (["--generated", "none", "--data", "SET"], "generated: there is nothing at none"),
        (["--generated", "SET", "--data", "none"], "data: there is nothing at none"),
        (["--generated", "SET", "--data", "SET", "--held_out", "none"], "held_out: there is nothing at none"),
        (["--generated", "SET", "--data", "SET", "--grid"], "grid: only a run folder has grids"),
        (["RUN", "--grid", "--samples", "9"], "samples: with --grid the images are those of the grid"),
        (["a.safetensors", "--generated", "SET"], "generated: its images are in place of those of a.safetensors"),
        (["RUN", "--out", "a.jpg"], "out: a.jpg must end in .png"),
        (["RUN", "--show", "4"], "show: .4. is not one"),
    ],
)
def test_bad_input_is_named_in_one_line(words, message, run, training, capfd):
    named = {"SET": training, "RUN": run}
    assert nearest(*(named.get(word, word) for word in words), "--extractor", "pixels") == 2
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("distgan: ") and re.search(message, line), line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--evaluate.nearest", 30], "evaluate.nearest: there are no evaluations; set evaluate.every_epochs"),
        (["--evaluate.held_out", "SET"], "evaluate.held_out: nothing is compared with it; set evaluate.nearest"),
        (["EVALUATED", "--evaluate.nearest", 19], "evaluate.nearest: 19 images are too few; give 20 or more"),
        (
            ["EVALUATED", "--evaluate.nearest", 20, "--evaluate.held_out", "none"],
            "evaluate.held_out: there is nothing at none",
        ),
    ],
)
def test_keys_that_do_not_go_together(words, message, tiny, held_out, tmp_path, capfd):
    evaluated = ["--evaluate.every_epochs", 1, "--evaluate.extractor", "pixels"]
    given = [word for each in words for word in (evaluated if each == "EVALUATED" else [each])]
    given = [held_out if word == "SET" else word for word in given]
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, *given) == 2
    assert message in capfd.readouterr().err


def test_the_alarm_for_copies_is_raised_once_and_again_after_it_cleared():
    alarms = Alarms([], absolute=False)
    row = {"d_loss": 1.0, "d_real": 0.5, "d_fake": 0.5}

    def check(copied: float, expected: float = 0.01) -> list[str]:
        return alarms.check_copying({"copied": copied, "copied_expected": expected})

    assert check(0.04) == []
    [text] = check(0.31)
    assert text.startswith("generated images copy the training set: 31% are closer to a training image than 99%")
    assert alarms.check(row) == check(0.4) == alarms.check(row) == []
    assert not alarms.collapsed
    assert check(0.02) == [] and len(check(0.06)) == 1
    assert check(0.2, expected=1 / 21) == []  # of 20 held-out images
    alarms.clear()
    assert len(check(0.2)) == 1
