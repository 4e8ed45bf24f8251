"""`distgan sample FILE_OR_RUN`: images of a trained generator, as a sheet, arrays, single files or an animation."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from distgan.commands.datasets import data_config
from distgan.commands.run import run_command
from distgan.config.parser import Parser, take_import
from distgan.config.types import NonNegativeFloat, PositiveFloat, PositiveInt
from distgan.errors import UsageError, format_os_error
from distgan.plugins import import_user_modules

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from distgan.generators.pretrained import PretrainedGenerator
    from distgan.generators.sampling import Inputs

SHEETS = (".png", ".jpg", ".jpeg")
LOOPS = (".gif", ".webp")
ARRAYS = (".npz", ".npy")
FORMATS = (*SHEETS, *LOOPS, *ARRAYS)
ROWS = 8
"""Of a sheet, by default."""
LOOP_IMAGES = 16
"""In a frame of a loop, by default."""
LOOP_FRAMES = 48
LEAST_TRUNCATION = 0.01

FILE_OR_RUN = (
    "A .safetensors file of a generator or an EMA, or a run folder (the EMA of its best checkpoint, by its "
    "evaluations, or else of the newest)."
)


@dataclass(frozen=True)
class Options:
    """The options of `distgan sample`; the docstrings are their help."""

    count: PositiveInt | None = None
    """Number of images; of rows with --interpolate or a range of --condition. Default: 64, or 8 rows; 16 in a loop."""
    seed: int = 0
    """Seed of the latents: the same seed gives the same images."""
    out: str = "samples.png"
    """.png or .jpg: one sheet; .gif or .webp: an animated loop; .npy: pixels [N, H, W, C] in the type and range of the
    dataset; .npz: arrays `images` (the same), `z`, `labels` and one of each condition; without a suffix: a folder of
    single files."""
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
    """Images per row, from one latent to another (spherical interpolation); or frames of a loop."""
    truncation: PositiveFloat | None = None
    """Redraw the values of z that are larger: less variety, often better images (Brock et al. 2019)."""
    truncation_psi: NonNegativeFloat = 1.0
    """Truncation of w, for G with a mapping network: w_mean + psi (w - w_mean), with the mean of each label (Karras et
    al. 2019). 1: off."""
    vae: str | None = None
    """Folder of the autoencoder that decodes what a generator of latents makes. Default: that of the run, or the one
    that is kept in ~/.cache/distgan/vae, by its hash."""
    device: str = "cpu"
    """Device of the generator, such as cuda."""

    @property
    def suffix(self) -> str:
        return Path(self.out).suffix.lower()


class Choices(NamedTuple):
    """What the options mean for a generator."""

    classes: list[int]
    """In turn; [] without classes."""
    conditions: "Mapping[str, np.ndarray]"
    """The values that are given, by name: [1], or [columns]."""
    show: list[int]
    format: str
    """Of single files."""

    @property
    def steps(self) -> int | None:
        """Of the range of a condition; None without."""
        return next((len(values) for values in self.conditions.values() if len(values) > 1), None)


def sample(file_or_run: str, options: Options) -> None:
    """Generate images and write them. Raises UsageError."""
    check_options(options)
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    from distgan.generators.conditions import check_values, describe, parse_conditions, values_outside

    conditions = parse_conditions(options.condition)
    check_range(conditions, options)

    import distgan
    from distgan.data.schema import MAX_CHANNELS
    from distgan.generators.output import choose_format
    from distgan.generators.sampling import choose_labels
    from distgan.pixels import check_show, parse_show

    show = parse_show(options.show, MAX_CHANNELS)
    vae = options.vae or data_config(Path(file_or_run)).get("vae")
    G = distgan.load(file_or_run, options.device, vae=vae, truncation_psi=options.truncation_psi)
    check_show(show, G.spec.channels)
    check_values(G.spec.conditions, conditions)
    format, remark = choose_format(G.spec, options.format) if not options.suffix else ("", "")
    choices = Choices(choose_labels(G, options.label), conditions, show, format)
    for warning in values_outside(G.spec.conditions, conditions):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        written = write(G, choices, options)
    except OSError as error:
        raise UsageError(f"out: {options.out} cannot be written: {format_os_error(error)}") from None
    truncated = f"truncation psi {G.truncation_psi:g}" if G.truncation_psi != 1 else ""
    about = [words for words in (remark, describe(G.spec.conditions, conditions), truncated) if words]
    print("; ".join([f"{options.out}: {written} of {G.path}{G.note}", *about]))


def check_options(options: Options) -> None:
    """Raises UsageError, before a generator is loaded."""
    if options.suffix and options.suffix not in FORMATS:
        choices = ", ".join(FORMATS)
        raise UsageError(f"out: unknown format {options.suffix}; choose from {choices}, or give a folder")
    if options.format != "auto" and options.suffix:
        raise UsageError(
            f"format: it is of single files in a folder, and --out {options.out} is one file; leave it out"
        )
    if options.show is not None and options.suffix not in (*SHEETS, *LOOPS):
        raise UsageError(f"show: it is of sheets and loops, and {options.out} has all channels; leave it out")
    if options.truncation is not None and options.truncation < LEAST_TRUNCATION:
        value = f"{options.truncation:g}"
        raise UsageError(f"truncation: {value} is less than {LEAST_TRUNCATION}: all images would be alike")
    if not options.suffix and Path(options.out).is_dir() and any(Path(options.out).iterdir()):
        raise UsageError(f"out: the folder {options.out} is not empty; give a new one")


def check_range(conditions: "Mapping[str, np.ndarray]", options: Options) -> None:
    """Raises UsageError for a range of a condition beside what fills the rows of a sheet otherwise."""
    name = next((name for name, values in conditions.items() if len(values) > 1), None)
    if name is None:
        return
    if options.interpolate or options.suffix in LOOPS:
        other = "--interpolate" if options.interpolate else "a loop"
        raise UsageError(f"condition: {name} is a range, which {other} does not have; give one value of it")
    if options.columns:
        raise UsageError(f"columns: the range of {name} has a column for each of its steps; leave it out")


def write(G: "PretrainedGenerator", choices: Choices, options: Options) -> str:
    """Generate and write; returns what was written. Raises OSError."""
    from distgan.generators import output

    out = Path(options.out)
    if options.suffix in LOOPS:
        inputs, columns, written = choose_loop(G, choices, options)
        output.save_loop(G, inputs, out, columns, choices.show)
        return written
    inputs, columns, written = choose_rows(G, choices, options) or choose_images(G, choices, options)
    if options.suffix in SHEETS:
        output.save_sheet(G, inputs, out, columns, choices.show)
    elif options.suffix:
        output.save_arrays(G, inputs, out)
    else:
        output.save_files(G, inputs, out, choices.format)
    return written if options.suffix in SHEETS or G.spec.is_8bit else f"{written}, {G.spec},"


def choose_loop(G: "PretrainedGenerator", choices: Choices, options: Options) -> "tuple[Inputs, int | None, str]":
    """What an animated loop is made of, the columns of its frames, and both in words."""
    from distgan.generators import sampling

    count = options.count or LOOP_IMAGES
    frames = options.interpolate or LOOP_FRAMES
    z = sampling.loop_latents(G, count, options.seed, options.truncation, frames=frames)
    inputs = sampling.label_rows(G, z, choices.classes, choices.conditions, (count, 1), options.seed)
    return inputs, options.columns or class_columns(choices, options), f"{count} images"


def choose_rows(G: "PretrainedGenerator", choices: Choices, options: Options) -> "tuple[Inputs, int, str] | None":
    """What rows from one latent or value to another are made of, as `choose_loop`; None if there are none."""
    from distgan.generators import sampling

    rows = options.count or ROWS
    if options.interpolate:
        steps = options.interpolate
        z = sampling.interpolations(G, rows, options.seed, options.truncation, steps=steps)
    elif choices.steps:
        steps = choices.steps
        z = G.draw(rows, options.seed, options.truncation).repeat_interleave(steps, dim=0)
    else:
        return None
    inputs = sampling.label_rows(G, z, choices.classes, choices.conditions, (rows, steps), options.seed)
    return inputs, options.columns or steps, f"{rows} rows"


def choose_images(G: "PretrainedGenerator", choices: Choices, options: Options) -> "tuple[Inputs, int | None, str]":
    """What single images are made of, as `choose_loop`."""
    from distgan.generators import sampling

    columns = options.columns or class_columns(choices, options)
    count = options.count or ROWS * (columns or ROWS)
    z = G.draw(count, options.seed, options.truncation)
    inputs = sampling.label_rows(G, z, choices.classes, choices.conditions, (count, 1), options.seed)
    return inputs, columns, f"{count} images"


def class_columns(choices: Choices, options: Options) -> int | None:
    """A column per class, if several are asked for."""
    return len(choices.classes) if len(choices.classes) > 1 and options.label is not None else None


def command(argv: list[str]) -> None:
    """Read the command line, and sample."""
    parser = Parser(prog="distgan sample", description=__doc__)
    parser.add_argument("file_or_run", help=FILE_OR_RUN)
    parser.add_class_arguments(Options, as_group=False)
    parser.add_import("Your module, or modules, that add the generator's model; never taken from the file.")
    namespace = parser.parse_args(argv)
    file_or_run = namespace.pop("file_or_run")
    import_user_modules(take_import(namespace))
    sample(file_or_run, Options(**namespace.as_dict()))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    return run_command(command, argv)
