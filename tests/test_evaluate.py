"""`distgan evaluate`: the same numbers on every number of processes, cards in the run folder, one-line errors."""

import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

import distgan.commands.evaluate
from distgan.commands.evaluate_options import Options
from distgan.dataset_tool import make
from distgan.dataset_tool.sources.source import from_arrays
from helpers import (
    TINY,
    children,
    fill,
    launch,
    make_arrays,
    make_dataset,
    metrics,
    noise,
    reset_accelerate,
    showers,
    start,
    train,
)


def evaluate(*words: object) -> int:
    reset_accelerate()
    return distgan.commands.evaluate.main([str(word) for word in words])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """240 images of 8x8 pixels in three classes, told apart by their brightness."""
    labels = np.arange(240) % 3
    images = noise(240) // 3 + (80 * labels[:, None, None, None]).astype(np.uint8)
    folder = tmp_path_factory.mktemp("shades") / "set"
    make.make(from_arrays("shades", images, labels, ["dark", "grey", "bright"]), folder, make.Options(), 1)
    return folder


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    words = ["--data.shards", dataset, "--run_dir", folder, *TINY, "--images", 320, "--data.labels", "true"]
    assert train(*words) == 0
    return folder


@pytest.fixture(scope="module")
def cache(dataset, tmp_path_factory) -> Path:
    """With a classifier, by the command."""
    folder = tmp_path_factory.mktemp("cache")
    assert evaluate("--train_extractor", dataset, "--train_images", 6000, "--cache_dir", folder) == 0
    assert len(list((folder / "extractors").glob("*.safetensors"))) == 1
    return folder


ALL = "fid,kid,is,precision_recall,density_coverage,modes"


def read_card(path: Path) -> dict:
    return json.loads(path.read_text())


def test_two_processes_give_the_numbers_of_one(run, cache, tmp_path):
    """Also of the real images, whose statistics each computes for itself."""
    caches = [tmp_path / "one", tmp_path / "two"]
    for folder in caches:
        shutil.copytree(cache / "extractors", folder / "extractors")
    words = [run, "--metrics", ALL, "--samples", 500, "--seed", 3]
    assert evaluate(*words, "--cache_dir", caches[0], "--out", tmp_path / "1.json") == 0
    launch(2, *words, "--cache_dir", caches[1], "--out", tmp_path / "2.json", script="evaluate.py")
    one, two = read_card(tmp_path / "1.json"), read_card(tmp_path / "2.json")
    assert (one["code"]["processes"], two["code"]["processes"]) == (1, 2)
    assert one["metrics"] == pytest.approx(two["metrics"], rel=1e-9)
    assert one["floor"] == pytest.approx(two["floor"], rel=1e-9)
    for key in ("counts", "histogram", "missing", "extractor", "data", "seed"):
        assert one[key] == two[key], key
    assert one["counts"] == {"generated": 500, "reference": 240, "rows": 240, "floor": 120}


@pytest.fixture(scope="module")
def calorimeter(tmp_path_factory) -> Path:
    """200 showers, float32 6x10x2, with an energy and a flag."""
    images, numbers = showers(200)
    folder = tmp_path_factory.mktemp("showers") / "set"
    make_arrays(folder, images, numbers=numbers, range="0,20")
    return folder


@pytest.fixture(scope="module")
def conditional_run(calorimeter, tmp_path_factory) -> Path:
    """A perceptron that takes the energy and the flag; evaluated during the run too."""
    folder = tmp_path_factory.mktemp("conditional") / "run"
    words = ["--data.shards", calorimeter, "--run_dir", folder, *TINY, "--model.name", "mlp", "--images", 320]
    words += ["--evaluate.every_epochs", 1, "--evaluate.extractor", "pixels", "--evaluate.samples", 100]
    assert train(*words, "--data.labels", "true", "--evaluate.cache_dir", folder.parent) == 0
    return folder


def test_a_run_on_numbers_is_evaluated_by_pixels(conditional_run):
    cards = [row["card"] for row in metrics(conditional_run) if "card" in row]
    assert len(cards) == 2 and cards[0]["metrics"].keys() == {"fd_pixels", "precision", "recall"}
    assert json.loads((conditional_run / "best.json").read_text())["metric"] == "fd_pixels"


@pytest.mark.slow
def test_bins_of_two_processes_are_those_of_one(conditional_run, tmp_path, capsys):
    words = [conditional_run, "--extractor", "pixels", "--by", "energy", "--bins", 3]
    assert evaluate(*words, "--cache_dir", tmp_path / "one") == 0
    lines = capsys.readouterr().out.splitlines()
    file = conditional_run / "cards/320-pixels-by-energy-3.json"
    assert lines[-1] == str(file) and [line.split()[0] for line in lines[-4:-1]] == ["energy"] * 3
    launch(2, *words, "--cache_dir", tmp_path / "two", "--out", tmp_path / "2.json", script="evaluate.py")
    one, two = read_card(file), read_card(tmp_path / "2.json")
    assert len(one["bins"]) == 3 and one["by"] == two["by"] == "energy"
    for first, second in zip([one, *one["bins"]], [two, *two["bins"]], strict=True):
        assert first["counts"] == second["counts"]
        for key in ("metrics", "floor"):
            assert first[key] == pytest.approx(second[key], rel=1e-9)
        for key in ("generated", "real"):
            assert first["image_sum"][key] == pytest.approx(second["image_sum"][key], rel=1e-9)
    assert [(row["low"], row["high"]) for row in one["bins"]] == [(row["low"], row["high"]) for row in two["bins"]]


def test_a_test_set_has_the_conditions_of_the_training_set(conditional_run, calorimeter, tmp_path, capsys):
    """Its numbers are standardized as in training: other energies alone make other labels, and no error."""
    images, numbers = showers(60, seed=1)
    sets = {
        "test": numbers | {"energy": numbers["energy"] + 50},
        "fewer": {"energy": numbers["energy"]},
        "half": numbers | {"electron": numbers["electron"] / 2},
    }
    for name, columns in sets.items():
        make_arrays(tmp_path / name, images, numbers=columns, range="0,20")
    make_arrays(tmp_path / "wide", images, numbers=numbers, range="0,30")
    words = [conditional_run, "--extractor", "pixels", "--cache_dir", tmp_path / "cache"]
    assert evaluate(*words, "--data", tmp_path / "test", "--out", tmp_path / "card.json") == 0
    assert read_card(tmp_path / "card.json")["counts"]["reference"] == 60
    capsys.readouterr()
    for more, message in (
        (["--data", tmp_path / "fewer"], "are energy; the generator was trained with energy, electron"),
        (["--data", tmp_path / "half"], "electron of"),
        (["--data", tmp_path / "wide"], "6x10x2 float32 in [0, 30], the generator makes 6x10x2 float32 in [0, 20]"),
        (["--by", "angle"], "by: unknown condition 'angle'; choose from energy, electron"),
        (["--bins", 3], "bins: give the condition to make them by, as --by CONDITION"),
        (["--extractor", "inception"], "the extractor pixels takes any"),
        (["--extractor", "classifier"], "the dataset has no classes for a classifier"),
    ):
        assert evaluate(*words, *more) == 2, more
        error = capsys.readouterr().err
        assert error.startswith("distgan: ") and message in error and error.count("\n") == 1, error


@pytest.mark.slow
def test_four_processes_give_the_numbers_of_one(run, cache, tmp_path):
    cards = []
    for processes in (1, 4):
        out = tmp_path / f"{processes}.json"
        words = [run, "--metrics", ALL, "--samples", 700, "--cache_dir", cache, "--out", out]
        launch(processes, *words, script="evaluate.py")
        cards.append(read_card(out))
    assert cards[0]["metrics"] == pytest.approx(cards[1]["metrics"], rel=1e-9)


def test_a_run_folder_needs_no_other_word(run, dataset, cache, capsys, monkeypatch):
    """The data are those of its configuration, the weights its EMA; the card lies in the run."""
    monkeypatch.setenv("HOME", str(cache / "home"))
    shutil.copytree(cache / "extractors", cache / "home/.cache/distgan/extractors")
    assert evaluate(run) == 0
    line, path = capsys.readouterr().out.splitlines()[-2:]
    assert path == str(run / "cards" / "320-classifier.json")
    card = read_card(Path(path))
    assert evaluate(run, "--metrics", "modes,fid", "--seed", 1) == 0
    assert (run / "cards/320-classifier-modes-fid-seed1.json").is_file() and read_card(Path(path)) == card
    assert card["generator"] == {
        "file": str(run / "checkpoints/320/ema.safetensors"),
        "images": 320,
        "ema": True,
        "truncation_psi": 1.0,
        "labels": "as in the dataset",
    }
    assert card["data"]["path"] == str(dataset) and card["metrics"].keys() >= {"fd_classifier", "recall", "modes"}
    assert "EMA of G; at 320 images" in line or "EMA of G at 320 images" in line
    file = run / "checkpoints/320/generator.safetensors"
    assert evaluate(file, "--data", dataset) == 0
    assert "| G at 320 images" in capsys.readouterr().out


def test_every_choice_has_a_card_of_its_own():
    choices = {
        "": Options(),
        "-psi0.7": Options(truncation_psi=0.7),
        "-balanced": Options(balanced=True),
        "-data01234567": Options(data="a"),
        "-by-class": Options(by="class"),
        "-seed2": Options(seed=2),
    }
    for name, options in choices.items():
        assert options.card_name(320, "pixels", "0123456789" * 6) == f"320-pixels{name}.json"


def test_prefetch_caches_the_statistics_of_a_dataset(dataset, cache, tmp_path, capsys, monkeypatch):
    shutil.copytree(cache / "extractors", tmp_path / "extractors")
    assert evaluate("--prefetch", "--data", dataset, "--cache_dir", tmp_path) == 0
    assert len(list((tmp_path / "statistics").glob("*.safetensors"))) == 1
    assert "for classifier are cached" in capsys.readouterr().out


def test_prefetch_caches_the_statistics_of_bins(calorimeter, tmp_path):
    words = ["--prefetch", "--data", calorimeter, "--extractor", "pixels", "--by", "electron"]
    assert evaluate(*words, "--cache_dir", tmp_path) == 0
    assert len(list((tmp_path / "statistics").glob("*.safetensors"))) == 3


def test_errors_are_one_line(run, dataset, cache, tmp_path, capsys):
    other = make_dataset(tmp_path / "other", noise(40, 16), shards=1)
    unlabelled = tmp_path / "unlabelled"
    source = from_arrays("noise", noise(40), np.zeros(40, np.int64), ["only"])
    make.make(source, unlabelled, make.Options(), 1)
    weights = run / "checkpoints/320/ema.safetensors"
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(weights.read_bytes()[:-9])
    cases = [
        ([], "give a run folder or a .safetensors file, or --generated ADDRESS, --train_extractor DATASET or"),
        ([weights], "data: give the dataset of the real images, as --data DATASET"),
        ([run, "--data", other], "has images 16x16x3, the generator makes 8x8x3"),
        ([run, "--data", unlabelled], "the classes of"),
        ([run, "--metrics", "fid,fit"], "metrics: unknown metric 'fit'; choose from fid, kid, is,"),
        ([run, "--extractor", "resnet"], "extractor: unknown extractor 'resnet'; choose from classifier,"),
        ([run, "--extractor", weights], "is not a classifier of distgan"),
        ([run, "--samples", 3], "samples: metrics need 20 images or more"),
        ([run, "--samples", 0], "samples: expected an integer above 0, got 0"),
        ([run, "--out", "card.txt"], "out: card.txt must end in .json"),
        ([broken, "--data", dataset], "is not a complete .safetensors file"),
        ([tmp_path / "nowhere", "--data", dataset], "no such file"),
        (["--train_extractor", unlabelled], "train_extractor: the dataset has no labels, or fewer than two classes"),
        (["--train_extractor", dataset, "--out", "/proc/x.safetensors"], "out: /proc/x.safetensors cannot be written"),
        (["--train_extractor", dataset, "--out", "x.json"], "out: x.json must end in .safetensors"),
        (["--prefetch"], "prefetch: classifier needs no download; give --data DATASET"),
    ]
    for words, message in cases:
        assert evaluate(*words, "--cache_dir", cache) == 2, words
        error = capsys.readouterr().err
        assert error.startswith("distgan: ") and message in error and error.count("\n") == 1, error
    shutil.rmtree(other)
    assert evaluate(run, "--cache_dir", tmp_path / "empty") == 2
    error = capsys.readouterr().err
    place = next(word for word in error.split() if word.startswith(str(tmp_path / "empty"))).rstrip(";")
    assert f"train it with `distgan evaluate --train_extractor DATASET --out {place}`" in error


def test_a_full_disk_loses_nothing(run, dataset, cache, small_disk, capsys):
    """The card stands on standard output; a cache that is full is said, and the evaluation goes on."""
    shutil.copytree(cache / "extractors", small_disk / "extractors")
    filler = fill(small_disk)
    words = [run, "--samples", 100, "--cache_dir", small_disk]
    capsys.readouterr()
    assert evaluate(*words, "--out", small_disk / "card.json") == 1
    out, error = capsys.readouterr()
    assert "the statistics of the real images are not cached: " in out and "fd_classifier " in out
    assert error.count("\n") == 1 and "No space left on device" in error and "card above" in error
    assert evaluate("--train_extractor", dataset, "--train_images", 600, "--out", small_disk / "a.safetensors") == 1
    assert "No space left on device" in capsys.readouterr().err
    filler.unlink()
    assert evaluate(*words, "--out", small_disk / "card.json") == 0
    assert read_card(small_disk / "card.json")["counts"]["generated"] == 100


@pytest.mark.slow
def test_a_kill_at_any_time_changes_nothing(run, cache, tmp_path):
    """Of one process and of two: the same command then gives the card of an undisturbed evaluation."""
    random = np.random.default_rng()
    words = [run, "--metrics", ALL, "--samples", 3000]
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        shutil.copytree(cache / "extractors", folder / "extractors")
        command = [*words, "--cache_dir", folder, "--out", folder / "card.json"]
        begun = time.monotonic()
        launch(processes, *words, "--cache_dir", cache, "--out", tmp_path / "expected.json", script="evaluate.py")
        seconds = time.monotonic() - begun
        for _ in range(3):
            process = start(processes, *command, script="evaluate.py")
            time.sleep(random.uniform(0.2, 0.9) * seconds)
            for pid in (process.pid, *children(process.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.communicate()
        launch(processes, *command, script="evaluate.py")
        expected, found = read_card(tmp_path / "expected.json"), read_card(folder / "card.json")
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-9)
        assert found["floor"] == pytest.approx(expected["floor"], rel=1e-9)
        assert found["histogram"] == expected["histogram"]
        assert len(os.listdir(folder / "statistics")) == 2  # with the lock
