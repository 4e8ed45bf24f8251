"""Experiment trackers by name, through Accelerate: how each is started, resumed, and given grids and metric cards."""

import json
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from distgan.config.keys import Config, flatten, to_dict
from distgan.errors import UsageError
from distgan.files import atomic_write

PROJECT = "distgan"
"""Project of the runs on a tracker's server."""
PACKAGES = {"tensorboard": "distgan[tensorboard]", "aim": "aim<4"}
"""What to `pip install` for a tracker, if not a package of its name."""
LISTS_OF_IMAGES = ("wandb", "swanlab")
"""Trackers whose `log_images` takes a list by tag; the others take one image."""


class Interface:
    """What a tracker is given through Accelerate's interface alone; a resumed run starts a new run there.

    `tracker` is an Accelerate GeneralTracker.
    """

    resumes = False

    def arguments(self, folder: Path, images: int, run_id: str) -> dict[str, Any]:
        """Keyword arguments for Accelerate's class, at a start at `images` seen."""
        return {}

    def log_config(self, tracker: Any, values: dict[str, Any]) -> None:
        """The flat configuration, once in a run of the tracker."""
        tracker.store_init_configuration(values)

    def log_grid(self, tracker: Any, tag: str, picture: np.ndarray, images: int) -> None:
        """A grid, uint8 [H, W, 3], if Accelerate has images for this tracker."""
        if hasattr(tracker, "log_images"):
            tracker.log_images({tag: [picture] if tracker.name in LISTS_OF_IMAGES else picture}, step=images)

    def log_card(self, tracker: Any, card: dict[str, Any], images: int) -> None:
        """A whole metric card; its metrics are logged as scalars besides."""


class TensorBoard(Interface):
    """One TensorBoard run in RUN/tensorboard, of all starts of the run."""

    resumes = True

    def arguments(self, folder: Path, images: int, run_id: str) -> dict[str, Any]:
        return {"purge_step": images + 1}  # events after the checkpoint are hidden: the resumed run writes them again

    def log_config(self, tracker: Any, values: dict[str, Any]) -> None:
        """Among the run's own events; Accelerate would begin another run in a subfolder."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(values, {}):
            tracker.writer.file_writer.add_summary(summary)

    def log_grid(self, tracker: Any, tag: str, picture: np.ndarray, images: int) -> None:
        tracker.log_images({tag: picture[None]}, step=images, dataformats="NHWC")

    def log_card(self, tracker: Any, card: dict[str, Any], images: int) -> None:
        tracker.writer.add_text("card", f"```\n{json.dumps(card, indent=1)}\n```", global_step=images)


class WandB(Interface):
    """One Weights & Biases run under the id in RUN/trackers.json, named like the run folder."""

    resumes = True

    def arguments(self, folder: Path, images: int, run_id: str) -> dict[str, Any]:
        return {"id": run_id, "resume": "allow", "name": folder.name, "dir": str(folder)}

    def log_card(self, tracker: Any, card: dict[str, Any], images: int) -> None:
        tracker.tracker.summary["card"] = {"images": images, **card}


TESTED: dict[str, Interface] = {"tensorboard": TensorBoard(), "wandb": WandB()}
"""Name in Accelerate -> what distgan knows of it. All others are used by `Interface`, untested."""


def interface_of(name: str) -> Interface:
    """What a tracker of this name is given, and how."""
    return TESTED.get(name, Interface())


def check_trackers(names: Sequence[str]) -> None:
    """Raises UsageError, with the pip command, for a tracker that is unknown or not installed.

    Accelerate itself warns of a missing package, and goes on without the tracker.
    """
    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            choices = [*TESTED, *sorted(LOGGER_TYPE_TO_CLASS.keys() - TESTED)]
            raise UsageError(f"report.trackers: unknown tracker {name!r}; choose from {', '.join(choices)}")
        if name not in installed:
            raise UsageError(f"report.trackers: {name} is not installed; pip install '{PACKAGES.get(name, name)}'")


def start_trackers(accelerator: Accelerator, config: Config, images: int) -> None:
    """Start the trackers of `report.trackers` at `images` seen; called on the main process. Raises UsageError.

    Those that resume do so under their ids in RUN/trackers.json; a run that starts again at 0 images gets new ids.
    """
    folder = Path(config.run_dir)
    names = list(dict.fromkeys(config.report.trackers))
    old_ids = read_ids(folder / "trackers.json") if images else {}
    ids = old_ids | {name: uuid.uuid4().hex for name in names if name not in old_ids and interface_of(name).resumes}
    accelerator.log_with = [make_tracker(name, folder, images, ids.get(name, "")) for name in names]
    try:
        accelerator.init_trackers(PROJECT)
        for tracker in accelerator.trackers:
            if tracker.name not in old_ids:
                interface_of(tracker.name).log_config(tracker, to_hparams(to_dict(config)))
    except Exception as error:  # each tracker has its own kinds: no login, no server, no repository
        message = " ".join(str(error).split())
        raise UsageError(f"report.trackers: {', '.join(names)} cannot start: {message}") from error
    atomic_write(folder / "trackers.json", (json.dumps(ids) + "\n").encode())


def make_tracker(name: str, folder: Path, images: int, run_id: str) -> Any:
    """Accelerate's GeneralTracker of that name, not started yet."""
    tracker_class = LOGGER_TYPE_TO_CLASS[name]
    project = "tensorboard" if name == "tensorboard" else PROJECT  # TensorBoard's is its folder in the run folder
    place = (str(folder),) if tracker_class.requires_logging_directory else ()
    return tracker_class(project, *place, **interface_of(name).arguments(folder, images, run_id))


def read_ids(path: Path) -> dict[str, str]:
    """The ids of the run by tracker; {} if there are none. Raises UsageError."""
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        raise UsageError(f"{path} is corrupt; remove it, and the run gets new ids on its trackers") from None


def for_each_tracker(accelerator: Accelerator, work: Callable[[Any], object]) -> None:
    """Call `work` with each tracker. One that fails is left out from then on, with a warning.

    The run goes on without it: metrics.jsonl has all that it was given.
    """
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
    for_each_tracker(accelerator, lambda tracker: interface_of(tracker.name).log_grid(tracker, tag, picture, images))


def log_card(accelerator: Accelerator, card: dict[str, Any], images: int) -> None:
    """Give a metric card to the trackers: its metrics as scalars `metrics/NAME`; called on the main process."""
    values = flatten({"metrics": card.get("metrics") or {}})
    scalars = {
        key.replace(".", "/", 1).removesuffix(".value"): value
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    log_scalars(accelerator, scalars, images)
    for_each_tracker(accelerator, lambda tracker: interface_of(tracker.name).log_card(tracker, card, images))


def finish_trackers(accelerator: Accelerator) -> None:
    """End the trackers' runs."""
    for_each_tracker(accelerator, lambda tracker: tracker.finish())
    accelerator.trackers.clear()


def to_hparams(config: dict[str, Any]) -> dict[str, Any]:
    """What every tracker takes as hyperparameters: no lists, no None."""
    flat = flatten(config)
    return {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in flat.items()}
