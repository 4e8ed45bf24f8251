"""`distgan project IMAGE... RUN_OR_FILE`: the latents whose images come closest to given ones."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.commands.datasets import data_config
from distgan.commands.project_options import Options, check_options
from distgan.commands.run import run_command
from distgan.config.parser import Parser, take_import
from distgan.errors import UsageError, format_os_error
from distgan.plugins import import_user_modules

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from distgan.generators.pretrained import PretrainedGenerator
    from distgan.generators.projection import Projection, Space
    from distgan.generators.targets import Targets

PATHS = (
    "Images, folders of images or datasets; and last a .safetensors file of a generator or an EMA, or a run folder "
    "(the EMA of its best checkpoint, by its evaluations, or else of the newest)."
)


def project(paths: "Sequence[str]", options: Options) -> None:
    """Find latents for images, and write them. Raises UsageError and RunError."""
    check_options(options)
    if len(paths) < 2:
        raise UsageError("give an image, a folder or a dataset, and then a run or a .safetensors file")
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    import distgan
    from distgan.data.schema import MAX_CHANNELS
    from distgan.generators.animation import check_video
    from distgan.generators.output import choose_format
    from distgan.generators.projection import check_space, default_space
    from distgan.generators.projection_output import Result, save
    from distgan.generators.targets import read_targets
    from distgan.pixels import check_show, parse_show

    *images, file_or_run = paths
    show = parse_show(options.show, MAX_CHANNELS)
    check_video(options.suffix)
    vae = options.vae or data_config(Path(file_or_run)).get("vae")
    G = distgan.load(file_or_run, options.device, vae=vae)
    check_show(show, G.spec.channels)
    space = options.space or default_space(G)
    check_space(G, space)
    if G.noise is not None:
        G.set_noise("const")
    format, _ = choose_format(G.spec, "auto")
    targets = read_targets(images, G, options.fit, options.count)
    classes, values = choose_labels(G, targets, options)
    started = time.monotonic()
    found = search(G, targets, classes, values, space, options)
    report(targets, found, options)
    try:
        save(G, Result(found, space, targets.images, classes, values), Path(options.out), show, options.fps, format)
    except OSError as error:
        raise UsageError(f"out: {options.out} cannot be written: {format_os_error(error)}") from None
    seconds = time.monotonic() - started
    kind = f"{space} of {G.path}{G.note}"
    print(f"{options.out}: {len(targets.names)} images, {kind}, {options.steps:,} steps, {seconds:.0f} s")


def choose_labels(
    G: "PretrainedGenerator", targets: "Targets", options: Options
) -> "tuple[np.ndarray, dict[str, np.ndarray]]":
    """Classes int64 [N] or [0], and the values of each condition: those of the options, else of a dataset.

    Raises UsageError.
    """
    import numpy as np

    from distgan.generators.conditions import check_values, parse_conditions

    count = len(targets.names)
    given = parse_conditions(options.condition)
    check_values(G.spec.conditions, given)
    if any(len(values) > 1 for values in given.values()):
        raise UsageError("condition: a range makes no sense here; give one value of each")
    classes = np.empty(0, np.int64)
    if G.classes or options.label is not None:
        labels = [options.label] * count if options.label is not None else targets.labels
        if None in labels:
            raise UsageError(f"label: {G.path} needs the class of the images; choose from {G.class_choices}")
        classes = np.array([G.label_number(label) for label in labels if label is not None])
    values = {}
    for name in (condition.name for condition in G.spec.conditions):
        own = [each.get(name) for each in targets.values] if name not in given else [float(given[name][0])] * count
        if None in own:
            raise UsageError(f"condition: {G.path} needs the {name} of the images; give --condition {name}=VALUE")
        values[name] = np.array(own, np.float64)
    return classes, values


def search(
    G: "PretrainedGenerator",
    targets: "Targets",
    classes: "np.ndarray",
    values: "dict[str, np.ndarray]",
    space: "Space",
    options: Options,
) -> "Projection":
    """The latents of all images, a batch of them at a time. Raises UsageError and RunError."""
    from distgan.generators.distance import open_distance
    from distgan.generators.projection import Plan, join, project
    from distgan.generators.projection_output import snapshots_for

    distance = open_distance(options.extractor, G.spec, options.device)
    for note in targets.notes:
        print(note, flush=True)
    plan = Plan(space, options.steps, options.lr, options.seed, snapshots_for(options.suffix, options.steps))
    labels = G.labels(classes if len(classes) else None, values)
    parts = []
    for first in range(0, len(targets.names), options.batch):
        part = slice(first, first + options.batch)
        own = None if labels is None else labels[part]
        parts.append(project(G, targets.images[part], own, distance, plan, first=first, restarts=options.restarts))
    return join(parts)


def report(targets: "Targets", found: "Projection", options: Options) -> None:
    """Print the distances before and after."""
    before = found.distances[:, 0].tolist()
    after = found.distances[:, -1].tolist()
    for name, first, last in zip(targets.names, before, after, strict=True):
        print(f"{name}: distance {first:.4g} -> {last:.4g} ({options.extractor})")


def command(argv: list[str]) -> None:
    """Read the command line, and project."""
    parser = Parser(prog="distgan project", description=__doc__)
    parser.add_argument("paths", nargs="+", metavar="IMAGE... RUN_OR_FILE", help=PATHS)
    parser.add_class_arguments(Options, as_group=False)
    parser.add_import("Your module, or modules, that add the generator's model; never taken from the file.")
    namespace = parser.parse_args(argv)
    paths = namespace.pop("paths")
    import_user_modules(take_import(namespace))
    project(paths, Options(**namespace.as_dict()))


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for an optimization that failed."""
    return run_command(command, argv)
