"""The log of a run: status lines, metrics.jsonl, TensorBoard, grids of images."""

import json
import math
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from distgan import RunError
from distgan.config import flatten, to_dict
from distgan.data.stream import ImageBatch
from distgan.gan.step import Scalars
from distgan.images import grid, save_picture, to_uint8
from distgan.training.build import Run
from distgan.training.finite import NonFiniteError
from distgan.training.state import TrainState

STATUS_NAMES = {"d_real": "D(x)", "d_fake": "D(G(z))"}
"""What the status line calls a scalar of the step, if not by its own name."""


class MetricsLogger:
    """Prints and writes on the main process. Sums over the iterations of a logging interval stay on the device."""

    def __init__(self, run: Run, state: TrainState) -> None:
        config = run.config
        self.run, self.state, self.folder = run, state, Path(config.run_dir)
        self.accelerator, self.is_main_process = run.dist.accelerator, run.dist.is_main_process
        self.every_images = config.report.every_images
        if config.report.tensorboard:
            self.accelerator.init_trackers("tensorboard", config=to_hparams(to_dict(config)))
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
        self.bar: tqdm | None = None
        if self.is_main_process and sys.stderr.isatty():
            self.bar = tqdm(
                total=run.total_images, initial=state.images_seen, unit=" images", dynamic_ncols=True, smoothing=0.05
            )
        self.rewind()

    def rewind(self) -> None:
        """Start a new logging interval at `state.images_seen`; drop the lines of metrics.jsonl after it."""
        self.sums: Tensor | None = None
        self.names: list[str] = []
        self.count = 0
        self.last_images, self.last_time = self.state.images_seen, time.monotonic()
        self.corrupt.clear()
        self.data_wait_seconds, self.digest = 0.0, 0
        self.steps = count_steps(self.run) if self.accelerator.scaler is not None else 0
        if self.is_main_process:
            truncate_metrics(self.folder / "metrics.jsonl", self.state.images_seen)

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
        values = torch.stack(list(scalars.values()))
        self.names = list(scalars)
        self.sums = values if self.sums is None else self.sums + values
        self.count += 1
        if self.bar is not None:
            self.bar.update(self.state.images_seen - self.bar.n)

    def due(self) -> bool:
        """Whether a line is due."""
        crossed = self.state.images_seen // self.every_images > self.last_images // self.every_images
        return self.count > 0 and crossed

    def log_metrics(self) -> None:
        """Reduce the sums over processes, print the status line and write the metrics; waits for the device.

        Called on all processes. Raises RunError if `data.skip_bad` is exceeded over all of them.
        """
        config, dist, state = self.run.config, self.run.dist, self.state
        for line in self.corrupt:
            print(f"distgan: skipped a corrupt image: {line}", file=sys.stderr, flush=True)
        state.skipped += dist.all_reduce_sum(len(self.corrupt))
        extra: dict[str, Any] = {"skipped": state.skipped, "save_seconds": self.save_seconds}
        extra["data_wait_seconds"] = max(dist.all_gather_object(self.data_wait_seconds))  # the others wait for this one
        if self.accelerator.scaler is not None:
            extra |= self.fp16_scalars()
        if config.report.digests:
            extra["digest"] = dist.all_reduce_sum(self.digest)
        assert self.sums is not None, "a line is due after an iteration only"
        means = self.accelerator.reduce(self.sums / self.count, "mean")
        assert isinstance(means, Tensor)
        self.write_metrics(dict(zip(self.names, means.tolist(), strict=True)), extra)
        self.sums, self.count, self.save_seconds, self.data_wait_seconds, self.digest = None, 0, 0.0, 0.0, 0
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
        skipped, self.steps = 2 * self.count - (steps - self.steps), steps
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
        self.accelerator.log({key: row[key] for key in row if key in curves}, step=images)
        scalars = "  ".join(f"{STATUS_NAMES.get(name, name)} {value:.4f}" for name, value in means.items())
        eta = format_time(max(0, total_images - images) / max(overall, 1e-9))
        self.print0(
            f"epoch {epoch}/{math.ceil(total_images / epoch_images)}  images {images:,}  {rate:,.0f} img/s  "
            f"{scalars}  eta {eta}  {row['memory_gb']:.1f} GB"
        )

    def append_metrics(self, row: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl; on the main process."""
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

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
        for tracker in self.accelerator.trackers:
            tracker.log_images(  # type: ignore[attr-defined]
                {name.split("-")[0]: picture[None]}, step=self.state.images_seen, dataformats="NHWC"
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def count_steps(run: Run) -> int:
    """Updates of G and of D so far; waits for the device."""
    optimizers = (run.gan.g_optimizer, run.gan.d_optimizer)
    states = (optimizer.state.get(optimizer.param_groups[0]["params"][0], {}) for optimizer in optimizers)
    return sum(int(state.get("step", 0)) for state in states)


def learning_rate(optimizer: torch.optim.Optimizer) -> float:
    return optimizer.param_groups[0]["lr"]


def truncate_metrics(path: Path, images_seen: int) -> None:
    """Drop the lines after `images_seen`, which the resumed run will write again, and an incomplete last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["images"] <= images_seen:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def to_hparams(config: dict[str, Any]) -> dict[str, Any]:
    """What TensorBoard's table of hyperparameters accepts: no lists, no None."""
    flat = flatten(config)
    return {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in flat.items()}


def format_time(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: reserved by the device's allocator, or on a CPU of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
