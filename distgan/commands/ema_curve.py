"""The metric of averages of G over their widths: as JSON with the cards, and as a figure."""

import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distgan.errors import UsageError, format_os_error

if TYPE_CHECKING:
    from distgan.evaluation.card import Card


class Point(NamedTuple):
    """An average and its card."""

    width: float
    residual: float
    """Of its profile: `distgan.gan.power_ema.Fit`."""
    card: "Card"


@dataclass(frozen=True)
class Curve:
    """The averages of a run at one time."""

    run: str
    images: int
    """Seen at that time."""
    batchnorm_images: int
    """That BatchNorm's statistics were estimated from."""
    points: Sequence[Point]
    """By width."""

    @property
    def metric(self) -> str:
        """The first one on the cards."""
        return next(iter(self.points[0].card.metrics))

    @property
    def values(self) -> list[float]:
        """Of the metric, by width."""
        return [point.card.metrics[self.metric] for point in self.points]

    @property
    def best(self) -> Point:
        """The point with the best value of the metric. Raises UsageError if no value is a number."""
        from distgan.evaluation.card import better

        sign = 1 if better(self.metric) == "lower" else -1
        rated = [(sign * value, i) for i, value in enumerate(self.values) if not math.isnan(value)]
        if not rated:
            raise UsageError(f"metrics: {self.metric} is no number for any width; give another one")
        return self.points[min(rated)[1]]

    def line(self) -> str:
        """The best width, and a remark where a wider or narrower one may be better."""
        best = self.best
        at_end = best in (self.points[0], self.points[-1]) and len(self.points) > 1
        remark = "; it is the last one on its side: others beyond it may be better" if at_end else ""
        return f"best by {self.metric}: width {best.width:g}, {best.card.metrics[self.metric]:.5g}{remark}"

    def to_json(self) -> str:
        about: dict[str, Any] = {"run": self.run, "images": self.images, "batchnorm_images": self.batchnorm_images}
        rows = [
            {"width": point.width, "residual": point.residual, "card": json.loads(point.card.to_json())}
            for point in self.points
        ]
        return json.dumps(about | {"metric": self.metric, "best": self.best.width, "curve": rows}, indent=1) + "\n"


def check_matplotlib() -> None:
    """Raises UsageError where the figure cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("widths: matplotlib, which draws the curve, is not installed; pip install 'distgan[plot]'")


def write_curve(curve: Curve, out: Path) -> Path:
    """Write the curve to `out`, and its figure beside it; returns the file of the figure. Raises UsageError."""
    from distgan.files import atomic_write

    figure = out.with_suffix(".png")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(out, curve.to_json().encode())
        draw(curve, figure)
    except OSError as error:
        raise UsageError(f"curve: {out} cannot be written: {format_os_error(error)}") from None
    return figure


def draw(curve: Curve, path: Path) -> None:
    """The metric over the widths, with that of real images. Raises OSError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3))
    axis.plot([point.width for point in curve.points], curve.values, marker="o", ms=4, lw=1)
    best = curve.best
    value = best.card.metrics[curve.metric]
    axis.plot(best.width, value, "o", ms=8, mfc="none", color="tab:red", label=f"width {best.width:g}: {value:.4g}")
    floor = best.card.floor.get(curve.metric)
    if floor is not None:
        axis.axhline(floor, color="gray", lw=1, ls=":", label=f"real against real: {floor:.4g}")
    axis.set_xlabel(f"relative width of the average at {curve.images:,} images")
    axis.set_ylabel(curve.metric)
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
