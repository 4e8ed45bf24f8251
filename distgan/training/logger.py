"""What people see of a run: a status line, metrics.jsonl, grids of images, environment.json."""

import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

from distgan import __version__

LIBRARIES = ("torch", "torchvision", "accelerate", "webdataset", "safetensors", "jsonargparse", "numpy", "pillow")


class Report:
    """Writes on the main process, is silent on the others. Sums stay on the device between two lines."""

    def __init__(
        self,
        folder: Path,
        accelerator: Accelerator,
        *,
        images: int,
        target: int,
        epoch_images: int,
        every_images: int,
        batch: int,
    ) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.main = accelerator.is_main_process
        self.target, self.epoch_images, self.every_images, self.batch = target, epoch_images, every_images, batch
        self.sums: Tensor | None = None
        self.names: list[str] = []
        self.count = 0
        self.since = images
        self.began = self.time = time.monotonic()
        self.began_at = images
        self.bar: tqdm | None = None
        if self.main and sys.stderr.isatty():
            self.bar = tqdm(total=target, initial=images, unit=" images", dynamic_ncols=True, smoothing=0.05)
        if self.main:
            keep_lines(folder / "metrics.jsonl", images)

    def add(self, scalars: dict[str, Tensor], images: int) -> None:
        """Take in an iteration's scalars; waits for nothing."""
        values = torch.stack(list(scalars.values()))
        self.names = list(scalars)
        self.sums = values if self.sums is None else self.sums + values
        self.count += 1
        if self.bar is not None:
            self.bar.update(images - self.bar.n)

    def due(self, images: int) -> bool:
        return self.count > 0 and images // self.every_images > self.since // self.every_images

    def means(self) -> Tensor:
        """The means of the iterations since the last line, on the device."""
        assert self.sums is not None
        return self.sums / self.count

    def line(self, means: Tensor, images: int, extra: dict[str, Any]) -> None:
        """Print and store the means over iterations and processes; the one place that waits for the device."""
        values = dict(zip(self.names, means.tolist(), strict=True))
        now = time.monotonic()
        rate = (images - self.since) / max(now - self.time, 1e-9)
        overall = (images - self.began_at) / max(now - self.began, 1e-9)
        self.sums, self.count, self.since, self.time = None, 0, images, now
        if not self.main:
            return
        epoch = (images - self.batch) // self.epoch_images + 1  # the one that the last minibatch began in
        row = {"images": images, "epoch": epoch, **values, "images_per_second": rate}
        row |= extra | {"memory_gb": peak_memory(self.accelerator.device) / 1e9}
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        scalars = {name: value for name, value in row.items() if isinstance(value, (int, float))}
        self.accelerator.log(scalars, step=images)
        epochs = f"{row['epoch']}/{math.ceil(self.target / self.epoch_images)}"
        self.say(
            f"epoch {epochs}  images {images:,}  {rate:,.0f} img/s  d_loss {values['d_loss']:.4f}  "
            f"g_loss {values['g_loss']:.4f}  D(x) {values['d_real']:.3f}  D(G(z)) {values['d_fake']:.3f}  "
            f"eta {clock((self.target - images) / overall)}  {row['memory_gb']:.1f} GB"
        )

    def back_to(self, images: int) -> None:
        """Forget what came after `images`."""
        self.sums, self.count, self.since, self.time = None, 0, images, time.monotonic()
        if self.main:
            keep_lines(self.folder / "metrics.jsonl", images)

    def say(self, text: str) -> None:
        """A line of the log, on the main process."""
        if not self.main:
            return
        if self.bar is not None:
            self.bar.write(text)
        else:
            print(text, flush=True)

    def images(self, name: str, images: Tensor, step: int) -> None:
        """Save a grid of images [N, channels, size, size] in [-1, 1] as samples/NAME.png; call on the main process."""
        path = self.folder / "samples" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        tiled = grid(images)
        temporary = path.with_name(f".{path.name}")
        save_image(tiled, temporary, format="png")
        os.replace(temporary, path)
        for tracker in self.accelerator.trackers:
            tracker.log_images({name.split("-")[0]: tiled[None].numpy()}, step=step)  # type: ignore[attr-defined]

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def grid(images: Tensor) -> Tensor:
    """Images [N, C, S, S] in [-1, 1] as one picture [3, H, W] in [0, 1], about as wide as high."""
    return make_grid(images.float().cpu(), nrow=math.ceil(math.sqrt(len(images))), normalize=True, value_range=(-1, 1))


def keep_lines(path: Path, images: int) -> None:
    """Drop the lines after `images`, which the continued run will write again, and a line that a kill cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["images"] <= images:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            continue
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(kept))
    os.replace(temporary, path)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that the device's allocator held, or on a CPU the most that this process held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def environment(device: torch.device, world: int) -> dict[str, Any]:
    """What this run runs on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "distgan": __version__,
        "commit": commit(),
        "command": shlex.join(sys.orig_argv),
        "processes": world,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def commit() -> str | None:
    """The commit of the checkout this code lies in, marked where files differ from it."""
    here = Path(__file__).resolve().parent
    try:
        asked = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
