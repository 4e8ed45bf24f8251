"""`distgan sample FILE_OR_RUN`: images of a trained generator, as a sheet, arrays, single files or an animation."""

from pathlib import Path

from distgan.commands.run import run_command
from distgan.config.parser import Parser
from distgan.config.types import PositiveFloat, PositiveInt
from distgan.errors import UsageError, format_os_error
from distgan.plugins import import_user_modules

SHEETS, LOOPS = (".png", ".jpg", ".jpeg"), (".gif", ".webp")
ROWS = 8  # of a sheet, by default
LEAST_TRUNCATION = 0.01


def sample(
    file_or_run: str,
    count: PositiveInt | None = None,
    seed: int = 0,
    out: str = "samples.png",
    label: str | None = None,
    columns: PositiveInt | None = None,
    interpolate: PositiveInt | None = None,
    truncation: PositiveFloat | None = None,
    device: str = "cpu",
    imports: list[str] | str = (),  # type: ignore[assignment] - the key `import`
) -> None:
    """Generate images.

    Args:
        file_or_run: A .safetensors file of a generator or an EMA, or a run folder (the EMA of its best checkpoint,
            by its evaluations, or else of the newest).
        count: Number of images; of rows with --interpolate. Default: 64, or 8 rows.
        seed: Seed of the latents: the same seed gives the same images.
        out: .png or .jpg: one sheet; .npz: arrays `images` (uint8 [N, H, W, C]), `z` and `labels`; .gif or .webp: an
            animated loop; without a suffix: a folder of single PNG files.
        label: Class of the images, by name or number; a,b,c or all: a column per class. Default: the classes in turn.
        columns: Columns of a sheet or of the frames of a loop.
        interpolate: Images per row, from one latent to another (spherical interpolation); or frames of a loop.
        truncation: Redraw the values of z that are larger: less variety, often better images (Brock et al. 2019).
        device: Device of the generator, such as cuda.
        imports: Your module, or modules, that add the generator's model; never taken from the file.
    """
    suffix = Path(out).suffix.lower()
    if suffix and suffix not in (*SHEETS, *LOOPS, ".npz"):
        choices = ", ".join((*SHEETS, *LOOPS, ".npz"))
        raise UsageError(f"out: unknown format {suffix}; choose from {choices}, or give a folder")
    if truncation is not None and truncation < LEAST_TRUNCATION:
        raise UsageError(f"truncation: {truncation:g} is less than {LEAST_TRUNCATION}: all images would be alike")
    import_user_modules([imports] if isinstance(imports, str) else imports)
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    import distgan
    from distgan.generators import sampling

    if not suffix and Path(out).is_dir() and any(Path(out).iterdir()):
        raise UsageError(f"out: the folder {out} is not empty; give a new one")
    G = distgan.load(file_or_run, device)
    labels = sampling.choose_labels(G, label)
    per_class = len(labels) if len(labels) > 1 and label is not None else None
    try:
        if suffix in LOOPS:
            latents = sampling.loop_latents(G, count or 16, seed, truncation, frames=interpolate or 48)
            sampling.save_loop(G, latents, labels, Path(out), columns or per_class)
            count = count or 16
        elif interpolate:
            count = count or ROWS
            z, rows = sampling.interpolations(G, count, seed, truncation, steps=interpolate)
            row_labels = [labels[i % len(labels)] for i in rows] if labels else []
            sampling.save(G, z, row_labels, Path(out), columns or interpolate)
        else:
            columns = columns or per_class
            count = count or (ROWS * columns if columns else ROWS * ROWS)
            z = G.draw(count, seed, truncation)
            sampling.save(G, z, [labels[i % len(labels)] for i in range(count)] if labels else [], Path(out), columns)
    except OSError as error:
        raise UsageError(f"out: {out} cannot be written: {format_os_error(error)}") from None
    print(f"{out}: {count} {'rows' if interpolate and suffix not in LOOPS else 'images'} of {G.path}{G.note}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""

    def command(argv: list[str]) -> None:
        parser = Parser(prog="distgan sample", description=__doc__)
        parser.add_function_arguments(sample, as_group=False, as_positional=True, skip={"imports"})
        parser.add_argument(
            "--import", type=list[str] | str, default=[], help="Your module, or modules, that add the model."
        )
        options = parser.parse_args(argv).as_dict()
        sample(imports=options.pop("import"), **options)

    return run_command(command, argv)
