"""The configuration of a run from a YAML file and the command line."""

from collections.abc import Sequence

import jsonargparse

from distgan.config.keys import Config
from distgan.config.parser import Parser, take_import


def read_config(argv: Sequence[str], *, prog: str, description: str) -> tuple[Config, jsonargparse.Namespace]:
    """The configuration of `--config FILE` and the command line, and the flags `fresh` and `dry_run`.

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
    namespace = parser.parse_args(list(argv))
    namespace.pop("config", None)
    flags = jsonargparse.Namespace(fresh=namespace.pop("fresh"), dry_run=namespace.pop("dry_run"))
    imports = take_import(namespace)
    # a length on the command line overrides the file's, in either unit
    if "epochs" in parser.given and "images" not in parser.given:
        namespace["images"] = None
    if "images" in parser.given and "epochs" not in parser.given:
        namespace["epochs"] = None
    fields = parser.instantiate(namespace)
    return Config(imports=imports, **dict(vars(fields))), flags
