"""Evaluations during a run: cards, the best checkpoint, alarms, and what a kill leaves."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distgan.commands import evaluate, sample
from distgan.data.shardset import LocalStorage, open_shardset
from distgan.evaluation import chunks, generated, stored
from distgan.logs.alarms import Alarms, spread
from distgan.runs.checkpoint import Best, Checkpoints
from distgan.training.evaluation import best_of
from helpers import ROOT, TINY, computed, launch_env, make_dataset, metrics, noise, train, weights


@pytest.fixture(scope="module")
def classifier(tiny, tmp_path_factory) -> Path:
    """A classifier of the tiny dataset's labels."""
    out = tmp_path_factory.mktemp("classifier") / "tiny.safetensors"
    assert evaluate.main(["--train_extractor", str(tiny), "--train_images", "200", "--out", str(out)]) == 0
    return out


@pytest.fixture
def words(tiny, tmp_path, classifier) -> list[object]:
    cache = ["--evaluate.cache_dir", tmp_path / "cache", "--evaluate.extractor", classifier]
    return ["--data.shards", tiny, *TINY, *cache, "--evaluate.samples", 40, "--evaluate.every_epochs", 1]


def cards(run: Path) -> list[dict]:
    return [row for row in metrics(run) if "card" in row]


def without_times(run: Path) -> list[dict]:
    rows = computed(run)
    for row in rows:
        if "card" in row:
            del row["card"]["seconds"], row["card"]["time"]
    return rows


def test_cards_and_the_best_checkpoint(words, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(*words, "--run_dir", run, "--epochs", 4, "--checkpoint.keep", 1, "--checkpoint.every_epochs", 9) == 0
    out = capsys.readouterr().out
    found = cards(run)
    assert [row["images"] for row in found] == [80, 160, 240, 320]
    assert all(row["card"]["generator"]["images"] == row["images"] for row in found)
    values = {row["images"]: row["card"]["metrics"]["fd_classifier"] for row in found}
    best = min(values, key=lambda images: values[images])
    kept = {int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()}
    assert kept == {best, 320}
    assert f"checkpoints/{best}: best by fd_classifier, {values[best]:.5g}" in out
    assert sample.main([str(run), "--out", str(tmp_path / "a.png")]) == 0
    assert f"checkpoints/{best}/ema.safetensors (best by fd_classifier" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    assert "fd_classifier" in page


def test_cards_of_a_run_by_class(words, tmp_path, capsys):
    """G takes no labels: the classifier tells the classes; pixels do not, which is said before the training."""
    run = tmp_path / "run"
    words = [*words, "--run_dir", run, "--epochs", 1, "--evaluate.by", "class"]
    assert train(*words) == 0
    (row,) = cards(run)
    assert (row["card"]["by"], row["card"]["classes_from"]) == ("class", "classifier")
    assert [each["class"] for each in row["card"]["bins"]] == ["a", "b", "c"]
    assert sum(each["counts"]["generated"] for each in row["card"]["bins"]) == 40
    shutil.rmtree(run)
    capsys.readouterr()
    for more, message in (
        (["--evaluate.extractor", "pixels"], "evaluate.by: the generator is not conditioned on 'class', and pixels"),
        (["--evaluate.by", "age"], "evaluate.by: unknown condition 'age'; choose from class"),
    ):
        assert train(*words, *more) == 2
        assert message in capsys.readouterr().err
    assert not (run / "metrics.jsonl").exists()


KILLED = """
import os, signal, sys
from distgan.commands import train
from distgan.evaluation.evaluator import Evaluator

def latents(self, first, *arguments):
    evaluated[0] += first == 0
    if evaluated[0] == 4:  # two are of the estimate of the time, before the first evaluation
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, first, *arguments)

evaluated, original, Evaluator.latents = [0], Evaluator.latents, latents
train.main(sys.argv[1:])
"""


def test_a_run_killed_in_an_evaluation_has_the_same_cards_and_best(words, tmp_path):
    """The card of the interrupted evaluation is not there, its checkpoint may be; the same command goes on."""
    assert train(*words, "--run_dir", tmp_path / "whole", "--epochs", 4) == 0
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, *map(str, [*words, "--run_dir", run, "--epochs", 4])]
    killed = subprocess.run(command, env=launch_env(PYTHONPATH=str(ROOT)), cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert [row["images"] for row in cards(run)] == [80]
    assert train(*words, "--run_dir", run, "--epochs", 3) == 0
    assert [row["images"] for row in cards(run)] == [80, 160, 240]
    assert train(*words, "--run_dir", run, "--epochs", 4) == 0
    assert weights(run) == weights(tmp_path / "whole")
    assert [row for row in without_times(run) if "card" in row] == [
        row for row in without_times(tmp_path / "whole") if "card" in row
    ]
    bests = [json.loads((path / "best.json").read_text()) for path in (run, tmp_path / "whole")]
    assert bests[0] == bests[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--evaluate.extractor", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--evaluate.metrics", "[fidd]"], "metrics: unknown metric 'fidd'"),
        (["--evaluate.best", "fid"], "evaluate.best: unknown metric 'fid'; choose from fd_classifier, precision"),
    ],
)
def test_what_is_missing_is_said_at_the_start(words, tmp_path, capsys, more, message):
    assert train(*words, "--run_dir", tmp_path / "run", *more) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "run").exists()


def card(images: int, extractor: str = "a", generator: dict | None = None, **metrics: float) -> tuple[int, dict]:
    return images, {
        "metrics": metrics,
        "extractor": {"sha256": extractor},
        "data": {"manifest": "m"},
        "generator": generator or {},
        "counts": {"generated": 40},
        "seed": 0,
    }


def test_best_of():
    cards = [card(10, kl=2.0, recall=0.1), card(20, kl=1.0, recall=0.3), card(30, kl=1.5, recall=0.2)]
    kept = [10, 20, 30]
    assert best_of(cards, None, kept) == Best(20, "kl", 1.0) == best_of(cards, "kl", kept)
    assert best_of(cards, "recall", kept) == Best(20, "recall", 0.3)
    assert best_of(cards, "kl", [10, 30]) == Best(30, "kl", 1.5), "a checkpoint that is not there any more"
    assert best_of([], None, kept) is None is best_of(cards, "fid", kept)
    assert best_of([card(5, kl=float("nan")), *cards], None, [5, *kept]) == Best(20, "kl", 1.0)


def test_only_cards_that_compare_with_the_newest_are_compared():
    cards = [card(10, kl=0.1), card(20, "b", kl=0.3), card(30, "b", kl=0.4), card(40, "b", fid=9.0, kl=0.5)]
    assert best_of(cards[:3], None, [10, 20, 30]) == Best(20, "kl", 0.3)
    assert best_of(cards, None, [10, 20, 30, 40]) == Best(40, "fid", 9.0)


@pytest.mark.parametrize("change", [{"truncation_psi": 0.7}, {"labels": "balanced"}])
def test_cards_of_other_samples_are_not_compared(change):
    """Cards of versions that had neither are of psi 1 and of the labels of the dataset."""
    plain = {"truncation_psi": 1.0, "labels": "as in the dataset"}
    cards = [card(10, kl=0.1, generator=plain | change), card(20, kl=0.4), card(30, kl=0.5, generator=plain)]
    assert best_of(cards, None, [10, 20, 30]) == Best(20, "kl", 0.4)
    assert best_of([cards[1], cards[0]], None, [10, 20]) == Best(10, "kl", 0.1)


def test_another_metric_of_the_best_loses_no_checkpoint(words, tmp_path):
    """The best so far is kept until a new card tells another."""
    words = [*words, "--run_dir", tmp_path / "run", "--checkpoint.keep", 1]
    assert train(*words, "--epochs", 3) == 0
    best = json.loads((tmp_path / "run/best.json").read_text())["images"]
    kept = {best, 240}
    assert (
        train(*words, "--epochs", 3, "--evaluate.metrics", "[fid, density_coverage]", "--evaluate.best", "density") == 0
    )
    assert {int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()} == kept
    assert json.loads((tmp_path / "run/best.json").read_text())["images"] == best
    assert train(*words, "--epochs", 4, "--evaluate.best", "recall") == 0
    named = json.loads((tmp_path / "run/best.json").read_text())
    assert named["metric"] == "recall" and (tmp_path / "run/checkpoints" / str(named["images"])).is_dir()


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_stop_ends_an_evaluation_and_the_resumed_run_does_it_first(words, tmp_path, monkeypatch, capsys, chunk):
    """In the pass over the dataset, while images are generated, and in the test for copies; the checkpoint is there."""
    words = [*words, "--epochs", 2, "--evaluate.samples", 400, "--evaluate.nearest", 20]
    assert train(*words, "--run_dir", tmp_path / "whole") == 0
    original, calls = chunks.run_chunks, []

    def interrupted(processes, count, work, stop):
        calls.append(count)
        if len(calls) == chunk:
            (tmp_path / "run/stop").touch()
            return original(processes, 1000, lambda i: time.sleep(0.05), stop)
        return original(processes, count, work, stop)

    for module in (generated, stored):
        monkeypatch.setattr(module, "run_chunks", interrupted)
    arguments = [*words, "--run_dir", tmp_path / "run", "--evaluate.cache_dir", tmp_path / "other"]
    assert train(*arguments) == 0
    assert "stopped at 80 of 160 images" in capsys.readouterr().out and cards(tmp_path / "run") == []
    assert (tmp_path / "run/checkpoints/80").is_dir()
    assert train(*arguments) == 0
    assert [row["card"]["metrics"] for row in cards(tmp_path / "run")] == [
        row["card"]["metrics"] for row in cards(tmp_path / "whole")
    ]
    copies, expected = ([row for row in computed(tmp_path / name) if "copied" in row] for name in ("run", "whole"))
    assert copies == expected and len(copies) == 2
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_corrupt_images_are_skipped_in_evaluations_too(words, tiny, tmp_path, capfd):
    shutil.copytree(tiny, tmp_path / "set")
    offset = (
        int(open_shardset(LocalStorage(tmp_path / "set"), "set").columns["offset"][0]) + 20
    )  # in the pixels of the first image
    with open(tmp_path / "set/shard-000000.tar", "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    words = [*words, "--data.shards", tmp_path / "set", "--run_dir", tmp_path / "run", "--epochs", 1]
    words += ["--data.skip_bad", 2]
    assert train(*words) == 0
    assert len(cards(tmp_path / "run")) == 1 and not (tmp_path / "cache/statistics").exists()
    assert capfd.readouterr().err.count("skipped a corrupt image") == 2  # of the epoch, and of the evaluation
    command = [str(tmp_path / "run"), "--extractor", words[words.index("--evaluate.extractor") + 1], "--samples", "40"]
    assert evaluate.main([*map(str, command), "--cache_dir", str(tmp_path / "cache")]) == 1
    assert "do not match the index" in capfd.readouterr().err
    assert evaluate.main([*map(str, command), "--cache_dir", str(tmp_path / "cache"), "--skip_bad", "1"]) == 0


def test_the_best_checkpoint_is_not_pruned(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1)
    for images in (10, 20, 30):
        checkpoints.save({"generator": {"w": torch.ones(1)}}, {"images": images}, {})
        checkpoints.wait()
        if images == 10:
            checkpoints.mark_best(Best(10, "kl", 1.0))
    assert checkpoints.all() == [10, 30] and checkpoints.best == Best(10, "kl", 1.0)
    checkpoints.mark_best(Best(30, "kl", 0.5))
    assert checkpoints.all() == [30]
    checkpoints.save({"generator": {"w": torch.ones(1)}}, {"images": 40}, {})
    checkpoints.wait()
    assert checkpoints.all() == [30, 40]
    checkpoints.close()


NORMS = ("d_grad_norm", "g_grad_norm")


def row(**changes: float) -> dict[str, float]:
    return {"d_real": 0.7, "d_fake": 0.3, "d_loss": 1.0, "r1": 0.1, "d_sign": 0.9} | dict.fromkeys(NORMS, 1.0) | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_real": 1.0, "d_fake": 0.001}, "D tells real from generated images perfectly"),
        ({"d_sign": 0.997}, "D classifies every real image as real: the mean of sign(D(x)) is 0.997"),
        ({"d_loss": 0.01, "r1": 1.0}, "penalties are 99% of D's loss"),
        ({"g_grad_norm": 1e4}, "g_grad_norm is 1e+04, usually 1"),
    ],
)
def test_alarms_are_raised_once_and_again_after_they_cleared(changes, message):
    alarms = Alarms(["r1"], absolute=True)
    for _ in range(6):
        assert alarms.check(row()) == []
    lines = [alarms.check(row(**changes)) for _ in range(5)]
    found = [line for line in lines if line]
    assert len(found) == 1 and message in found[0][0]
    for _ in range(60):
        alarms.check(row())
    assert any(alarms.check(row(**changes)) for _ in range(3))


def test_images_that_are_alike_are_a_collapse():
    alarms = Alarms([], absolute=False)
    images = torch.rand(16, 3, 8, 8)
    alike = images[:1].expand(16, 3, 8, 8) + 0.01 * images
    assert alarms.check(row(diversity=0.01)) == []  # nothing is learned yet
    assert alarms.check(row(diversity=spread(images) / spread(torch.rand(16, 3, 8, 8)))) == [] and not alarms.collapsed
    assert "mode collapse" in alarms.check(row(diversity=spread(alike) / spread(images)))[0] and alarms.collapsed
    assert alarms.check(row(d_real=1.0, d_fake=0.0)) == []  # only differences of logits mean anything


def test_a_resumed_run_raises_the_same_alarms(words, tmp_path):
    """With more lines than an alarm needs in a row before the stop and after it, and with the diversity of grids.

    One part ends between two grids.
    """
    words = [*words, "--report.every_images", 16, "--d_optimizer.lr", 0.02, "--evaluate.every_epochs", 0]
    assert train(*words, "--run_dir", tmp_path / "whole", "--epochs", 6) == 0
    for length in (["--epochs", 1], ["--epochs", 2], ["--images", 192], ["--epochs", 6]):
        assert train(*words, "--run_dir", tmp_path / "parts", *length) == 0
    rows, parts = computed(tmp_path / "whole"), computed(tmp_path / "parts")
    assert rows == parts and 0 < sum("warning" in row for row in rows) < 6
    assert [row["images"] for row in rows if "diversity" in row] == [80, 160, 240, 320, 400, 480]


def test_a_collapsed_run_ends_and_names_the_best_checkpoint(words, tmp_path, capsys):
    """With a learning rate of D at which D wins at once; and without the key the run goes on."""
    data = make_dataset(tmp_path / "set", noise(80) // 8, shards=2)
    words = [*words, "--data.shards", data, "--d_optimizer.lr", 0.05, "--g_optimizer.lr", 1e-6, "--epochs", 12]
    words += ["--report.every_images", 16, "--evaluate.extractor", "classifier"]
    out = tmp_path / "c.safetensors"
    assert evaluate.main(["--train_extractor", str(data), "--train_images", "100", "--out", str(out)]) == 0
    words += ["--evaluate.extractor", out]
    assert train(*words, "--run_dir", tmp_path / "on") == 0
    assert any("warning" in line for line in metrics(tmp_path / "on"))
    capsys.readouterr()
    assert train(*words, "--run_dir", tmp_path / "stopped", "--guard.stop_on_collapse", "true") == 1
    error = capsys.readouterr().err
    assert "guard.stop_on_collapse: the run collapsed" in error and error.count("\n") == 1
    assert "D tells real from generated images" in (tmp_path / "stopped/report.html").read_text()
