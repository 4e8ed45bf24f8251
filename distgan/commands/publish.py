"""`distgan publish RUN_OR_FILE OWNER/NAME`: a generator as a folder for the Hugging Face hub, and its upload."""

import filecmp
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.commands.run import run_command
from distgan.config.parser import Parser, take_import
from distgan.errors import UsageError, format_os_error
from distgan.hub import NAME, upload
from distgan.plugins import import_user_modules

if TYPE_CHECKING:
    from distgan.generators.model_card import Facts

RUN_OR_FILE = "A run folder (the EMA of its best checkpoint, or else of the newest), or a .safetensors file."
PUSH = "Send the folder to the hub. Default: write it only."


@dataclass(frozen=True)
class Options:
    """The options of `distgan publish`; the docstrings are their help."""

    out: str | None = None
    """A new folder. Default: published/NAME."""
    licence: str | None = None
    """Licence of the weights, an identifier of the hub such as apache-2.0, cc-by-nc-4.0 or other."""
    title: str | None = None
    """Title of the model card. Default: NAME."""


def publish(run_or_file: str, repository: str, options: Options, *, push: bool, private: bool) -> None:
    """Write the folder, and send it where asked to. Raises UsageError and RunError."""
    if NAME.fullmatch(repository) is None:
        raise UsageError(f"repository: {repository!r} is not OWNER/NAME")
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    from distgan.generators.publication import listed

    folder = Path(options.out) if options.out else Path("published") / repository.partition("/")[2]
    facts = write(run_or_file, folder, repository, options, push=push)
    print(f"{folder}:")
    for name, size in listed(folder):
        print(f"  {name:<18} {size:>13,} bytes")
    if facts.provenance:
        print(f"  {facts.provenance}")
    if not push:
        visibility = "private" if private else "public"
        print(f"nothing was sent; --push sends these files to hf://{repository}, {visibility}")
        return
    url = upload(folder, repository, private=private, message=f"{facts.title}, by distgan publish")
    print(f"sent: {url}")


def write(run_or_file: str, folder: Path, repository: str, options: Options, *, push: bool) -> "Facts":
    """Write the folder, or find it written by the same command before; returns what its card says.

    Raises UsageError for a folder of other content, which stays as it is, and for weights of others to be sent without
    a licence: then nothing is written.
    """
    from distgan.generators.publication import write_publication

    temporary = folder.with_name(f".{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        facts = write_publication(run_or_file, temporary, repository, licence=options.licence, title=options.title)
        if push and facts.provenance and options.licence is None:
            raise UsageError(f"licence: these weights are not only yours ({facts.provenance}); give --licence")
        if folder.is_dir() and any(folder.iterdir()):
            check_same(temporary, folder)
        else:
            temporary.replace(folder)
    except OSError as error:
        raise UsageError(f"out: {folder} cannot be written: {format_os_error(error)}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def check_same(written: Path, folder: Path) -> None:
    """Raises UsageError unless a folder holds what was written now: it may be of another run, or edited by hand."""
    names = sorted({path.name for place in (written, folder) for path in place.iterdir()})
    same, _, _ = filecmp.cmpfiles(written, folder, names, shallow=False)
    other = next((name for name in names if name not in same), None)
    if other is not None:
        reason = f"its {other} is not what would be written now"
        raise UsageError(f"out: {folder} is there already, and {reason}; give a new folder, or delete it")


def command(argv: list[str]) -> None:
    """Read the command line, and publish."""
    parser = Parser(prog="distgan publish", description=__doc__)
    parser.add_argument("run_or_file", help=RUN_OR_FILE)
    parser.add_argument("repository", help="OWNER/NAME of the repository on the hub.")
    parser.add_class_arguments(Options, as_group=False)
    parser.add_argument("--push", action="store_true", help=PUSH)
    parser.add_argument("--private", action="store_true", help="Create the repository as a private one.")
    parser.add_import("Your module, or modules, that add the model.")
    namespace = parser.parse_args(argv)
    words = {name: namespace.pop(name) for name in ("run_or_file", "repository", "push", "private")}
    import_user_modules(take_import(namespace))
    publish(**words, options=Options(**namespace.as_dict()))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 if the folder could not be sent."""
    return run_command(command, argv)
