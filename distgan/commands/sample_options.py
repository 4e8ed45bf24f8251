"""The options of `distgan sample`, and which of them go together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distgan.commands.generator_options import GeneratorOptions
from distgan.config.types import NonNegativeFloat, PositiveFloat, PositiveInt
from distgan.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

SHEETS = (".png", ".jpg", ".jpeg")
LOOPS = (".gif", ".webp", ".mp4")
ARRAYS = (".npz", ".npy")
FORMATS = (*SHEETS, *LOOPS, *ARRAYS)
LEAST_TRUNCATION = 0.01
SOURCES = ("seeds", "mix", "latents")
"""Options that say of which latents images are made; else these are drawn by --seed."""
NOT_BESIDE = {
    "seeds": ("count", "seed"),
    "mix": ("count", "seed", "columns", "interpolate"),
    "latents": ("count", "seed", "label", "condition", "truncation"),
}


@dataclass(frozen=True)
class Options(GeneratorOptions):
    """The options of `distgan sample`; the docstrings are their help."""

    count: PositiveInt | None = None
    """Number of images; of rows with --interpolate or a range of --condition; of images of each class in class folders.
    Default: 64, or 8 rows; 16 in a loop."""
    seed: int | None = None
    """Seed of the latents, by default 0: the same seed gives the same images."""
    seeds: str | None = None
    """6600-6625 or 1,5,9-12: an image of each seed, which depends on nothing but its seed; single files are named
    seed6600.png. In an animation: a closed walk from each to the next, in w for G with a mapping network, else in z.
    Several classes of --label: an image of each class for every seed."""
    mix: str | None = None
    """A,B: a sheet of mixed styles (Karras et al. 2019): a column for each seed of A, a row for each of B; an image has
    the layers --mix_layers of its A, and the others of its B. A and B are a seed, a range 0-3, or 1+5+9."""
    mix_layers: str | None = None
    """coarse (layers 0 to 3), middle (4 to 7), fine (8 and more), or a range such as 0-3. Default: coarse."""
    latents: str | None = None
    """An .npz with z or w, and labels, of `sample --out x.npz` or `distgan project`: the images of these."""
    noise: Literal["random", "const", "none"] | None = None
    """Noise inputs, for G with some: random (a function of z), const (the same in all images), none. Default: those of
    the .npz of --latents; const in animations and of --mix; else random."""
    out: str = "samples.png"
    """.png or .jpg: one sheet; .gif, .webp or .mp4: an animated loop; .npy: pixels [N, H, W, C] in the type and range
    of the dataset; .npz: arrays `images` (the same), `z`, `labels` and one of each condition; without a suffix: a
    folder of single files, with a folder for each class where --label gives several: --count images of each."""
    format: Literal["auto", "png", "npy", "tiff"] = "auto"
    """Of single files; auto: png for grey and RGB of 8 bits and grey of 16, else tiff."""
    show: str | None = None
    """Channels of a sheet or a loop, from 1: 3,2,1 as red, green and blue, or 1 as grey. Default: the first."""
    label: str | None = None
    """Class of the images, by name or number; a,b,c or all: a column per class. Default: the classes in turn."""
    condition: str | None = None
    """Values of conditions, such as energy=50,angle=0.3; energy=1:100:8: rows of 8 images from 1 to 100. Default:
    values spread over the range of the training set."""
    columns: PositiveInt | None = None
    """Columns of a sheet or of the frames of a loop."""
    interpolate: PositiveInt | None = None
    """Images per row, from one latent to another (spherical interpolation); frames of a loop, or of a walk from one
    seed to the next. Default: 48 frames of a loop, 24 between two seeds."""
    fps: PositiveFloat | None = None
    """Frames per second of an animation. Default: 25."""
    truncation: PositiveFloat | None = None
    """Redraw the values of z that are larger: less variety, often better images (Brock et al. 2019)."""
    truncation_psi: NonNegativeFloat = 1.0
    """Truncation of w, for G with a mapping network: w_mean + psi (w - w_mean), with the mean of each label (Karras et
    al. 2019). 1: off."""

    @property
    def animated(self) -> bool:
        return self.suffix in LOOPS


def check_options(options: Options) -> None:
    """Raises UsageError, before a generator is loaded."""
    check_source(options)
    if options.suffix and options.suffix not in FORMATS:
        choices = ", ".join(FORMATS)
        raise UsageError(f"out: unknown format {options.suffix}; choose from {choices}, or give a folder")
    if options.format != "auto" and options.suffix:
        raise UsageError(
            f"format: it is of single files in a folder, and --out {options.out} is one file; leave it out"
        )
    if options.show is not None and options.suffix not in (*SHEETS, *LOOPS):
        raise UsageError(f"show: it is of sheets and loops, and {options.out} has all channels; leave it out")
    if options.fps is not None and not options.animated:
        raise UsageError(f"fps: it is of animations ({', '.join(LOOPS)}), and --out is {options.out}; leave it out")
    if options.truncation is not None and options.truncation < LEAST_TRUNCATION:
        value = f"{options.truncation:g}"
        raise UsageError(f"truncation: {value} is less than {LEAST_TRUNCATION}: all images would be alike")
    if not options.suffix and Path(options.out).is_dir() and any(Path(options.out).iterdir()):
        raise UsageError(f"out: the folder {options.out} is not empty; give a new one")


def check_source(options: Options) -> None:
    """Raises UsageError for options of latents that exclude each other."""
    given = [name for name in SOURCES if getattr(options, name) is not None]
    if len(given) > 1:
        raise UsageError(f"{given[0]}: it excludes --{given[1]}; give one of them")
    for name in given:
        for other in NOT_BESIDE[name]:
            if getattr(options, other) is not None:
                raise UsageError(f"{other}: --{name} says what the images are made of; leave it out")
    if options.mix is not None and options.suffix not in SHEETS:
        raise UsageError(f"mix: it makes a sheet ({', '.join(SHEETS)}), and --out is {options.out}")
    if options.mix_layers is not None and options.mix is None:
        raise UsageError("mix_layers: they are those of --mix A,B, which is not given")
    if given and options.interpolate and not options.animated:
        raise UsageError(f"interpolate: of --{given[0]} it is for a walk, --out {'|'.join(LOOPS)}; leave it out")


def check_range(conditions: "Mapping[str, np.ndarray]", options: Options) -> None:
    """Raises UsageError for a range of a condition beside what fills the rows of a sheet otherwise."""
    name = next((name for name, values in conditions.items() if len(values) > 1), None)
    if name is None:
        return
    for source in SOURCES:
        if getattr(options, source) is not None:
            raise UsageError(f"condition: {name} is a range, which --{source} does not have; give one value of it")
    if options.interpolate or options.animated:
        other = "--interpolate" if options.interpolate else "a loop"
        raise UsageError(f"condition: {name} is a range, which {other} does not have; give one value of it")
    if options.columns:
        raise UsageError(f"columns: the range of {name} has a column for each of its steps; leave it out")
