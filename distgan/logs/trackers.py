"""Experiment trackers by name, through Accelerate: how each is started, resumed, and given grids and metric cards."""

import json
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from PIL import Image

from distgan.config.keys import Config, flatten, to_dict
from distgan.errors import UsageError
from distgan.files import atomic_write

PROJECT = "distgan"
"""Project of the runs on a tracker's server; a run there is called like its folder."""


@dataclass(frozen=True)
class Session:
    """A start of a run, as a tracker sees it."""

    folder: Path
    """The run folder."""
    images: int
    """Images seen: 0 in a new run."""
    id: str
    """The id of the run on the tracker: that of the sessions before, or a new one that the tracker may not take."""
    resumed: bool
    """Whether the tracker knows the run by that id."""


@dataclass(frozen=True)
class Tracker:
    """What distgan knows of a tracker beyond Accelerate's interface. `tracker` is an Accelerate GeneralTracker."""

    package: str
    """What to `pip install`."""
    arguments: Callable[[Session], dict[str, Any]]
    """Keyword arguments for Accelerate's class."""
    new_id: Callable[[Any], str] | None = None
    """The id that the tracker itself gave to a new run, from its own run object; None: it took `Session.id`."""
    log_grid: Callable[[Any, str, np.ndarray, int], None] | None = None
    """(tracker, tag, uint8 [H, W, 3], images seen); None: Accelerate has no images for it."""
    log_card: Callable[[Any, dict[str, Any], int], None] | None = None
    """(tracker, card, images seen), beside the card's metrics, which are logged as scalars; None: those alone."""
    log_config: Callable[[Any, dict[str, Any]], None] = lambda tracker, values: tracker.store_init_configuration(values)
    """(tracker, flat configuration), once in a run."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError, with the pip command, for a tracker that is unknown or not installed.

    Accelerate itself warns of a missing package, and goes on without the tracker.
    """
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in TRACKERS:
            raise UsageError(f"report.trackers: unknown tracker {name!r}; choose from {', '.join(TRACKERS)}")
        if name not in installed:
            raise UsageError(f"report.trackers: {name} is not installed; pip install '{TRACKERS[name].package}'")


def start_trackers(accelerator: Accelerator, config: Config, images: int) -> None:
    """Start the trackers of `report.trackers`, under the ids of the sessions before; called on the main process.

    The ids are kept in RUN/trackers.json. A run that starts again at 0 images gets a new id. Raises UsageError.
    """
    folder = Path(config.run_dir)
    ids = read_ids(folder / "trackers.json") if images else {}
    accelerator.log_with, rows = [], []
    for name in dict.fromkeys(config.report.trackers):
        row, cls = TRACKERS[name], LOGGER_TYPE_TO_CLASS[name]
        session = Session(folder, images, id=ids.get(name, uuid.uuid4().hex), resumed=name in ids)
        place: tuple[Any, ...] = (str(folder),) if cls.requires_logging_directory else ()
        tracker = cls("tensorboard" if name == "tensorboard" else PROJECT, *place, **row.arguments(session))
        accelerator.log_with.append(tracker)
        rows.append((row, session, tracker))
    try:
        accelerator.init_trackers(PROJECT)
        for row, session, tracker in rows:
            ids[tracker.name] = session.id
            if not session.resumed:
                ids[tracker.name] = row.new_id(tracker.tracker) if row.new_id else session.id
                row.log_config(tracker, to_hparams(to_dict(config)))
    except Exception as error:  # each tracker has its own kinds: no login, no server, no repository
        names = ", ".join(config.report.trackers)
        raise UsageError(f"report.trackers: {names} cannot start: {' '.join(str(error).split())}") from error
    atomic_write(folder / "trackers.json", (json.dumps(ids) + "\n").encode())


def read_ids(path: Path) -> dict[str, str]:
    """The ids of the run by tracker; {} if there are none. Raises UsageError."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        raise UsageError(f"{path} is corrupt; remove it, and the run gets new ids on its trackers") from None


def for_each_tracker(accelerator: Accelerator, work: Callable[[Any], object]) -> None:
    """Call `work` with each tracker. One that fails is left out from then on, with a warning: a run goes on without it,
    and metrics.jsonl has all that it was given."""
    for tracker in list(accelerator.trackers):
        try:
            work(tracker)
        except Exception as error:  # each tracker has its own kinds
            accelerator.trackers.remove(tracker)
            reason = " ".join(str(error).split())[:200]
            print(
                f"warning: report.trackers: {tracker.name} failed ({reason}): the run goes on without it",
                file=sys.stderr,
                flush=True,
            )


def log_scalars(accelerator: Accelerator, values: dict[str, Any], images: int) -> None:
    """Give scalars to the trackers; called on the main process."""
    for_each_tracker(accelerator, lambda tracker: tracker.log(values, step=images))


def log_grid(accelerator: Accelerator, tag: str, picture: np.ndarray, images: int) -> None:
    """Give a grid, uint8 [H, W, 3], to the trackers that take images; called on the main process."""

    def log(tracker: Any) -> None:
        if (log_images := TRACKERS[tracker.name].log_grid) is not None:
            log_images(tracker, tag, picture, images)

    for_each_tracker(accelerator, log)


def log_card(accelerator: Accelerator, card: dict[str, Any], images: int) -> None:
    """Give a metric card to the trackers: its metrics as scalars `metrics/NAME`; called on the main process."""
    found = flatten({"metrics": card.get("metrics") or {}})
    scalars = {
        key.replace(".", "/", 1).removesuffix(".value"): value
        for key, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    log_scalars(accelerator, scalars, images)

    def log(tracker: Any) -> None:
        if (log_whole := TRACKERS[tracker.name].log_card) is not None:
            log_whole(tracker, card, images)

    for_each_tracker(accelerator, log)


def finish_trackers(accelerator: Accelerator) -> None:
    """End the trackers' runs."""
    for_each_tracker(accelerator, lambda tracker: tracker.finish())
    accelerator.trackers.clear()


def to_hparams(config: dict[str, Any]) -> dict[str, Any]:
    """What every tracker takes as hyperparameters: no lists, no None."""
    flat = flatten(config)
    return {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in flat.items()}


def tensorboard_config(tracker: Any, values: dict[str, Any]) -> None:
    """The hyperparameters among the run's own events; Accelerate would begin another run in a subfolder."""
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(values, {}):
        tracker.writer.file_writer.add_summary(summary)


def tensorboard_grid(tracker: Any, tag: str, picture: np.ndarray, images: int) -> None:
    tracker.log_images({tag: picture[None]}, step=images, dataformats="NHWC")


def tensorboard_card(tracker: Any, card: dict[str, Any], images: int) -> None:
    tracker.writer.add_text("card", f"```\n{json.dumps(card, indent=1)}\n```", global_step=images)


def list_grid(tracker: Any, tag: str, picture: np.ndarray, images: int) -> None:
    tracker.log_images({tag: [picture]}, step=images)


def wandb_card(tracker: Any, card: dict[str, Any], images: int) -> None:
    tracker.tracker.summary["card"] = {"images": images, **card}


TRACKERS = {
    "tensorboard": Tracker(
        "distgan[tensorboard]",
        # events after the checkpoint are hidden: the resumed run writes them again
        lambda session: {"purge_step": session.images + 1},
        log_grid=tensorboard_grid,
        log_card=tensorboard_card,
        log_config=tensorboard_config,
    ),
    "wandb": Tracker(
        "wandb",
        lambda session: {
            **{"id": session.id, "resume": "allow"},
            **{"name": session.folder.name, "dir": str(session.folder)},
        },
        log_grid=list_grid,
        log_card=wandb_card,
    ),
    "trackio": Tracker(
        "trackio", lambda session: {"name": f"{session.folder.name}-{session.id[:8]}", "resume": "allow"}
    ),
    "aim": Tracker(
        "aim<4",
        lambda session: {"run_hash": session.id} if session.resumed else {},
        new_id=lambda run: run.hash,
        log_grid=lambda tracker, tag, picture, images: tracker.log_images({tag: Image.fromarray(picture)}, step=images),
    ),
    "comet_ml": Tracker("comet_ml", lambda session: {"experiment_key": session.id}),
    "mlflow": Tracker(
        "mlflow",
        lambda session: {"run_id": session.id} if session.resumed else {"run_name": session.folder.name},
        new_id=lambda run: run.info.run_id,
    ),
    "clearml": Tracker(
        "clearml",
        lambda session: {
            "task_name": session.folder.name,
            "reuse_last_task_id": session.id if session.resumed else False,
            "continue_last_task": 0 if session.resumed else False,  # 0: steps are images seen, without an offset
        },
        new_id=lambda task: task.id,
        log_grid=lambda tracker, tag, picture, images: tracker.log_images({tag: picture}, step=images),
    ),
    "dvclive": Tracker(
        "dvclive",
        lambda session: {
            **{"dir": str(session.folder / "dvclive"), "dvcyaml": str(session.folder / "dvc.yaml")},
            **{"resume": session.resumed},
        },
    ),
    "swanlab": Tracker(
        "swanlab",
        lambda session: {
            **{"id": session.id, "resume": "allow"},
            **{"name": session.folder.name, "logdir": str(session.folder / "swanlab")},
        },
        log_grid=list_grid,
    ),
}
"""report.trackers: name in Accelerate -> what distgan adds."""
