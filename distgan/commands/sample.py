"""`distgan sample FILE_OR_RUN`: images of a trained generator, as a sheet, arrays, single files or an animation."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.commands.run import run_command
from distgan.config.parser import Parser, take_import
from distgan.config.types import PositiveFloat, PositiveInt
from distgan.errors import UsageError, format_os_error
from distgan.plugins import import_user_modules

if TYPE_CHECKING:
    from distgan.generators.pretrained import PretrainedGenerator

SHEETS = (".png", ".jpg", ".jpeg")
LOOPS = (".gif", ".webp")
FORMATS = (*SHEETS, *LOOPS, ".npz")
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
    """Number of images; of rows with --interpolate. Default: 64, or 8 rows; 16 in a loop."""
    seed: int = 0
    """Seed of the latents: the same seed gives the same images."""
    out: str = "samples.png"
    """.png or .jpg: one sheet; .npz: arrays `images` (uint8 [N, H, W, C]), `z` and `labels`; .gif or .webp: an animated
    loop; without a suffix: a folder of single PNG files."""
    label: str | None = None
    """Class of the images, by name or number; a,b,c or all: a column per class. Default: the classes in turn."""
    columns: PositiveInt | None = None
    """Columns of a sheet or of the frames of a loop."""
    interpolate: PositiveInt | None = None
    """Images per row, from one latent to another (spherical interpolation); or frames of a loop."""
    truncation: PositiveFloat | None = None
    """Redraw the values of z that are larger: less variety, often better images (Brock et al. 2019)."""
    device: str = "cpu"
    """Device of the generator, such as cuda."""

    @property
    def suffix(self) -> str:
        return Path(self.out).suffix.lower()


def sample(file_or_run: str, options: Options) -> None:
    """Generate images and write them. Raises UsageError."""
    check_options(options)
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    import distgan
    from distgan.generators.sampling import choose_labels

    G = distgan.load(file_or_run, options.device)
    labels = choose_labels(G, options.label)
    if options.suffix in LOOPS:
        write = write_loop
    elif options.interpolate:
        write = write_interpolations
    else:
        write = write_images
    try:
        written = write(G, labels, options)
    except OSError as error:
        raise UsageError(f"out: {options.out} cannot be written: {format_os_error(error)}") from None
    print(f"{options.out}: {written} of {G.path}{G.note}")


def check_options(options: Options) -> None:
    """Raises UsageError, before a generator is loaded."""
    if options.suffix and options.suffix not in FORMATS:
        choices = ", ".join(FORMATS)
        raise UsageError(f"out: unknown format {options.suffix}; choose from {choices}, or give a folder")
    if options.truncation is not None and options.truncation < LEAST_TRUNCATION:
        value = f"{options.truncation:g}"
        raise UsageError(f"truncation: {value} is less than {LEAST_TRUNCATION}: all images would be alike")
    if not options.suffix and Path(options.out).is_dir() and any(Path(options.out).iterdir()):
        raise UsageError(f"out: the folder {options.out} is not empty; give a new one")


def class_columns(labels: list[int], options: Options) -> int | None:
    """A column per class, if several are asked for."""
    return len(labels) if len(labels) > 1 and options.label is not None else None


def write_loop(G: "PretrainedGenerator", labels: list[int], options: Options) -> str:
    """Write an animated loop; returns what was written. Raises OSError."""
    from distgan.generators import sampling

    count = options.count or LOOP_IMAGES
    frames = options.interpolate or LOOP_FRAMES
    latents = sampling.loop_latents(G, count, options.seed, options.truncation, frames=frames)
    columns = options.columns or class_columns(labels, options)
    sampling.save_loop(G, latents, labels, Path(options.out), columns)
    return f"{count} images"


def write_interpolations(G: "PretrainedGenerator", labels: list[int], options: Options) -> str:
    """Write rows from one latent to another; returns what was written. Raises OSError."""
    from distgan.generators import sampling

    assert options.interpolate is not None
    count = options.count or ROWS
    z, rows = sampling.interpolations(G, count, options.seed, options.truncation, steps=options.interpolate)
    row_labels = [labels[row % len(labels)] for row in rows] if labels else []
    sampling.save(G, z, row_labels, Path(options.out), options.columns or options.interpolate)
    return f"{count} rows"


def write_images(G: "PretrainedGenerator", labels: list[int], options: Options) -> str:
    """Write a sheet, arrays or single files; returns what was written. Raises OSError."""
    from distgan.generators import sampling

    columns = options.columns or class_columns(labels, options)
    count = options.count or ROWS * (columns or ROWS)
    z = G.draw(count, options.seed, options.truncation)
    image_labels = [labels[i % len(labels)] for i in range(count)] if labels else []
    sampling.save(G, z, image_labels, Path(options.out), columns)
    return f"{count} images"


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
