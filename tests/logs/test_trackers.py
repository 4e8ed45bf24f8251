"""Trackers: what TensorBoard, Weights & Biases and the others get, also from a resumed run, and what is refused."""

import json
import re
import shutil
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from distgan.config.keys import Config, ReportConfig
from distgan.errors import UsageError
from distgan.logs import trackers
from distgan.logs.trackers import check_trackers, log_card, log_grid, start_trackers
from helpers import metrics, train

CARD = {"metrics": {"fid": 12.5, "kid": {"value": 0.25, "std": 0.5}, "note": "text"}, "seed": 0, "extractor": "cnn"}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)


def events(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()


def test_tensorboard_gets_scalars_grids_and_the_configuration(trained):
    run = trained("--epochs", 1, "--report.trackers", "[tensorboard]")
    assert [path.is_file() for path in (run / "tensorboard").iterdir()] == [True], "one run in TensorBoard's list"
    log = events(run / "tensorboard")
    assert "d_loss" in log.Tags()["scalars"] and not {"images", "epoch"} & set(log.Tags()["scalars"])
    assert [(event.step, log.Images("real")[0].width) for event in log.Images("fake")] == [(80, 4 * 10 + 2)]
    assert "_hparams_/session_start_info" in log.PluginTagToContent("hparams")


def test_a_resumed_run_goes_on_in_tensorboard_without_doubles(trained):
    words = ("--report.every_images", 16, "--report.trackers", "[tensorboard]", "--samples.every_epochs", 0.5)
    run = trained("--epochs", 2, *words)
    ids = (run / "trackers.json").read_text()
    whole = [(event.step, event.value) for event in events(run / "tensorboard").Scalars("d_loss")]
    assert [step for step, _ in whole] == list(range(16, 161, 16))
    shutil.rmtree(run / "checkpoints" / "160")  # as if it had been killed before
    trained("--epochs", 3, *words)
    log = events(run / "tensorboard")
    resumed = [(event.step, event.value) for event in log.Scalars("d_loss")]
    assert resumed[:10] == whole and [step for step, _ in resumed] == list(range(16, 241, 16))
    assert [event.step for event in log.Images("fake")] == [48, 80, 128, 160, 208, 240]
    assert (run / "trackers.json").read_text() == ids


def test_a_metric_card_becomes_scalars_and_text(tmp_path):
    accelerator = Accelerator(cpu=True)
    config = Config(run_dir=str(tmp_path), report=ReportConfig(trackers=["tensorboard", "tensorboard"]))
    start_trackers(accelerator, config, images=0)
    log_card(accelerator, CARD, 100)
    log_card(accelerator, {"metrics": None}, 200)
    accelerator.end_training()
    log = events(tmp_path / "tensorboard")
    found = {name: (log.Scalars(name)[0].step, log.Scalars(name)[0].value) for name in log.Tags()["scalars"]}
    assert found == {"metrics/fid": (100, 12.5), "metrics/kid": (100, 0.25), "metrics/kid.std": (100, 0.5)}
    (text, _) = log.Tensors("card/text_summary")
    assert json.loads(text.tensor_proto.string_val[0].decode().strip("`\n")) == CARD


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("[tensorbord]", "report.trackers: unknown tracker 'tensorbord'; choose from tensorboard, wandb, aim, clearml"),
        ("[tensorboard, dvclive]", "report.trackers: dvclive is not installed; pip install 'dvclive'"),
    ],
)
def test_an_unknown_or_missing_tracker_is_refused_before_anything_is_written(tiny, tmp_path, capsys, names, message):
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", "--report.trackers", names) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_tensorboard_is_named_by_the_extra_of_this_package(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(UsageError, match=r"tensorboard is not installed; pip install 'distgan\[tensorboard\]'"):
        check_trackers(["tensorboard"])


class Recorder(GeneralTracker):
    """Stands for a tracker that is not installed here: keeps what it is given."""

    requires_logging_directory = True
    starts: ClassVar[list["Recorder"]] = []

    def __init__(self, *arguments, **more):
        super().__init__()
        self.calls: list[tuple] = [("new", arguments, more)]
        self.starts.append(self)

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.calls.append(("config", values["seed"]))

    def log(self, values, step=None, **kwargs):
        self.calls.append(("log", values, step))


class ImageRecorder(Recorder):
    def log_images(self, values, step):
        self.calls.append(("images", {tag: np.shape(image) for tag, image in values.items()}, step))


@pytest.mark.parametrize(
    ("name", "recorder", "shape"),
    [("mlflow", Recorder, None), ("aim", ImageRecorder, (8, 8, 3)), ("swanlab", ImageRecorder, (1, 8, 8, 3))],
)
def test_other_trackers_are_given_all_that_accelerate_has_for_them(tmp_path, monkeypatch, name, recorder, shape):
    cls = type("Tracker", (recorder,), {"name": name, "starts": []})
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, cls)
    config = Config(run_dir=str(tmp_path), seed=7, report=ReportConfig(trackers=[name]))
    for images in (0, 100):
        accelerator = Accelerator(cpu=True)
        start_trackers(accelerator, config, images)
        log_grid(accelerator, "fake", np.zeros((8, 8, 3), np.uint8), images + 50)
        log_card(accelerator, CARD, images + 50)
        assert accelerator.trackers == [cls.starts[-1]], "it did not fail"
    scalars = {"metrics/fid": 12.5, "metrics/kid": 0.25, "metrics/kid.std": 0.5}
    assert [tracker.calls for tracker in cls.starts] == [
        [
            ("new", ("distgan", str(tmp_path)), {}),
            ("config", 7),
            *([("images", {"fake": shape}, images + 50)] if shape else []),
            ("log", scalars, images + 50),
        ]
        for images in (0, 100)
    ], "a resumed run starts a new run there"


def test_every_tracker_of_accelerate_can_be_made(tmp_path):
    for name in LOGGER_TYPE_TO_CLASS:
        assert trackers.make_tracker(name, tmp_path, 5, "0123456789abcdef").name == name


def test_what_a_tracker_cannot_start_with_is_one_line(tmp_path):
    (tmp_path / "tensorboard").write_text("a file where its folder should be")
    config = Config(run_dir=str(tmp_path), report=ReportConfig(trackers=["tensorboard"]))
    with pytest.raises(UsageError, match="^report.trackers: tensorboard cannot start: .*tensorboard"):
        start_trackers(Accelerator(cpu=True), config, images=0)


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(trained, monkeypatch, capsys):
    calls = []

    def log(self, values, step, **more):
        calls.append(step)
        if step >= 48:
            raise RuntimeError("no server\nat all")

    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["tensorboard"], "log", log)
    run = trained("--epochs", 1, "--report.every_images", 16, "--report.trackers", "[tensorboard]")
    assert calls == [16, 32, 48] and [row["images"] for row in metrics(run)] == [16, 32, 48, 64, 80]
    warning = "warning: report.trackers: tensorboard failed (no server at all): the run goes on without it"
    assert capsys.readouterr().err.count(warning) == 1


@pytest.mark.slow
def test_wandb_resumes_under_the_id_in_the_run_folder(tmp_path, monkeypatch):
    """Offline: a session a folder, wandb/offline-run-TIME-ID (or TIME-ID-1 in the same second), one id for both."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    config = Config(run_dir=str(tmp_path), report=ReportConfig(trackers=["wandb"]))
    for images in (0, 100):
        accelerator = Accelerator(cpu=True)
        start_trackers(accelerator, config, images)
        accelerator.log({"d_loss": 0.5}, step=images + 50)
        log_grid(accelerator, "fake", np.zeros((8, 8, 3), np.uint8), images + 50)
        log_card(accelerator, CARD, images + 50)
        accelerator.end_training()
    wandb.teardown()  # its service writes a little later than a run is finished
    run_id = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    sessions = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(sessions) == 2
    assert all(re.fullmatch(rf"offline-run-\d+_\d+-{run_id}(-\d+)?", path.name) for path in sessions)
    for session in sessions:
        assert len(list((session / "files" / "media" / "images").glob("fake_*.png"))) == 1
        stored = b"".join(path.read_bytes() for path in session.glob("*.wandb"))
        assert b"d_loss" in stored and b"metrics/fid" in stored and b"extractor" in stored
