"""What `distgan sample` makes images of: latents and labels, and how these are arranged, from its options."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from distgan.commands.sample_options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from distgan.generators.pretrained import PretrainedGenerator
    from distgan.generators.sampling import Inputs

ROWS = 8
"""Of a sheet, by default."""
LOOP_IMAGES = 16
"""In a frame of a loop, by default."""
LOOP_FRAMES = 48
WALK_FRAMES = 24
"""From one seed to the next."""


class Choices(NamedTuple):
    """What the options mean for a generator."""

    classes: list[int]
    """In turn; [] without classes."""
    conditions: "Mapping[str, np.ndarray]"
    """The values that are given, by name: [1], or [columns]."""
    show: list[int]
    format: str
    """Of single files."""
    latents: "Inputs | None" = None
    """Those of --latents."""

    @property
    def steps(self) -> int | None:
        """Of the range of a condition; None without."""
        return next((len(values) for values in self.conditions.values() if len(values) > 1), None)


class Plan(NamedTuple):
    """Images to make, and their arrangement."""

    inputs: "Inputs"
    columns: int | None
    """Of a sheet, or of the frames of an animation; None: about as wide as high."""
    written: str
    """What it is, in words."""
    names: list[str]
    """Of single files, [N]."""


def plan_images(G: "PretrainedGenerator", choices: Choices, options: Options) -> Plan:
    """Raises UsageError."""
    if options.animated:
        return plan_walk(G, choices, options) if options.seeds or choices.latents else plan_loop(G, choices, options)
    if options.seeds is not None:
        return plan_seeds(G, choices, options)
    if choices.latents is not None:
        inputs = choices.latents
        count = len(inputs.latents)
        return Plan(inputs, options.columns, f"{count} images", numbered(count, choices.format))
    return plan_rows(G, choices, options) or plan_drawn(G, choices, options)


def plan_loop(G: "PretrainedGenerator", choices: Choices, options: Options) -> Plan:
    """An endless animation of images that are drawn."""
    from distgan.generators import sampling

    count = options.count or LOOP_IMAGES
    frames = options.interpolate or LOOP_FRAMES
    seed = options.seed or 0
    z = sampling.loop_latents(G, count, seed, options.truncation, frames=frames)
    inputs = sampling.label_rows(G, z, choices.classes, choices.conditions, (count, 1), seed)
    return Plan(inputs, options.columns or class_columns(choices, options), f"{count} images", [])


def plan_walk(G: "PretrainedGenerator", choices: Choices, options: Options) -> Plan:
    """A closed walk through the latents of seeds, or of a file; an image of each class, if --label gives several.

    In w where G has a mapping network. In z the classes and conditions are those of the first seed throughout.
    """
    from distgan.generators import sampling, seeds

    steps = options.interpolate or WALK_FRAMES
    columns = class_columns(choices, options) or 1
    if choices.latents is not None:
        points = choices.latents
    else:
        numbers = seeds.parse_seeds(options.seeds or "")
        every = columns > 1
        points = seeds.seed_inputs(
            G, numbers, choices.classes, choices.conditions, options.truncation, every_class=every
        )
    stops = len(points.latents) // columns
    if points.w is None and G.has_mapping:
        points = seeds.to_w(G, points)
    path = sampling.closed_walk(points.latents.unflatten(0, (stops, columns)), steps, spherical=points.w is None)
    first = points._replace(
        classes=points.classes[:columns], values={name: values[:columns] for name, values in points.values.items()}
    )
    inputs = first._replace(z=path) if points.w is None else first._replace(w=path)
    return Plan(inputs, options.columns or columns, f"a walk of {stops * steps} frames", [])


def plan_seeds(G: "PretrainedGenerator", choices: Choices, options: Options) -> Plan:
    """An image of each seed, or a row of one for each class."""
    from distgan.generators import seeds

    numbers = seeds.parse_seeds(options.seeds or "")
    columns = class_columns(choices, options)
    inputs = seeds.seed_inputs(
        G, numbers, choices.classes, choices.conditions, options.truncation, every_class=columns is not None
    )
    names = [f"seed{seed}.{choices.format}" for seed in numbers]
    if columns is not None:
        names = in_folders(G, choices, [name for name in names for _ in range(columns)])
    return Plan(inputs, options.columns or columns, f"{len(inputs.latents)} images", names)


def plan_rows(G: "PretrainedGenerator", choices: Choices, options: Options) -> Plan | None:
    """Rows from one latent or value to another; None if there are none."""
    from distgan.generators import sampling

    rows = options.count or ROWS
    seed = options.seed or 0
    if options.interpolate:
        steps = options.interpolate
        z = sampling.interpolations(G, rows, seed, options.truncation, steps=steps)
    elif choices.steps:
        steps = choices.steps
        z = G.draw(rows, seed, options.truncation).repeat_interleave(steps, dim=0)
    else:
        return None
    inputs = sampling.label_rows(G, z, choices.classes, choices.conditions, (rows, steps), seed)
    return Plan(inputs, options.columns or steps, f"{rows} rows", numbered(rows * steps, choices.format))


def plan_drawn(G: "PretrainedGenerator", choices: Choices, options: Options) -> Plan:
    """Single images of latents that are drawn; --count of each class, where they go to folders of several classes."""
    from distgan.generators import sampling

    classes = class_columns(choices, options)
    columns = options.columns or classes
    count = options.count or ROWS * (columns or ROWS)
    seed = options.seed or 0
    written = f"{count} images"
    names = numbered(count, choices.format)
    if not options.suffix and classes is not None:
        written += f" of each of {classes} classes"
        names = in_folders(G, choices, [name for name in names for _ in range(classes)])
        count *= classes
    z = G.draw(count, seed, options.truncation)
    inputs = sampling.label_rows(G, z, choices.classes, choices.conditions, (count, 1), seed)
    return Plan(inputs, columns, written, names)


def class_columns(choices: Choices, options: Options) -> int | None:
    """A column per class, if several are asked for."""
    return len(choices.classes) if len(choices.classes) > 1 and options.label is not None else None


def numbered(count: int, format: str) -> list[str]:
    """000000.png and so on."""
    return [f"{i:06d}.{format}" for i in range(count)]


def in_folders(G: "PretrainedGenerator", choices: Choices, names: list[str]) -> list[str]:
    """The files, whose classes take turns, each in the folder of its class."""
    from distgan.generators.class_folders import folder_names

    folders = folder_names(G.classes)
    turns = choices.classes
    return [str(Path(folders[turns[i % len(turns)]]) / name) for i, name in enumerate(names)]
