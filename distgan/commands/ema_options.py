"""The options of `distgan ema`, and which of them go together."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from distgan.config.types import NonNegativeInt, PositiveFloat, PositiveInt
from distgan.errors import UsageError

OF_BOTH = {"width", "widths", "at", "out", "batchnorm_images", "import"}
"""Options of one width and of several; the others are of the evaluations."""


@dataclass(frozen=True)
class EMAOptions:
    """What is put together; the docstrings are the help."""

    width: PositiveFloat | None = None
    """Relative width of the average, written to --out."""
    widths: str | None = None
    """Comma-separated widths, to evaluate each, and write the curve; the average of the best one goes to --out, if it
    is given."""
    at: PositiveInt | None = None
    """Images seen at the time of the average, a time with snapshots. Default: that of the last ones."""
    out: str | None = None
    """File to write: .safetensors, as a checkpoint has it."""
    curve: str | None = None
    """File of the curve over --widths, .json; the figure is a .png beside it. Default: in RUN/ema."""
    batchnorm_images: NonNegativeInt = 4096
    """Images to generate, from which the running statistics of BatchNorm are estimated for the average. 0: they are
    those of G at that time."""

    @property
    def out_file(self) -> Path | None:
        return None if self.out is None else Path(self.out)

    @property
    def several(self) -> list[float]:
        """The widths of --widths, in order. Raises UsageError."""
        words = [word.strip() for word in (self.widths or "").split(",") if word.strip()]
        try:
            found = sorted({float(word) for word in words})
        except ValueError:
            found = []
        if not found:
            raise UsageError(f"widths: {self.widths!r} is no list of numbers; give some, e.g. 0.05,0.1,0.15")
        return found


def check_options(options: EMAOptions, given: Collection[str]) -> None:
    """Raises UsageError for options that do not go together; `given` are those of the command line."""
    if (options.width is None) == (options.widths is None):
        raise UsageError("give --width WIDTH and --out FILE.safetensors, or --widths 0.05,0.1,0.15 to evaluate several")
    if options.width is not None:
        if options.out is None:
            raise UsageError("out: give the file to write, as --out FILE.safetensors")
        if others := sorted(set(given) - OF_BOTH):
            raise UsageError(f"{others[0]}: it is of the evaluations of --widths; leave it out, or give --widths")
    for name, path, suffix in (("out", options.out, ".safetensors"), ("curve", options.curve, ".json")):
        if path is not None and Path(path).suffix != suffix:
            raise UsageError(f"{name}: {path} must end in {suffix}")
