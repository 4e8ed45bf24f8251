"""`distgan convert FILE OUT`: StyleGAN2 networks of other projects as files of a checkpoint; nothing is executed."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.commands.run import run_command
from distgan.config.parser import Parser
from distgan.errors import UsageError, format_os_error
from distgan.files import sha256_file

if TYPE_CHECKING:
    from distgan.foreign.contents import Contents

FILE = (
    "A .h5 of matthias-wright/flaxmodels, a .pt of rosinality/stylegan2-pytorch or a .pkl of stylegan2-ada-pytorch or "
    "stylegan3; the kind is found from what is in it."
)


@dataclass(frozen=True)
class Options:
    """The options of `distgan convert`; the docstrings are their help."""

    discriminator: str | None = None
    """A file of the same project that has the D, where FILE has G alone, as .h5 files have."""
    licence: str | None = None
    """Licence of the weights, for the metadata. Default: what is known of the project's."""
    source: str | None = None
    """Where the file is from, such as its address, for the metadata. Default: its name."""


def convert(file: str, out: str, options: Options) -> None:
    """Convert a file into a new folder. Raises UsageError."""
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    from distgan.foreign import write
    from distgan.foreign.convert import convert as convert_contents

    folder = Path(out)
    write.check_out(folder)
    contents = open_file("file", file)
    if options.discriminator is not None:
        other = open_file("discriminator", options.discriminator)
        if "discriminator" not in other.networks:
            raise UsageError(f"discriminator: {options.discriminator} has no discriminator")
        contents.networks["discriminator"] = other.networks["discriminator"]
    try:
        converted = convert_contents(contents)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from None
    kind = f"{contents.format}, {converted.layout.name}"
    source = {"name": options.source or Path(file).name, "sha256": sha256_file(Path(file)), "format": kind}
    licence = options.licence or converted.layout.licence
    try:
        write.write(converted, folder, {"licence": licence, "source": source})
    except OSError as error:
        raise UsageError(f"out: {out} cannot be written: {format_os_error(error)}") from None
    print(f"{out}: stylegan2, {converted.spec}, z of {converted.z_dim} ({kind})")
    for place, parameters in converted.parameters.items():
        print(f"  {place}.safetensors: {parameters:,} parameters")
    print("  options: " + ", ".join(f"{name} {value}" for name, value in converted.options.items()))
    if contents.left_out:
        print(f"  left out: {', '.join(contents.left_out)}")
    for note in converted.notes:
        print(f"  {note}")
    print(f"  licence: {licence}")


def open_file(key: str, file: str) -> "Contents":
    """Raises UsageError, which names the option."""
    from distgan.foreign.contents import read_contents

    try:
        return read_contents(Path(file))
    except OSError as error:
        raise UsageError(f"{key}: {format_os_error(error)}") from None


def command(argv: list[str]) -> None:
    """Read the command line, and convert."""
    parser = Parser(prog="distgan convert", description=__doc__)
    parser.add_argument("file", help=FILE)
    parser.add_argument("out", help="A new folder, for ema.safetensors and the other networks that the file has.")
    parser.add_class_arguments(Options, as_group=False)
    namespace = parser.parse_args(argv)
    file = namespace.pop("file")
    out = namespace.pop("out")
    convert(file, out, Options(**namespace.as_dict()))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    return run_command(command, argv)
