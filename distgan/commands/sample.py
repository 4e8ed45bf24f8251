"""`distgan sample FILE_OR_RUN`: images of a trained generator, as a sheet, arrays, single files or an animation."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.commands.datasets import data_config
from distgan.commands.run import run_command
from distgan.commands.sample_inputs import Choices, class_columns, plan_images
from distgan.commands.sample_options import SHEETS, Options, check_options, check_range
from distgan.config.parser import Parser, take_import
from distgan.errors import UsageError, format_os_error
from distgan.plugins import import_user_modules

if TYPE_CHECKING:
    from distgan.generators.pretrained import PretrainedGenerator
    from distgan.generators.sampling import Inputs

FILE_OR_RUN = (
    "A .safetensors file of a generator or an EMA, or a run folder (the EMA of its best checkpoint, by its "
    "evaluations, or else of the newest)."
)


def sample(file_or_run: str, options: Options) -> None:
    """Generate images and write them. Raises UsageError."""
    check_options(options)
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    from distgan.generators.conditions import check_values, describe, parse_conditions, values_outside

    conditions = parse_conditions(options.condition)
    check_range(conditions, options)

    import distgan
    from distgan.data.schema import MAX_CHANNELS
    from distgan.generators.animation import check_video
    from distgan.generators.output import choose_format
    from distgan.generators.sampling import choose_labels
    from distgan.pixels import check_show, parse_show

    show = parse_show(options.show, MAX_CHANNELS)
    check_video(options.suffix)
    vae = options.vae or data_config(Path(file_or_run)).get("vae")
    G = distgan.load(file_or_run, options.device, vae=vae, truncation_psi=options.truncation_psi)
    check_show(show, G.spec.channels)
    check_values(G.spec.conditions, conditions)
    format, remark = choose_format(G.spec, options.format) if not options.suffix else ("", "")
    choices = Choices(choose_labels(G, options.label), conditions, show, format)
    choices = choices._replace(latents=choose_noise_and_latents(G, options))
    for warning in values_outside(G.spec.conditions, conditions):
        print(f"warning: {warning}", file=sys.stderr)
    try:
        written = write(G, choices, options)
    except OSError as error:
        raise UsageError(f"out: {options.out} cannot be written: {format_os_error(error)}") from None
    truncated = f"truncation psi {G.truncation_psi:g}" if G.truncation_psi != 1 else ""
    spread = "" if options.latents else describe(G.spec.conditions, conditions)
    about = [words for words in (remark, spread, truncated) if words]
    print("; ".join([f"{options.out}: {written} of {G.path}{G.note}", *about]))


def choose_noise_and_latents(G: "PretrainedGenerator", options: Options) -> "Inputs | None":
    """Set the noise inputs of G; returns what --latents gives. Raises UsageError."""
    from distgan.generators.latent_files import read_latents

    inputs, noise = read_latents(Path(options.latents), G) if options.latents else (None, None)
    if inputs is not None and inputs.w is not None and G.truncation_psi != 1:
        raise UsageError(f"truncation_psi: {options.latents} has w, which is taken as it is; leave it out")
    if options.noise is not None:
        G.set_noise(options.noise)
    elif G.noise is not None and (noise or options.animated or options.mix):
        G.set_noise(noise or "const")  # by default nothing flickers
    return inputs


def write(G: "PretrainedGenerator", choices: Choices, options: Options) -> str:
    """Generate and write; returns what was written. Raises OSError and UsageError."""
    from distgan.generators import animation, output

    out = Path(options.out)
    if options.mix is not None:
        return write_mix(G, choices, options)
    inputs, columns, written, names = plan_images(G, choices, options)
    if options.animated:
        animation.save_animation(G, inputs, out, columns, choices.show, options.fps or animation.FPS)
        return written
    if options.suffix in SHEETS:
        output.save_sheet(G, inputs, out, columns, choices.show)
    elif options.suffix:
        output.save_arrays(G, inputs, out)
    else:
        output.save_files(G, inputs, out, names)
    return written if options.suffix in SHEETS or G.spec.is_8bit else f"{written}, {G.spec},"


def write_mix(G: "PretrainedGenerator", choices: Choices, options: Options) -> str:
    """Write the sheet of mixed styles, as `write`."""
    from distgan.generators import mixing, output
    from distgan.generators.seeds import seed_inputs, to_w

    num_ws = mixing.check_mixing(G)
    if class_columns(choices, options):
        raise UsageError("label: the images of --mix are of one class; give one, or none for those of the seeds")
    layers = mixing.parse_layers(options.mix_layers or "coarse", num_ws)
    w_a, w_b = (
        to_w(G, seed_inputs(G, seeds, choices.classes, choices.conditions, options.truncation)).latents
        for seeds in mixing.parse_mix(options.mix or "")
    )
    inputs = mixing.mixing_inputs(w_a, w_b, layers, num_ws)
    output.save_sheet(G, inputs, Path(options.out), 1 + len(w_a), choices.show, blank=1)
    shown = f"{layers[0]}-{layers[-1]}" if len(layers) > 1 else str(layers[0])
    return f"{len(w_b)} rows of mixes, layers {shown} of each column,"


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
