"""The log of a run: the terminal, metrics.jsonl, trackers, pictures."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from tqdm import tqdm

from distgan.images import save_picture
from distgan.logs.alarms import Alarms
from distgan.logs.trackers import log_card, log_grid, log_scalars
from distgan.runs.metrics_file import MetricsFile, Record

STATUS_NAMES = {"d_real": "D(x)", "d_fake": "D(G(z))"}
"""What the status line calls a scalar of the step, if not by its own name."""
NOT_SHOWN = ("d_sign", "d_grad_norm", "g_grad_norm")
"""Scalars that are in metrics.jsonl only."""


class Terminal:
    """Prints lines, above a progress bar if standard error is a terminal; silent on all but the main process."""

    def __init__(self, is_main_process: bool) -> None:
        self.is_main_process = is_main_process
        self.bar: tqdm | None = None

    def start_bar(self, images_seen: int, total_images: int) -> None:
        if self.is_main_process and sys.stderr.isatty():
            self.bar = tqdm(total=total_images, initial=images_seen, unit=" images", dynamic_ncols=True, smoothing=0.05)

    def update_bar(self, images_seen: int) -> None:
        if self.bar is not None:
            self.bar.update(images_seen - self.bar.n)

    def print0(self, text: str) -> None:
        """Print a line."""
        if not self.is_main_process:
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        self.print0(f"warning: {text}")

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


class RunLog:
    """Takes in records, cards and pictures; on the main process, which writes them to metrics.jsonl and trackers."""

    def __init__(self, folder: Path, accelerator: Accelerator, terminal: Terminal, alarms: Alarms) -> None:
        self.folder = folder
        self.accelerator = accelerator
        self.terminal = terminal
        self.metrics_file = MetricsFile(folder / "metrics.jsonl")
        self.alarms = alarms
        self.last_grid: Path | None = None
        """The last grid of images that was written."""

    def rewind(self, images_seen: int) -> int:
        """Go on from the log as it was at `images_seen`: a resumed run raises the same alarms.

        Returns the images seen at the last evaluation, 0 if there was none.
        """
        self.metrics_file.truncate(images_seen)
        self.alarms.clear()
        last_evaluated = 0
        for record in self.metrics_file.records():
            if "d_loss" in record:
                self.alarms.check(record)
            if "copied" in record:
                self.alarms.check_copying(record)
            if "card" in record:
                last_evaluated = record["images"]
        return last_evaluated

    def record(self, record: Record) -> None:
        """Write a line of metrics, give its scalars to the trackers, and warn of what the alarms see in it."""
        self.metrics_file.append(record)
        curves = record.keys() - {"images", "epoch", "time"}  # the x-axis, and what is computed from it
        log_scalars(self.accelerator, {key: record[key] for key in record if key in curves}, record["images"])
        self.warn(self.alarms.check(record), record)

    def warn(self, warnings: Sequence[str], record: Record) -> None:
        """Print and write warnings about a line of metrics."""
        for warning in warnings:
            self.terminal.warn(warning)
            self.metrics_file.append({"images": record["images"], "warning": warning, "time": record["time"]})

    def card(self, images_seen: int, epoch: float, card: dict[str, Any], seconds: float) -> None:
        """Write a metric card, with how long its evaluation took."""
        times = {"evaluate_seconds": seconds, "time": round(time.time(), 3)}
        self.metrics_file.append({"images": images_seen, "epoch": epoch, "card": card, **times})
        log_card(self.accelerator, card, images_seen)

    def copying(
        self,
        images_seen: int,
        epoch: float,
        values: Mapping[str, float],
        seconds: float,
        *,
        name: str,
        picture: np.ndarray,
    ) -> None:
        """Write whether G copies, with how long it took to see, and its sheet as samples/NAME.png; warn of copies."""
        scalars = {**values, "nearest_seconds": seconds}
        record = {"images": images_seen, "epoch": epoch, **scalars, "time": round(time.time(), 3)}
        self.metrics_file.append(record)
        log_scalars(self.accelerator, scalars, images_seen)
        self.picture(name, picture, images_seen)
        self.warn(self.alarms.check_copying(record), record)

    def override(self, images_seen: int, changes: Mapping[str, Sequence[Any]]) -> None:
        """Write the keys that a resumed run changed, with their old and new values; once, if it is resumed again."""
        for record in self.metrics_file.records():
            if record["images"] == images_seen and record.get("override") == changes:
                return
        self.metrics_file.append({"images": images_seen, "override": changes, "time": round(time.time(), 3)})

    def grid(self, name: str, picture: np.ndarray, images_seen: int) -> None:
        """Write a grid of images, as `picture`."""
        self.last_grid = self.picture(name, picture, images_seen)

    def picture(self, name: str, picture: np.ndarray, images_seen: int) -> Path:
        """Write a picture, uint8 [H, W, 3], as samples/NAME.png; returns the file."""
        path = self.folder / "samples" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        save_picture(picture, path)
        log_grid(self.accelerator, name.split("-")[0], picture, images_seen)
        return path


def status_line(record: Record, means: Mapping[str, float], *, epochs: int, eta_seconds: float) -> str:
    """A line of the log for people: epoch, images, rate, the step's scalars, time to go, memory."""
    shown = {name: value for name, value in means.items() if name not in NOT_SHOWN}
    scalars = "  ".join(f"{STATUS_NAMES.get(name, name)} {value:.4f}" for name, value in shown.items())
    return (
        f"epoch {record['epoch']}/{epochs}  images {record['images']:,}  {record['images_per_second']:,.0f} img/s  "
        f"{scalars}  eta {format_time(eta_seconds)}  {record['memory_gb']:.1f} GB"
    )


def format_time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"
