"""`distgan evaluate`: metrics of a generator, or of images, on all processes; and extractors, trained or fetched."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.commands.datasets import data_config, run_at, trained_on
from distgan.commands.evaluate_options import Options
from distgan.commands.image_sets import open_images
from distgan.commands.run import run_distributed
from distgan.commands.train_extractor import train_extractor
from distgan.config.parser import Parser, take_import
from distgan.config.types import PositiveFloat
from distgan.errors import RunError, UsageError, format_os_error
from distgan.plugins import import_user_modules

if TYPE_CHECKING:
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.card import Card
    from distgan.evaluation.estimate import Estimate
    from distgan.evaluation.evaluator import Evaluator

DESCRIPTION = (
    "`distgan evaluate RUN_OR_FILE` computes metrics of generated images against the images of a dataset, on all "
    "processes, and prints their card. `distgan evaluate --generated ADDRESS --data ADDRESS` does so for images that "
    "are there: folders, zips, .npz, datasets. `distgan evaluate --train_extractor DATASET` trains the extractor "
    "`classifier`. `distgan evaluate --prefetch` prepares evaluations without network."
)
RUN_OR_FILE = "A run folder (the EMA of its newest checkpoint), or a .safetensors file of a generator or an EMA."
BALANCED = "Generate as many images of each class. Default: at the frequencies of the dataset."
FOLLOW = (
    "Evaluate the newest checkpoint of a run, then each one as it appears, until the run is at its end. The run may "
    "not have begun yet. Checkpoints that have a card are left out."
)
POLL = "With --follow: seconds between two looks at the run folder."
IDLE = "With --follow: end when the run has written nothing for so many minutes."
PREFETCH = "Download the extractor's weights and, with --data, compute the statistics of the real images."


def evaluate_generator(run_or_file: str, options: Options) -> None:
    """Compute the metrics of a generator, print their card and write it. Raises UsageError and RunError."""
    from distgan.config.keys import Config
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.estimate import estimate
    from distgan.evaluation.evaluator import Evaluator
    from distgan.evaluation.originals import check_same_kind
    from distgan.generators.loading import find_weights, load_generator
    from distgan.runs.checkpoint import load_weights

    run = run_at(run_or_file)
    out = options.card_file
    address = options.data or trained_on(run)
    processes = Distributed(Config())
    # found once: a run that goes on may save another checkpoint meanwhile
    file, _ = processes.run_on_main(lambda: find_weights(Path(run_or_file), newest=True))
    keys = data_config(run)
    vae = options.vae or keys.get("vae")
    psi = options.truncation_psi
    G = processes.run_on_all(lambda: load_generator(file, processes.device, vae=vae, truncation_psi=psi))
    metadata = load_weights(G.path)[1]
    images = metadata.images
    real = open_images(address, processes, options.cache, "data", keys)
    check_same_kind(G.spec, G.classes, *real)
    evaluator = Evaluator(processes, real.dataset, options.settings(), path=real.address)
    width = metadata.ema_width
    ema = metadata.is_ema(G.path.stem)
    about = {"images": images, "ema": ema, "ema_width": width, "file": str(G.path)}
    with readable_errors(processes):
        announce(evaluator, estimate(evaluator, G, z_dim=G.z_dim, spec=G.spec))
        card = evaluator(G, z_dim=G.z_dim, spec=G.spec, truncation_psi=psi, **about)
        if processes.is_main_process:
            print(card.line(), flush=True)
        if out is None and run is not None:
            out = run / "cards" / options.card_name(images, card.extractor["name"], real.dataset.digest)
        if out is not None:
            processes.run_on_main(lambda: write_card(card, out))
    processes.shutdown()


def evaluate_images(address: str, options: Options) -> None:
    """Compute the metrics of images that are there, print their card and write it. Raises UsageError and RunError."""
    import numpy as np

    from distgan.config.keys import Config
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.estimate import estimate_set
    from distgan.evaluation.evaluator import Evaluator
    from distgan.evaluation.image_set import ImageSet
    from distgan.evaluation.stored import StoredImages

    options.check_generated()
    assert options.data is not None, "checked"
    out = options.card_file
    processes = Distributed(Config())
    real = open_images(options.data, processes, options.cache, "data")
    generated = open_images(address, processes, options.cache, "generated")
    total = len(generated.dataset.columns["label"])
    skip = options.skip_bad
    stored = StoredImages(processes, generated.dataset, np.arange(total), skip, "generated images", None)
    images = ImageSet.draw(stored, generated.address, options.samples or total, options.seed)
    evaluator = Evaluator(processes, real.dataset, options.settings(images.count), path=real.address)
    with readable_errors(processes):
        announce(evaluator, estimate_set(evaluator, images))
        card = evaluator.evaluate_set(images)
        if processes.is_main_process:
            print(card.line(), flush=True)
        if out is not None:
            processes.run_on_main(lambda: write_card(card, out))
    processes.shutdown()


def announce(evaluator: "Evaluator", estimated: "Estimate") -> None:
    """Print how long the evaluation will take, if that is long or on CPUs."""
    line = estimated.line()
    if evaluator.processes.is_main_process and line is not None:
        print(line, flush=True)


def write_card(card: "Card", out: Path) -> None:
    """Raises RunError."""
    from distgan.files import atomic_write

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(out, card.to_json().encode())
    except OSError as error:
        raise RunError(f"the card above could not be written to {out}: {format_os_error(error)}") from None
    print(out, flush=True)


def prefetch(options: Options) -> None:
    """Prepare evaluations without network: the extractor's weights, and the statistics of a dataset.

    Raises UsageError and RunError.
    """
    from distgan.evaluation.features import prefetch_weights

    place = prefetch_weights(options.extractor, options.cache, options.extractor_weights)
    if place is not None:
        print(place, flush=True)
    elif options.data is None:
        raise UsageError(f"prefetch: {options.extractor} needs no download; give --data DATASET for its statistics")
    if options.data is not None:
        prefetch_statistics(options.data, options)


def prefetch_statistics(address: str, options: Options) -> None:
    """Compute and cache the statistics of a dataset's images. Raises UsageError and RunError."""
    from distgan.config.keys import Config
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.evaluator import Evaluator

    processes = Distributed(Config())
    real = open_images(address, processes, options.cache, "data")
    evaluator = Evaluator(processes, real.dataset, options.settings(), path=real.address)
    with readable_errors(processes):
        evaluator.prepare()
        evaluator.prepare_bins()
    if processes.is_main_process:
        print(f"the statistics of {real.address} for {evaluator.extractor.name} are cached", flush=True)
    processes.shutdown()


@contextlib.contextmanager
def readable_errors(processes: "Distributed") -> Iterator[None]:
    """One line for a lost process and for too little memory."""
    import torch

    nothing_lost = "nothing is lost: run the same command again"
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise RunError(f"{str(error).splitlines()[0]}; {nothing_lost} where there is more memory") from None
    except (torch.distributed.DistError, RuntimeError) as error:
        lost = isinstance(error, torch.distributed.DistError) or "gloo" in str(error)
        if isinstance(error, RunError) or not lost:
            raise
        raise processes.peer_failure(error, nothing_lost) from error


def command(argv: list[str]) -> None:
    """Read the command line, and evaluate, train an extractor, or prefetch."""
    parser = Parser(prog="distgan evaluate", description=DESCRIPTION)
    parser.add_argument("run_or_file", nargs="?", help=RUN_OR_FILE)
    parser.add_class_arguments(Options, as_group=False, skip={"balanced"})
    parser.add_argument("--balanced", action="store_true", help=BALANCED)
    parser.add_argument("--prefetch", action="store_true", help=PREFETCH)
    parser.add_argument("--follow", action="store_true", help=FOLLOW)
    parser.add_argument("--poll_seconds", type=PositiveFloat, default=30.0, help=POLL)
    parser.add_argument("--idle_minutes", type=PositiveFloat, default=60.0, help=IDLE)
    parser.add_import("Your module, or modules, that add the model.")
    namespace = parser.parse_args(argv)
    run_or_file = namespace.pop("run_or_file")
    prefetching = namespace.pop("prefetch")
    following = namespace.pop("follow")
    waits = namespace.pop("poll_seconds"), namespace.pop("idle_minutes")
    import_user_modules(take_import(namespace))
    options = Options(**namespace.as_dict())
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    from distgan.training.stop import exit_with_launcher

    exit_with_launcher()
    if options.train_extractor is not None:
        train_extractor(
            options.train_extractor,
            seed=options.seed,
            images=options.train_images,
            cache=options.cache,
            out=options.out_file,
        )
    elif prefetching:
        prefetch(options)
    elif options.generated is not None:
        if run_or_file is not None:
            raise UsageError(f"generated: {run_or_file} is given too; give a generator or images that are there")
        evaluate_images(options.generated, options)
    elif following:
        from distgan.commands.follow import Pace, follow

        if run_or_file is None:
            raise UsageError("follow: give a run folder")
        follow(Path(run_or_file), options, Pace(*waits))
    elif run_or_file is not None:
        evaluate_generator(run_or_file, options)
    else:
        choices = "a run folder or a .safetensors file, or --generated ADDRESS, --train_extractor DATASET or --prefetch"
        raise UsageError(f"give {choices}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for an evaluation that failed."""
    return run_distributed(command, argv)
