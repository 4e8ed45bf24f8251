"""`distgan evaluate RUN_OR_FILE`: metrics of a generator, on all processes; also trains and fetches the extractors."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distgan.commands.run import run_command
from distgan.config.parser import Parser
from distgan.config.types import NonNegativeInt, PositiveInt
from distgan.errors import RunError, UsageError, format_os_error
from distgan.plugins import import_user_modules

if TYPE_CHECKING:
    from distgan.data.shardset import ShardSet
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.card import Card

PREFETCH = "Instead: download the extractor's weights, and with --data compute the statistics of the real images."


def evaluate(
    run_or_file: str | None = None,
    data: str | None = None,
    metrics: str = "",
    extractor: str = "classifier",
    samples: PositiveInt | None = None,
    seed: NonNegativeInt = 0,
    reference_images: PositiveInt | None = None,
    skip_bad: NonNegativeInt = 0,
    out: str | None = None,
    train_extractor: str | None = None,
    train_images: PositiveInt | None = None,
    prefetch: bool = False,
    cache_dir: str | None = None,
    imports: list[str] | str = (),  # type: ignore[assignment] - the key `import`
) -> None:
    """Compute metrics of generated images against the images of a dataset, and print their card.

    Args:
        run_or_file: A run folder (the EMA of its newest checkpoint), or a .safetensors file of a generator or an EMA.
        data: Dataset of the real images; default: the one that the generator was trained on.
        metrics: Comma-separated: fid, kid, is, precision_recall, density_coverage, modes. Default: fid,
            precision_recall, and modes with a classifier of the dataset's labels. With other extractors than inception
            the first three are named fd, kd and is, with the extractor's name.
        extractor: classifier (of the dataset's labels; --train_extractor makes it), efficientnet-lite0, inception, or
            the .safetensors file of a classifier.
        samples: Generated images; default: 26,000 for stacked-mnist, else as many as the dataset has, up to 50,000.
        seed: Of the latents, or of the classifier's training.
        reference_images: Real images to compare with, drawn at random; default: all. Their statistics are cached.
        skip_bad: Corrupt images of the dataset to replace by others; one more ends the evaluation.
        out: File of the card (.json), or of the classifier; default: RUN/cards/IMAGES-EXTRACTOR.json, with the metrics
            and the seed in its name if they are given, or the cache.
        train_extractor: Instead: train a classifier of the labels of this dataset, on one process.
        train_images: Images to train it on, repetitions counted; default: 8 epochs, between 60,000 and 400,000.
        cache_dir: Folder of extractors and statistics; default: ~/.cache/distgan.
    """
    import_user_modules([imports] if isinstance(imports, str) else imports)
    from distgan.training.stop import exit_with_launcher

    exit_with_launcher()
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    from distgan.evaluation.evaluator import cache_folder

    cache = Path(cache_dir) if cache_dir else cache_folder()
    options = {
        "extractor": extractor,
        "metrics": [name.strip() for name in metrics.split(",") if name.strip()],
        "samples": samples,
        "seed": seed,
        "reference_images": reference_images,
        "skip_bad": skip_bad,
        "cache": cache,
    }
    if train_extractor is not None:
        train_classifier(train_extractor, seed, train_images, cache, Path(out) if out else None)
    elif prefetch:
        fetch(data, options)
    elif run_or_file is None:
        raise UsageError("give a run folder or a .safetensors file, or --train_extractor DATASET, or --prefetch")
    else:
        evaluate_generator(run_or_file, data, options, Path(out) if out else None)


def evaluate_generator(run_or_file: str, data: str | None, options: dict[str, Any], out: Path | None) -> None:
    from distgan.config.keys import Config
    from distgan.distributed.processes import Distributed
    from distgan.evaluation.evaluator import Evaluator
    from distgan.generators.pretrained import find_weights, load_generator
    from distgan.runs.checkpoint import load_weights

    run = Path(run_or_file) if Path(run_or_file).is_dir() else None
    if out is not None and out.suffix != ".json":
        raise UsageError(f"out: {out} must end in .json")
    data = data or trained_on(run)
    processes = Distributed(Config())
    # found once: a run that goes on may save another checkpoint meanwhile
    file, _ = processes.run_on_main(lambda: find_weights(Path(run_or_file), newest=True))
    G = processes.run_on_all(lambda: load_generator(file, processes.device))
    images = load_weights(G.path)[1].images
    dataset = processes.run_on_all(lambda: open_dataset(data, data_config(run)))
    if (G.size, G.channels) != (dataset.size, dataset.channels):
        raise UsageError(
            f"data: {data} has images {dataset.size}x{dataset.size}x{dataset.channels}, the generator makes "
            f"{G.size}x{G.size}x{G.channels}"
        )
    if G.classes and G.classes != [row.name for row in dataset.classes]:
        raise UsageError(f"data: the classes of {data} are not those that the generator was trained with")
    evaluator = Evaluator(processes, dataset, path=data, **options)
    about = {"images": images, "ema": G.path.stem == "ema", "file": str(G.path)}
    with readable_errors(processes):
        card = evaluator(G, z_dim=G.z_dim, conditional=bool(G.classes), **about)
        if processes.is_main_process:
            print(card.line(), flush=True)
        if out is None and run is not None:
            out = run / "cards" / card_name(images, card.extractor["name"], options)
        if out is not None:
            processes.run_on_main(lambda: write_card(card, out))
    processes.shutdown()


def card_name(images: int | None, extractor: str, options: dict[str, Any]) -> str:
    """A name of its own for each choice of metrics and seed: their cards do not overwrite each other."""
    seed = [f"seed{options['seed']}"] if options["seed"] else []
    return "-".join([str(images), extractor, *options["metrics"], *seed]) + ".json"


def data_config(run: Path | None) -> dict[str, Any]:
    """The keys `data` of a run's configuration; {} without a run, or if they cannot be read."""
    import yaml

    try:
        found = yaml.safe_load((run / "config.yaml").read_text())["data"] if run else {}
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        found = {}
    return found if isinstance(found, dict) else {}


def trained_on(run: Path | None) -> str:
    """The dataset in a run's configuration. Raises UsageError."""
    if run is None:
        raise UsageError("data: give the dataset of the real images, as --data DATASET")
    found = data_config(run).get("shards")
    if not isinstance(found, str):
        raise UsageError(f"data: {run} has no config.yaml that names a dataset; give --data DATASET")
    return found


def open_dataset(address: str, keys: Mapping[str, Any] | None = None) -> "ShardSet":
    """`keys` are those of `data` in a run's configuration: shards of a server go to the cache of the run.

    Raises UsageError.
    """
    from distgan.data.remote.cache import open_storage
    from distgan.data.shardset import open_shardset

    cache = {key: keys[key] for key in ("cache_dir", "cache_gb") if keys and keys.get(key) is not None}
    dataset = open_shardset(open_storage(address, **cache), address)
    dataset.check_index()
    if missing := dataset.missing():
        raise UsageError(f"data: {address} lacks {missing[0]}; restore the missing files, or re-create the dataset")
    return dataset


def write_card(card: "Card", out: Path) -> None:
    """Raises RunError."""
    from distgan.files import atomic_write

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(out, card.to_json().encode())
    except OSError as error:
        raise RunError(f"the card above could not be written to {out}: {format_os_error(error)}") from None
    print(out, flush=True)


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


def train_classifier(address: str, seed: int, images: int | None, cache: Path, out: Path | None) -> None:
    """Train a classifier of the dataset's labels and write it. Raises UsageError and RunError."""
    import tempfile

    import torch

    from distgan.evaluation import classifier
    from distgan.evaluation.features import default_classifier
    from distgan.evaluation.progress import ProgressBar

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("train_extractor: it runs on one process; start it without accelerate launch")
    dataset = open_dataset(address)
    out = out or default_classifier(dataset, cache)
    if out.suffix != ".safetensors":
        raise UsageError(f"out: {out} must end in .safetensors")
    try:  # before the training, not after it
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UsageError(f"out: {out} cannot be written: {format_os_error(error)}") from None
    bar: list[ProgressBar] = []

    def progress(done: int, total: int) -> None:
        if not bar:
            bar.append(ProgressBar("training the classifier", total))
        bar[0].update(done)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, info = classifier.train_classifier(dataset, seed=seed, images=images, device=device, progress=progress)
    bar[0].close()
    try:
        classifier.save_classifier(network, info, out)
    except OSError as error:
        raise RunError(f"the classifier could not be written to {out}: {format_os_error(error)}") from None
    print(f"{out}: accuracy {info.accuracy:.2%} on {info.held_out:,} held-out images, {len(info.classes)} classes")


def fetch(address: str | None, options: dict[str, Any]) -> None:
    """Get ready for evaluations without network: the extractor's weights, and the statistics of a dataset."""
    from distgan.evaluation.features import prefetch_inception

    if options["extractor"] == "inception":
        print(prefetch_inception(options["cache"]), flush=True)
    elif address is None:
        raise UsageError(f"prefetch: {options['extractor']} needs no download; give --data DATASET for its statistics")
    if address is not None:
        from distgan.config.keys import Config
        from distgan.distributed.processes import Distributed
        from distgan.evaluation.evaluator import Evaluator

        processes = Distributed(Config())
        dataset = processes.run_on_all(lambda: open_dataset(address))
        evaluator = Evaluator(processes, dataset, path=address, **options)
        with readable_errors(processes):
            evaluator.prepare()
        if processes.is_main_process:
            print(f"the statistics of {address} for {evaluator.extractor.name} are cached", flush=True)
        processes.shutdown()


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for an evaluation that failed."""

    def command(argv: list[str]) -> None:
        parser = Parser(prog="distgan evaluate", description=__doc__)
        parser.add_argument(
            "run_or_file", nargs="?", help="A run folder (the EMA of its newest checkpoint), or a .safetensors file."
        )
        parser.add_function_arguments(evaluate, as_group=False, skip={"run_or_file", "imports", "prefetch"})
        parser.add_argument("--prefetch", action="store_true", help=PREFETCH)
        parser.add_argument(
            "--import", type=list[str] | str, default=[], help="Your module, or modules, that add the model."
        )
        options = parser.parse_args(argv).as_dict()
        evaluate(imports=options.pop("import"), **options)

    code = run_command(command, argv)
    distributed = sys.modules.get("torch.distributed")
    if code and distributed is not None and distributed.is_initialized():
        os._exit(code)  # torch's exit handlers would wait for processes that have failed too
    return code
