"""`distgan nearest`: the nearest training images of generated ones, and whether the generator copies them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from distgan.commands.datasets import data_config, run_at, run_config, trained_on
from distgan.commands.evaluate import readable_errors
from distgan.commands.image_sets import open_images
from distgan.commands.nearest_options import Options
from distgan.commands.run import run_distributed
from distgan.config.parser import Parser, take_import
from distgan.errors import RunError, UsageError, format_os_error
from distgan.plugins import import_user_modules

if TYPE_CHECKING:
    from distgan.data.shardset import ShardSet
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.memorization import Memorization, MemorizationTest
    from distgan.evaluation.nearest import NearestSearch
    from distgan.evaluation.nearest_card import NearestCard
    from distgan.evaluation.originals import RealImageSet
    from distgan.generators.pretrained import PretrainedGenerator
    from distgan.training.grids import FixedInputs

DESCRIPTION = (
    "`distgan nearest RUN_OR_FILE` finds the nearest training images of generated images, on all processes, and tests "
    "whether the generator copies its training set: a sheet of images, and a card."
)
RUN_OR_FILE = "A run folder (the EMA of its newest checkpoint), or a .safetensors file of a generator or an EMA."
GRID = "The images of the run's grids, of the newest checkpoint, in place of new ones."
SAMPLES = 64


class Subject(NamedTuple):
    """The images whose nearest training images are looked for."""

    name: str
    """In the names of files."""
    about: dict[str, Any]
    """What the card says of their generator."""
    G: "PretrainedGenerator | None"
    dataset: "RealImageSet | None"
    """In place of G."""


def find_nearest(run_or_file: str | None, options: Options, grid: bool) -> None:
    """Search, print a line, and write the sheet and the card. Raises UsageError and RunError."""
    from distgan.config.keys import Config
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.memorization import MemorizationTest
    from distgan.evaluation.nearest_card import make_card

    start = time.perf_counter()
    run = run_at(run_or_file)
    check_options(run_or_file, run, options, grid)
    processes = Distributed(Config())
    keys = data_config(run)
    address = options.data or trained_on(run)
    training = open_images(address, processes, options.cache, "data", keys)
    held_out = None
    if options.held_out is not None:
        held_out = open_images(options.held_out, processes, options.cache, "held_out", keys)
    show = parse_channels(options, training)
    subject = open_subject(processes, run_or_file, options, training, keys)
    test = MemorizationTest(
        open_search(processes, training, options, keys), held_out, seed=options.seed, rows=options.rows
    )
    with readable_errors(processes):
        found = measure(test, subject, run, options, grid)
    about: dict[str, Any] = {"address": training.address, "seed": options.seed, "start": start}
    card = processes.run_on_main(lambda: make_card(found, test.search, subject.about, **about))
    if processes.is_main_process:
        print(card.line(), flush=True)
    images = f"{subject.name}-grid" if grid else subject.name
    digests = training.dataset.digest, None if held_out is None else held_out.dataset.digest
    out = options.sheet_file(run, options.name(images, card.extractor["name"], *digests))
    processes.run_on_main(lambda: write(card, found, out, show))
    processes.shutdown()


def check_options(run_or_file: str | None, run: Path | None, options: Options, grid: bool) -> None:
    """Raises UsageError for options that do not go together."""
    if options.out is not None and Path(options.out).suffix != ".png":
        raise UsageError(f"out: {options.out} must end in .png")
    if run_or_file is None and options.generated is None:
        raise UsageError("give a run folder or a .safetensors file, or images with --generated ADDRESS")
    if options.generated is not None and run_or_file is not None and run is None:
        raise UsageError(f"generated: its images are in place of those of {run_or_file}; leave one of the two out")
    if grid and (run is None or options.generated is not None):
        raise UsageError("grid: only a run folder has grids; leave it out")
    if grid and options.samples is not None:
        raise UsageError("samples: with --grid the images are those of the grid; leave one of the two out")


def parse_channels(options: Options, training: "RealImageSet") -> list[int]:
    """The channels that the sheet shows. Raises UsageError."""
    from distgan.pixels import parse_show

    return parse_show(options.show, training.dataset.spec.channels)


def open_search(
    processes: "Distributed", training: "RealImageSet", options: Options, keys: Mapping[str, Any]
) -> "NearestSearch":
    """The search over the training images. Raises UsageError."""
    from distgan.evaluation.features import open_extractor
    from distgan.evaluation.nearest import NearestSearch

    dataset = training.dataset
    processes.check_same_on_all_ranks(f"the manifest of {training.address}", dataset.digest)
    given: dict[str, Any] = {"weights": options.extractor_weights, "resize": options.resize}
    extractor = processes.run_on_all(
        lambda: open_extractor(options.extractor, dataset, processes.device, options.cache, **given)
    )
    processes.check_same_on_all_ranks(f"extractor: the sha256 of {options.extractor}", extractor.sha256)
    flip = bool(keys.get("flip")) if options.flip is None else options.flip
    return NearestSearch(processes, dataset, extractor, flip=flip, skip_bad=options.skip_bad)


def open_subject(
    processes: "Distributed",
    run_or_file: str | None,
    options: Options,
    training: "RealImageSet",
    keys: Mapping[str, Any],
) -> Subject:
    """The generator, or the dataset of images in its place. Raises UsageError if they are not like the training set."""
    from distgan.evaluation.originals import check_same_kind
    from distgan.generators.loading import find_weights, load_generator
    from distgan.runs.checkpoint import load_weights

    address = options.generated
    if address is not None:
        images = open_images(address, processes, options.cache, "generated", keys)
        if not images.dataset.spec.same_images(training.dataset.spec):
            spec = training.dataset.spec
            fix = f"`distgan shards make {address} DEST --size {spec.height}x{spec.width} --channels {spec.channels}`"
            found = (
                f"{address} has images {images.dataset.spec.unconditional()}, the training set {spec.unconditional()}"
            )
            raise UsageError(f"generated: {found}; make them alike with {fix} and give DEST")
        digest = images.dataset.digest
        return Subject(f"images{digest[:8]}", {"path": images.address, "manifest": digest}, None, images)
    path = Path(str(run_or_file))
    # found once: a run that goes on may save another checkpoint meanwhile
    file, _ = processes.run_on_main(lambda: find_weights(path, newest=True))
    vae = options.vae or keys.get("vae")
    psi = options.truncation_psi
    G = processes.run_on_all(lambda: load_generator(file, processes.device, vae=vae, truncation_psi=psi))
    check_same_kind(G.spec, G.classes, *training)
    metadata = load_weights(G.path)[1]
    about = {"file": str(G.path), "images": metadata.images, "ema": metadata.is_ema(G.path.stem), "truncation_psi": psi}
    return Subject(str(metadata.images), about, G, None)


def measure(
    test: "MemorizationTest", subject: Subject, run: Path | None, options: Options, grid: bool
) -> "Memorization":
    """The nearest training images of the subject's images."""
    from distgan.evaluation.evaluator import never
    from distgan.evaluation.fake_labels import FakeLabels, draw_inputs

    samples = options.samples or SAMPLES
    if subject.dataset is not None:
        return test.of_dataset(subject.dataset.dataset, samples, never)
    G = subject.G
    assert G is not None, "a generator or a dataset"
    device = test.processes.device
    if grid:
        fixed = grid_inputs(run, G, test.search.dataset)
        return test.of_generator(G, fixed.slices(device), len(fixed.z), never)
    labels = FakeLabels(test.search.dataset, options.seed, balanced=False)
    return test.of_generator(
        G, lambda first, count: draw_inputs(labels, first, count, G.z_dim, G.spec, device), samples, never
    )


def grid_inputs(run: Path | None, G: "PretrainedGenerator", dataset: "ShardSet") -> "FixedInputs":
    """What the images of a run's grids are made of. Raises UsageError."""
    from distgan.training.grids import fixed_inputs

    config = run_config(run)
    samples = config.get("samples")
    count = samples.get("count") if isinstance(samples, dict) else None
    if not isinstance(count, int) or not isinstance(config.get("seed"), int):
        raise UsageError(f"grid: {run} has no config.yaml that tells samples.count and seed; leave --grid out")
    return fixed_inputs(config["seed"], count, G.z_dim, dataset, G.spec)


def write(card: "NearestCard", found: "Memorization", out: Path, show: Sequence[int]) -> None:
    """Write the sheet, and the card beside it. Raises RunError."""
    from distgan.evaluation.memorization import sheet_picture
    from distgan.files import atomic_write
    from distgan.images import save_picture

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_picture(sheet_picture(found, show), out)
        atomic_write(out.with_suffix(".json"), card.to_json().encode())
    except OSError as error:
        raise RunError(f"{out} and its card could not be written: {format_os_error(error)}") from None
    print(f"{out}\n{out.with_suffix('.json')}", flush=True)


def command(argv: list[str]) -> None:
    """Read the command line, and search."""
    parser = Parser(prog="distgan nearest", description=DESCRIPTION)
    parser.add_argument("run_or_file", nargs="?", help=RUN_OR_FILE)
    parser.add_class_arguments(Options, as_group=False)
    parser.add_argument("--grid", action="store_true", help=GRID)
    parser.add_import("Your module, or modules, that add the model.")
    namespace = parser.parse_args(argv)
    run_or_file = namespace.pop("run_or_file")
    grid = namespace.pop("grid")
    import_user_modules(take_import(namespace))
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    from distgan.training.stop import exit_with_launcher

    exit_with_launcher()
    find_nearest(run_or_file, Options(**namespace.as_dict()), grid)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for a search that failed."""
    return run_distributed(command, argv)
