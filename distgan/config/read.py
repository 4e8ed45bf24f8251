"""The configuration of a run from a YAML file and the command line."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jsonargparse

from distgan.config.keys import Config
from distgan.config.parser import Parser
from distgan.errors import UsageError


def read_config(argv: Sequence[str], *, prog: str, description: str) -> tuple[Config, jsonargparse.Namespace]:
    """The configuration of `--config FILE` and the command line, and the flags that are no part of it.

    `--help` and `--print_config` print and exit 0. Raises UsageError.
    """
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file; the command line overrides it.")
    parser.add_argument(
        "--import",
        type=list[str] | str,
        default=[],
        help="Your modules that add entries to LOSSES or MODELS.",
    )
    parser.add_class_arguments(Config, nested_key=None, as_group=False, skip={"imports"})
    parser.add_argument("--fresh", action="store_true", help="Move the run that is in run_dir aside and start over.")
    parser.add_argument(
        "--dry_run",
        action="store_true",
        help="Build everything, print parameters, FLOPs and memory, run two iterations, write nothing.",
    )
    for path in (argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"):
        if not Path(path).is_file():
            raise UsageError(f"--config: no such file: {path}")
    namespace = parser.parse_args(list(argv))
    for section in dataclasses.fields(Config):
        value, kind = namespace.get(section.name), section.default_factory
        if dataclasses.is_dataclass(kind) and not isinstance(value, jsonargparse.Namespace):
            keys = ", ".join(key.name for key in dataclasses.fields(kind))
            raise UsageError(f"{section.name}: expected a section with the keys {keys}, got {value!r}")
    flags = jsonargparse.Namespace(fresh=namespace.pop("fresh"), dry_run=namespace.pop("dry_run"))
    namespace.pop("config", None)
    imports = namespace.pop("import")
    given = {key for key in ("epochs", "images") if any(word.split("=")[0] == f"--{key}" for word in argv)}
    if len(given) == 1:  # a length on the command line overrides the file's, in either unit
        namespace["images" if given == {"epochs"} else "epochs"] = None
    fields = parser.instantiate(namespace)
    return Config(imports=[imports] if isinstance(imports, str) else imports, **dict(vars(fields))), flags
