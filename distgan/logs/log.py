"""The log of a run: status lines, metrics.jsonl, trackers, grids of images."""

import math
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distgan.config.keys import Config, is_adaptive
from distgan.data.stream import ImageBatch
from distgan.errors import RunError
from distgan.gan.schedules import value_at
from distgan.gan.step import Scalars
from distgan.images import grid, save_picture, to_uint8
from distgan.logs.alarms import Alarms
from distgan.logs.trackers import log_card, log_grid, log_scalars, start_trackers
from distgan.runs.metrics_file import MetricsFile
from distgan.training.build import Run
from distgan.training.finite import NonFiniteError
from distgan.training.state import TrainState

STATUS_NAMES = {"d_real": "D(x)", "d_fake": "D(G(z))"}
"""What the status line calls a scalar of the step, if not by its own name."""
NOT_SHOWN = ("d_sign", "d_grad_norm", "g_grad_norm")
"""Scalars that are in metrics.jsonl only."""


class MetricsLogger:
    """Prints and writes on the main process. Sums over the iterations of a logging interval stay on the device."""

    def __init__(self, run: Run, state: TrainState) -> None:
        config = run.config
        self.run, self.state, self.folder = run, state, Path(config.run_dir)
        self.accelerator, self.is_main_process = run.processes.accelerator, run.processes.is_main_process
        self.every_images = config.report.every_images
        self.metrics_file = MetricsFile(self.folder / "metrics.jsonl")
        if config.report.trackers:
            run.processes.run_on_main(lambda: start_trackers(self.accelerator, config, state.images_seen))
        self.start_images, self.start_time = state.images_seen, time.monotonic()
        self.save_seconds = 0.0
        """Time that the loop waited for checkpoints in this logging interval."""
        self.data_wait_seconds = 0.0
        """Time that the loop waited for images in this logging interval."""
        self.corrupt: list[str] = []
        """Corrupt images that this process skipped in this logging interval."""
        self.digest = 0
        """Hash of what this process read in this logging interval."""
        self.last_grid: Path | None = None
        """The last file that `save_grid` wrote."""
        self.last_evaluated = 0
        """Images seen at the last evaluation; the same on all processes."""
        self.bar: tqdm | None = None
        if self.is_main_process and sys.stderr.isatty():
            self.bar = tqdm(
                total=run.total_images, initial=state.images_seen, unit=" images", dynamic_ncols=True, smoothing=0.05
            )
        self.rewind()

    def rewind(self) -> None:
        """Start a new logging interval at `state.images_seen`; drop the lines of metrics.jsonl after it."""
        self.sums: dict[tuple[str, ...], Tensor] = {}
        self.counts: dict[tuple[str, ...], int] = {}
        self.last_images, self.last_time = self.state.images_seen, time.monotonic()
        self.corrupt.clear()
        self.data_wait_seconds, self.digest = 0.0, 0
        self.steps = count_steps(self.run) if self.accelerator.scaler is not None else 0
        self.diversity: float | None = None
        """Of the grid of this logging interval, if there is one; on the main process."""
        self.alarms = Alarms(list(self.run.penalties), self.run.gan.loss.boundary is not None)
        """Of the main process."""
        self.last_evaluated = self.run.processes.run_on_main(self.read_metrics)

    def read_metrics(self) -> int:
        """Go on from metrics.jsonl as it was at `state.images_seen`: a resumed run raises the same alarms.

        Returns the images seen at the last evaluation; called on the main process.
        """
        self.metrics_file.truncate(self.state.images_seen)
        rows = self.rows()
        for row in rows:
            if "d_loss" in row:
                self.alarms.check(row)
        return max((row["images"] for row in rows if "card" in row), default=0)

    def record_batch(self, batch: ImageBatch) -> None:
        """Take in what was read from the dataset. Raises RunError if `data.skip_bad` is exceeded."""
        config = self.run.config
        self.corrupt += batch.corrupt
        self.data_wait_seconds += batch.wait_seconds
        self.digest += batch.digest() if config.report.digests else 0
        if self.state.skipped + len(self.corrupt) > config.data.skip_bad:
            raise RunError(f"more than data.skip_bad = {config.data.skip_bad} corrupt images; last: {self.corrupt[-1]}")

    def add(self, scalars: Scalars) -> None:
        """Take in an iteration's scalars; does not wait for the device."""
        values, names = torch.stack(list(scalars.values())), tuple(scalars)  # lazy penalties are not in each iteration
        self.sums[names] = self.sums[names] + values if names in self.sums else values
        self.counts[names] = self.counts.get(names, 0) + 1
        if self.bar is not None:
            self.bar.update(self.state.images_seen - self.bar.n)

    @property
    def count(self) -> int:
        """Iterations in this logging interval."""
        return sum(self.counts.values())

    def means(self) -> dict[str, float]:
        """The mean of each scalar over all processes and over the iterations that have it; waits for the device."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, values in self.sums.items():
            reduced = self.accelerator.reduce(values / self.counts[names], "mean")
            assert isinstance(reduced, Tensor)
            for name, value in zip(names, reduced.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value * self.counts[names]
                counts[name] = counts.get(name, 0) + self.counts[names]
        return {name: value / counts[name] for name, value in sums.items()}

    def due(self) -> bool:
        """Whether a line is due."""
        crossed = self.state.images_seen // self.every_images > self.last_images // self.every_images
        return self.count > 0 and crossed

    def log_metrics(self) -> None:
        """Reduce the sums over processes, print the status line and write the metrics; waits for the device.

        Called on all processes. Raises RunError if `data.skip_bad` is exceeded over all of them.
        """
        config, processes, state = self.run.config, self.run.processes, self.state
        for line in self.corrupt:
            print(f"distgan: skipped a corrupt image: {line}", file=sys.stderr, flush=True)
        state.skipped += processes.all_reduce_sum(len(self.corrupt))
        extra: dict[str, Any] = {"skipped": state.skipped, "save_seconds": self.save_seconds}
        extra["data_wait_seconds"] = max(
            processes.all_gather_object(self.data_wait_seconds)
        )  # the others wait for this one
        if self.accelerator.scaler is not None:
            extra |= self.fp16_scalars()
        if config.report.digests:
            extra["digest"] = processes.all_reduce_sum(self.digest)
        if is_adaptive(config):
            extra["augment_p"] = float(state.augment_p)
        if self.diversity is not None:
            extra["diversity"] = self.diversity
        extra |= scheduled_values(config, state.images_seen)
        self.write_metrics(self.means(), extra)
        self.sums, self.counts = {}, {}
        self.save_seconds, self.data_wait_seconds, self.digest, self.diversity = 0.0, 0.0, 0, None
        self.corrupt.clear()
        if extra.get("fp16_scale", 1) < 1:
            raise NonFiniteError(
                f"precision: gradients overflow in fp16 at every loss scale (now {extra['fp16_scale']:g}); use bf16"
            )
        if state.skipped > config.data.skip_bad:
            raise RunError(f"more than data.skip_bad = {config.data.skip_bad} corrupt images over all processes")

    def fp16_scalars(self) -> dict[str, float]:
        """The loss scale, and the updates that were skipped because gradients overflowed, since the last line."""
        assert self.accelerator.scaler is not None
        steps = count_steps(self.run)
        updates = (1 + self.run.config.n_critic) * self.count
        skipped, self.steps = updates - (steps - self.steps), steps
        return {"fp16_scale": self.accelerator.scaler.get_scale(), "fp16_skipped_steps": skipped}

    def write_metrics(self, means: dict[str, float], extra: dict[str, Any]) -> None:
        """A status line, a line of metrics.jsonl, the trackers; on the main process."""
        images, now = self.state.images_seen, time.monotonic()
        rate = (images - self.last_images) / max(now - self.last_time, 1e-9)
        overall = (images - self.start_images) / max(now - self.start_time, 1e-9)
        self.last_images, self.last_time = images, now
        if not self.is_main_process:
            return
        epoch_images, total_images = self.run.order.epoch_images, self.run.total_images
        epoch = (images - self.run.config.batch) // epoch_images + 1  # that of the last minibatch's first image
        row = {"images": images, "epoch": epoch, **means, "images_per_second": rate, **extra}
        row["memory_gb"] = peak_memory(self.accelerator.device) / 1e9
        row |= {"g_lr": learning_rate(self.run.gan.g_optimizer), "d_lr": learning_rate(self.run.gan.d_optimizer)}
        row["time"] = round(time.time(), 3)
        self.append_metrics(row)
        curves = row.keys() - {"images", "epoch", "time"}  # the x-axis, and what is computed from it
        log_scalars(self.accelerator, {key: row[key] for key in row if key in curves}, images)
        eta = format_time(max(0, total_images - images) / max(overall, 1e-9))
        shown = {name: value for name, value in means.items() if name not in NOT_SHOWN}
        scalars = "  ".join(f"{STATUS_NAMES.get(name, name)} {value:.4f}" for name, value in shown.items())
        self.print0(
            f"epoch {epoch}/{math.ceil(total_images / epoch_images)}  images {images:,}  {rate:,.0f} img/s  "
            f"{scalars}  eta {eta}  {row['memory_gb']:.1f} GB"
        )

        for warning in self.alarms.check(row):
            self.print0(f"warning: {warning}")
            self.append_metrics({"images": images, "warning": warning, "time": row["time"]})

    def log_card(self, card: dict[str, Any], line: str, seconds: float) -> None:
        """Print a metric card and add it to metrics.jsonl, with how long it took; on the main process."""
        self.print0(line)
        images = self.state.images_seen
        epoch = round(images / self.run.order.epoch_images, 4)
        times = {"evaluate_seconds": seconds, "time": round(time.time(), 3)}
        self.append_metrics({"images": images, "epoch": epoch, "card": card, **times})

    def cards(self) -> list[tuple[int, dict[str, Any]]]:
        """(images, card) of every evaluation in metrics.jsonl."""
        return self.metrics_file.cards()

    def rows(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return self.metrics_file.records()

    def pause(self, seconds: float) -> None:
        """Leave out what was no training from the rates."""
        self.last_time += seconds
        self.start_time += seconds

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and a metric card to the trackers too; on the main process."""
        self.metrics_file.append(row)
        if "card" in row:
            log_card(self.accelerator, row["card"], row["images"])

    def print0(self, text: str) -> None:
        """Print a line, on the main process."""
        if not self.is_main_process:
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def save_grid(self, name: str, images: Tensor) -> None:
        """Save images [N, C, S, S] in [-1, 1] as the grid samples/NAME.png; called on the main process."""
        path = self.folder / "samples" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        picture = grid(to_uint8(images.float().cpu().numpy()))
        save_picture(picture, path)
        self.last_grid = path
        log_grid(self.accelerator, name.split("-")[0], picture, self.state.images_seen)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def scheduled_values(config: Config, images_seen: int) -> dict[str, float]:
    """The numbers of the schedules of penalties and augmentation after `images_seen` images, by key."""
    values = {f"{name}_weight": value for name, value in config.penalties.items()} | {"augment_p": config.augment_p}
    rows = {key: value.get("weight", value) for key, value in values.items() if isinstance(value, dict)}
    return {key: value_at(row, images_seen) for key, row in rows.items() if isinstance(row, dict) and "from" in row}


def count_steps(run: Run) -> int:
    """Updates of G and of D so far; waits for the device."""
    optimizers = (run.gan.g_optimizer, run.gan.d_optimizer)
    states = (optimizer.state.get(optimizer.param_groups[0]["params"][0], {}) for optimizer in optimizers)
    return sum(int(state.get("step", 0)) for state in states)


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]


def format_time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: reserved by the device's allocator, or on a CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
