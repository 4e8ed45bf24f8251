"""The options of `distgan project`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distgan.commands.generator_options import GeneratorOptions
from distgan.commands.sample_options import LOOPS, SHEETS
from distgan.config.types import NonNegativeInt, PositiveFloat, PositiveInt
from distgan.errors import UsageError

FORMATS = (".npz", *SHEETS, *LOOPS)


@dataclass(frozen=True)
class Options(GeneratorOptions):
    """The options of `distgan project`; the docstrings are their help."""

    out: str = "projected"
    """A folder: result.npz, path.png, and each result as a file; or one file: .npz, the arrays `z` or `w`, `labels`,
    `images` and `distances` [N, steps + 1], for `sample --latents`; .png or .jpg, a sheet with a row for each image
    (the image, steps on the way, the result); .gif, .webp or .mp4, the way beside the image."""
    space: Literal["z", "w", "w+"] | None = None
    """Latents to look for: z (of any generator), w (what a mapping network makes of z), or w+ (a w for each layer, as
    of stylegan2: the nearest images, the furthest from what G makes). Default: w, where there is one, else z."""
    extractor: str = "pixels"
    """What measures the distance: pixels (the mean squared error), efficientnet-lite0 (LPIPS-like, for photographs), or
    the .safetensors file of a classifier of `distgan evaluate --train_extractor` (likewise)."""
    steps: PositiveInt = 1000
    """Of the optimization, for each image."""
    lr: PositiveFloat = 0.1
    """Learning rate of Adam, in units of the deviation of z or w."""
    seed: NonNegativeInt = 0
    """Of the noise on w, and of random starts: the same seed gives the same result."""
    restarts: PositiveInt = 1
    """Searches for each image, of which the best is kept; the first begins at the mean of w, the others, and all in z,
    at random."""
    label: str | None = None
    """Class of the images, by name or number. Default: those of a dataset."""
    condition: str | None = None
    """Values of conditions, such as energy=50,angle=0.3. Default: those of a dataset."""
    fit: Literal["crop", "pad", "stretch"] = "crop"
    """For images of another aspect ratio than G's: crop (the centre), pad with black, or stretch."""
    count: PositiveInt = 16
    """Images of a folder or of a dataset: the first."""
    batch: PositiveInt = 16
    """Images that are searched for together; the result may depend on it in the last bits."""
    show: str | None = None
    """Channels of a sheet or an animation, from 1: 3,2,1 as red, green and blue, or 1 as grey. Default: the first."""
    fps: PositiveFloat = 25
    """Frames per second of an animation."""


def check_options(options: Options) -> None:
    """Raises UsageError, before a generator is loaded."""
    if options.suffix and options.suffix not in FORMATS:
        raise UsageError(f"out: unknown format {options.suffix}; choose from {', '.join(FORMATS)}, or give a folder")
    if not options.suffix and Path(options.out).is_dir() and any(Path(options.out).iterdir()):
        raise UsageError(f"out: the folder {options.out} is not empty; give a new one")
    if options.show is not None and options.suffix == ".npz":
        raise UsageError(f"show: it is of sheets and animations, and {options.out} has all channels; leave it out")
