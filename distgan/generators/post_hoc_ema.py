"""Averages of G of any width, put together after the training from snapshots of averages of two or more widths.

Karras et al. 2024, arXiv 2312.02696, section 3.2 and appendix C.2; the mathematics is in `distgan.gan.power_ema`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch

from distgan.errors import UsageError, format_os_error
from distgan.gan.power_ema import WIDEST, Profile, fit_profile
from distgan.generators.batchnorm_statistics import batchnorm_layers, estimate_statistics
from distgan.generators.loading import load_generator
from distgan.runs.checkpoint import METADATA, Tensors, load_weights
from distgan.runs.ema_snapshots import EMASnapshots, Snapshot, write_weights

LARGEST_RESIDUAL = 0.1
"""Of a profile that is put together, as a share of the profile's norm; a larger one is refused. In the demo (README.md)
the Frechet distance was then wrong by up to 11 %, and by up to 5 % between 0.05 and 0.1, and 1 % below."""


class Average(NamedTuple):
    """Weights of G of a width."""

    width: float
    residual: float
    """What the snapshots do not give of its profile: `distgan.gan.power_ema.Fit`."""
    tensors: Tensors
    """On the CPU, in the types of the snapshots."""

    def __str__(self) -> str:
        return f"width {self.width:g}, residual of the profile {self.residual:.1e}"


class PostHocEMA:
    """Averages of a run at the time of a snapshot, of snapshots up to then.

    Args:
        run_dir: The run, which has snapshots in its folder `ema`.
        images: Images seen at that time. Default: at the last snapshot.
        batchnorm_images: Images that BatchNorm's statistics are estimated from, for each width; 0: the statistics are
            those of the G of that time.
        device: Where G generates these images.

    Raises UsageError where there is no snapshot at that time, or the newest of them is of no generator.
    """

    def __init__(
        self, run_dir: Path, images: int | None = None, *, batchnorm_images: int = 0, device: str | torch.device = "cpu"
    ) -> None:
        self.snapshots = snapshots_until(run_dir, images)
        newest = self.snapshots[-1]
        self.images = newest.images
        self.G = load_generator(newest.path, device)
        self.averaged = {name for name, _ in self.G.network.named_parameters()}
        """By name; buffers are those of the newest snapshot."""
        self.batchnorm_images = batchnorm_images if batchnorm_layers(self.G) else 0
        self.metadata = read_metadata(newest.path)

    def average(self, width: float) -> Average:
        """The average of a width. Raises UsageError for one that the snapshots do not give."""
        coefficients, residual = self.fit(width)
        sums: dict[str, torch.Tensor] = {}
        for snapshot, coefficient in zip(self.snapshots, coefficients, strict=True):
            weights, _ = load_weights(snapshot.path)
            for name in self.averaged:
                sums[name] = sums.get(name, 0) + coefficient * weights[name].double()
        own = self.G.network.state_dict()
        newest, _ = load_weights(self.snapshots[-1].path)
        self.G.network.load_state_dict(
            {name: sums[name].to(own[name].dtype) if name in sums else newest[name] for name in own}
        )
        if self.batchnorm_images:
            estimate_statistics(self.G, self.batchnorm_images)
        tensors = {
            name: tensor.to("cpu", copy=True).contiguous() for name, tensor in self.G.network.state_dict().items()
        }
        return Average(width, residual, tensors)

    def fit(self, width: float) -> tuple[list[float], float]:
        """The coefficients of the snapshots, and the residual. Raises UsageError."""
        if not 0 < width < WIDEST:
            raise UsageError(f"width: no average has the width {width:g}; give one above 0, below {WIDEST:.5f}")
        profiles = [Profile(snapshot.images, snapshot.width) for snapshot in self.snapshots]
        coefficients, residual = fit_profile(profiles, Profile(self.images, width))
        if residual > LARGEST_RESIDUAL:
            widths = sorted({snapshot.width for snapshot in self.snapshots})
            shown = ", ".join(f"{each:g}" for each in widths)
            raise UsageError(
                f"width: {width:g} is too far from what there is: {len(profiles)} snapshots of the widths {shown} "
                f"leave {residual:.0%} of its profile, of at most {LARGEST_RESIDUAL:.0%}; take a width nearer to "
                "theirs, or train with a smaller ema.snapshot_epochs, or with that width in ema.power_widths"
            )
        return coefficients.tolist(), residual

    def save(self, path: Path, average: Average) -> None:
        """Write a .safetensors file like that of a checkpoint. Raises UsageError."""
        about = {"ema_width": average.width, "ema_residual": average.residual}
        about["ema_batchnorm_images"] = self.batchnorm_images
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_weights(path, average.tensors, self.metadata | about)
        except (OSError, safetensors.SafetensorError) as error:
            reason = format_os_error(error) if isinstance(error, OSError) else str(error)
            raise UsageError(f"out: {path} cannot be written: {reason}") from None


def snapshots_until(run_dir: Path, images: int | None) -> Sequence[Snapshot]:
    """The snapshots of a run up to the one at `images`, by default the last one. Raises UsageError."""
    found = EMASnapshots(run_dir).all()
    if not found:
        raise UsageError(
            f"{run_dir} has no snapshots of averages; give a run that was trained with --ema.power_widths '[0.05, 0.1]'"
        )
    last = found[-1].images if images is None else images
    times = {snapshot.images for snapshot in found}
    if last not in times:
        near = sorted(sorted(times, key=lambda time: abs(time - last))[:3])
        shown = ", ".join(str(time) for time in near)
        raise UsageError(f"at: there is no snapshot at {last} images in {run_dir}/ema; the nearest are at {shown}")
    return [snapshot for snapshot in found if snapshot.images <= last]


def read_metadata(path: Path) -> dict[str, Any]:
    """All of the metadata of a file that was read before."""
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()[METADATA])
