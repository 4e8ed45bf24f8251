"""`distgan evaluate RUN --follow`: each checkpoint once, restarts, deletions, the best, the end, and signals."""

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import distgan.commands.evaluate
import distgan.commands.follow
import distgan.runs.watch
from distgan.page.build import read_runs
from distgan.runs.checkpoint import Best, Checkpoints, read_best
from distgan.runs.watch import Ended, Found, Watch
from helpers import TINY, children, make_arrays, reset_accelerate, start, train

IMAGES = (80, 160, 240, 320)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of four epochs that evaluates nothing, with a checkpoint of each."""
    folder = tmp_path_factory.mktemp("followed")
    make_arrays(folder / "set", np.random.default_rng(0).integers(0, 256, (80, 8, 8, 1), dtype=np.uint8))
    words = ["--data.shards", folder / "set", "--run_dir", folder / "run", *TINY, "--model.name", "mlp"]
    every = ["--checkpoint.every_epochs", 1, "--checkpoint.keep", 0, "--report.page", "false"]
    assert train(*words, *every, "--images", 320) == 0
    assert Checkpoints(folder / "run" / "checkpoints").all() == list(IMAGES)
    return folder / "run"


def copy(run: Path, to: Path, *images: int) -> Path:
    """The run as it is with checkpoints at `images`."""
    (to / "checkpoints").mkdir(parents=True, exist_ok=True)
    shutil.copy(run / "config.yaml", to)
    for each in images:
        shutil.copytree(run / "checkpoints" / str(each), to / "checkpoints" / f".{each}.tmp")
        os.rename(to / "checkpoints" / f".{each}.tmp", to / "checkpoints" / str(each))
    return to


def follow(run: Path, *words: object) -> int:
    reset_accelerate()
    given = [run, "--follow", "--extractor", "pixels", "--cache_dir", run.parent / "cache", "--poll_seconds", 0.05]
    return distgan.commands.evaluate.main([str(word) for word in [*given, *words]])


def cards(run: Path) -> list[int]:
    return sorted(int(path.name.split("-")[0]) for path in (run / "cards").glob("*.json"))


@contextlib.contextmanager
def meanwhile(*steps: Callable[[], object]) -> Iterator[None]:
    """Do this beside the block, in order; what fails there fails here."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for step in steps:
                step()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()
    assert not failures, failures


def until(what: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_checkpoint_is_evaluated_once_until_the_end(run, tmp_path, capsys):
    """Of a run that has not begun when the follower does."""
    followed = tmp_path / "run"
    steps = [
        lambda: time.sleep(0.3),
        lambda: copy(run, followed, 80, 160),
        lambda: until(lambda: cards(followed) == [80, 160]),
        lambda: copy(run, followed, 240),
        lambda: until(lambda: 240 in cards(followed)),
        lambda: copy(run, followed, 320),
    ]
    with meanwhile(*steps):
        assert follow(followed) == 0
    assert cards(followed) == list(IMAGES)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == f"{followed} is not there yet: waiting for it"
    made = [line for line in lines if line.startswith(str(followed / "cards"))]
    assert [Path(line).name for line in made] == [f"{images}-pixels.json" for images in (160, 80, 240, 320)]
    assert lines[-1] == "the run is at its end, 320 images; checkpoints evaluated: 4"
    card = json.loads((followed / "cards/320-pixels.json").read_text())
    assert card["generator"]["file"] == str(followed / "checkpoints/320/ema.safetensors") and card["generator"]["ema"]
    curve = read_runs([followed])[0]["series"]["fd_pixels"]
    assert curve[0] == list(IMAGES), "they are a curve of the page"


def test_a_restart_computes_what_is_missing_or_was_measured_otherwise(run, tmp_path, capsys):
    followed = copy(run, tmp_path / "run", *IMAGES)
    assert follow(followed) == 0
    first = {path.name: path.stat().st_mtime_ns for path in (followed / "cards").iterdir()}
    (followed / "cards/160-pixels.json").unlink()
    capsys.readouterr()
    assert follow(followed) == 0
    again = {path.name: path.stat().st_mtime_ns for path in (followed / "cards").iterdir()}
    assert [name for name in again if again[name] != first[name]] == ["160-pixels.json"]
    assert follow(followed, "--samples", 40) == 0
    found = {path.name: json.loads(path.read_text()) for path in (followed / "cards").iterdir()}
    assert {name for name, card in found.items() if card["counts"]["generated"] == 40} == {
        f"{images}-pixels-n40.json" for images in IMAGES
    }
    # a card of that name that was measured otherwise does not count
    moved = followed / "cards/160-pixels.json"
    moved.rename(followed / "cards/160-pixels-n40.json")
    assert follow(followed, "--samples", 40) == 0
    assert json.loads((followed / "cards/160-pixels-n40.json").read_text())["counts"]["generated"] == 40


def test_the_best_is_marked_and_kept_by_the_run(run, tmp_path):
    """By a run that deletes all but its newest two, and does not touch the mark when it resumes."""
    followed = copy(run, tmp_path / "run", *IMAGES[:3])
    config = yaml.safe_load((followed / "config.yaml").read_text())
    config["images"] = 240
    (followed / "config.yaml").write_text(yaml.safe_dump(config))
    assert follow(followed) == 0
    found = {images: json.loads((followed / f"cards/{images}-pixels.json").read_text()) for images in IMAGES[:3]}
    values = {images: card["metrics"]["fd_pixels"] for images, card in found.items()}
    best = min(values, key=values.__getitem__)
    assert read_best(followed) == Best(best, "fd_pixels", values[best])
    (followed / "cards" / f"{best}-pixels.json").unlink()
    found[80]["metrics"]["fd_pixels"] = 1e-9
    (followed / "cards/80-pixels.json").write_text(json.dumps(found[80]))
    if best != 80:
        assert follow(followed) == 0
    marked = read_best(followed)
    assert marked is not None and marked.images == 80
    words = ["--config", followed / "config.yaml", "--run_dir", followed, "--images", 400, "--checkpoint.keep", 1]
    assert train(*words) == 0
    assert Checkpoints(followed / "checkpoints").all() == [80, 400] and read_best(followed) == marked


def test_a_run_that_evaluates_marks_its_best_itself(run, tmp_path):
    followed = copy(run, tmp_path / "run", 320)
    config = yaml.safe_load((followed / "config.yaml").read_text())
    config["evaluate"]["every_epochs"] = 1
    (followed / "config.yaml").write_text(yaml.safe_dump(config))
    assert follow(followed) == 0 and cards(followed) == [320]
    assert not (followed / "best.json").exists()
    config["evaluate"] |= {"every_epochs": 0, "best": "fid"}
    (followed / "config.yaml").write_text(yaml.safe_dump(config))
    assert follow(followed, "--seed", 1) == 0 and not (followed / "best.json").exists()


def test_a_checkpoint_that_is_deleted_while_it_is_loaded_is_skipped(run, tmp_path, capsys, monkeypatch):
    followed = copy(run, tmp_path / "run", 80, 320)
    load = distgan.commands.follow.load_generator

    def delete_and_load(file: Path, *words: Any, **options: Any):
        if "/80/" in str(file):
            shutil.rmtree(file.parent)
        return load(file, *words, **options)

    monkeypatch.setattr(distgan.commands.follow, "load_generator", delete_and_load)
    assert follow(followed) == 0
    assert cards(followed) == [320]
    assert "the checkpoint at 80 images was deleted before it was read: skipped" in capsys.readouterr().out


def test_a_run_that_was_stopped_is_left_after_a_while(run, tmp_path, capsys):
    followed = copy(run, tmp_path / "run", 80)
    assert follow(followed, "--idle_minutes", 0.01) == 0
    assert cards(followed) == [80]
    assert "the run wrote nothing for 0.01 minutes, at 80 of 320 images" in capsys.readouterr().out


def test_a_job_at_its_time_limit_asks_to_be_requeued(run, tmp_path, capsys, monkeypatch):
    """By the files of launch/train.sbatch, which do not touch the run itself."""
    followed = copy(run, tmp_path / "run", 80)
    control = tmp_path / "control"
    control.mkdir()
    monkeypatch.setenv("DISTGAN_CONTROL_DIR", str(control))
    with meanwhile(lambda: until(lambda: (control / "saved").exists()), (control / "stop").touch):
        assert follow(followed) == 0
    assert (control / "saved").read_text() == (control / "stopped").read_text() == "80\n"
    assert "the same command goes on" in capsys.readouterr().out and not (followed / "stop").exists()


def make_watch(run: Path, said: list[str], read: set[int], length: int | None = 320) -> Watch:
    return Watch(run, lambda: length, read.__contains__, 60, said.append)


def test_what_a_watch_finds(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Watch.is_going, "__defaults__", (0.1,))
    followed = copy(run, tmp_path / "run", *IMAGES[:3])
    said: list[str] = []
    read: set[int] = set()
    watch = make_watch(followed, said, read)
    folder = followed / "checkpoints"
    with open(folder / "240/ema.safetensors", "ab") as file:
        file.write(b"x")
    assert watch.look() == Found(160, folder / "160/ema.safetensors")
    assert "240 is corrupt (the sha256 of ema.safetensors does not match state.json): skipped" in said.pop()
    (folder / "160/ema.safetensors").unlink()
    assert watch.look() == Found(80, folder / "80/ema.safetensors"), "not the G that is left of 160"
    assert "ema.safetensors is missing" in said.pop()
    shutil.rmtree(folder / "80")
    assert watch.look() is None and not watch.waiting
    assert said == ["the checkpoint at 80 images was deleted before it was read: skipped (checkpoint.keep)"]
    shutil.rmtree(folder / "240")
    copy(run, followed, 240, 320)
    assert watch.look() == Found(320, folder / "320/ema.safetensors")
    read.add(320)
    assert watch.look() == Found(240, folder / "240/ema.safetensors"), "it was written again"
    read.add(240)
    assert watch.look() == Ended("the run is at its end, 320 images")
    assert make_watch(followed, said, read | {240, 320}, None).look() is None, "a run of unknown length may go on"


def test_words_that_do_not_go_with_following(run, tmp_path, capsys):
    weights = run / "checkpoints/80/ema.safetensors"
    for words, message in (
        ([weights, "--follow"], "follow: "),
        (["--follow"], "follow: give a run folder"),
        ([run, "--follow", "--out", "card.json"], "out: with --follow the cards go to RUN/cards"),
        ([run, "--follow", "--poll_seconds", 0], "poll_seconds"),
        ([run, "--follow", "--poll_seconds", 1e6], "poll_seconds: at most 300"),
    ):
        assert distgan.commands.evaluate.main([str(word) for word in words]) == 2, words
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


@pytest.mark.slow
@pytest.mark.signals
@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm_ends_it_cleanly_and_a_restart_goes_on(run, tmp_path, processes):
    followed = copy(run, tmp_path / "run", 160)
    words = [followed, "--follow", "--extractor", "pixels", "--cache_dir", tmp_path / "cache", "--poll_seconds", 1]
    process = start(processes, *words, script="evaluate.py")
    until(lambda: cards(followed) == [160], 120)
    workers = [process.pid] if processes == 1 else children(process.pid)[-processes:]
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0 and "stopped (SIGTERM); the same command goes on" in out, out
    one = json.loads((followed / "cards/160-pixels.json").read_text())
    copy(run, followed, 320)
    other = copy(run, tmp_path / "other", 160, 320)
    assert follow(other) == 0
    process = start(processes, *words, script="evaluate.py")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and out.count(".json\n") == 1, out
    assert cards(followed) == [160, 320] and json.loads((followed / "cards/160-pixels.json").read_text()) == one
    for images in (160, 320):
        found, expected = (
            json.loads((folder / f"cards/{images}-pixels.json").read_text()) for folder in (followed, other)
        )
        assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-9)
        assert found["code"]["processes"] == processes
