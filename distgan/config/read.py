"""The configuration of a run from a YAML file and the command line."""

from collections.abc import Sequence

import jsonargparse

from distgan.config.keys import Config
from distgan.config.parser import Parser, take_import
from distgan.config.types import PositiveInt
from distgan.errors import UsageError


def read_config(argv: Sequence[str], *, prog: str, description: str) -> tuple[Config, jsonargparse.Namespace]:
    """The configuration of `--config FILE` and the command line, and the flags `fresh`, `dry_run` and
    `profile`, an integer or None.

    `--help` and `--print_config` print and exit 0. Raises UsageError.
    """
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file; the command line overrides it.")
    parser.add_import("Your modules that add entries to LOSSES, MODELS and the like.")
    parser.add_class_arguments(Config, nested_key=None, as_group=False, skip={"imports"})
    parser.add_argument("--fresh", action="store_true", help="Move the run in run_dir aside and start over.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Build everything, print parameters, FLOPs and memory, run two iterations, write nothing.",
    )
    parser.add_argument(
        "--profile",
        type=PositiveInt | None,
        metavar="N",
        help="Train, and profile N iterations into profile.txt and profile-trace.json.gz in run_dir.",
    )
    namespace = parser.parse_args(list(argv))
    namespace.pop("config", None)
    flags = jsonargparse.Namespace({name: namespace.pop(name) for name in ("fresh", "dry_run", "profile")})
    if flags.dry_run and flags.profile is not None:
        raise UsageError("--profile: there is nothing to profile in a --dry_run; leave out one of the two")
    imports = take_import(namespace)
    # a length on the command line overrides the file's, in either unit
    if "epochs" in parser.given and "images" not in parser.given:
        namespace["images"] = None
    if "images" in parser.given and "epochs" not in parser.given:
        namespace["epochs"] = None
    fields = parser.instantiate(namespace)
    return Config(imports=imports, **dict(vars(fields))), flags
