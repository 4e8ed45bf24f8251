"""A trained generator as a folder for others: weights, config.json, a grid, the configuration and the model card."""

import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import yaml

from distgan import __version__
from distgan.config.keys import Config, flatten, to_dict
from distgan.errors import UsageError
from distgan.files import atomic_write
from distgan.generators.loading import load_generator
from distgan.generators.model_card import Facts, Training, model_card
from distgan.hub import HUB
from distgan.images import grid, save_picture
from distgan.pixels import to_picture
from distgan.runs.cards import all_cards
from distgan.runs.checkpoint import METADATA, load_weights, save_weights
from distgan.runs.metrics_file import MetricsFile, scalar_curves
from distgan.runs.weights import MODEL

CONFIG = "config.json"
CARD = "README.md"
GRID = "samples.png"
RECIPE = "config.yaml"
SHOWN = 64
"""Images of the grid."""


def write_publication(
    run_or_file: str | Path, folder: Path, repository: str, *, licence: str | None, title: str | None
) -> Facts:
    """Write the files of a repository into a new folder; returns what its card says. Raises UsageError and OSError.

    Of a run the EMA of G of its best checkpoint, else of its newest.
    """
    G = load_generator(run_or_file)
    metadata = write_weights(G.path, folder)
    run = Path(run_or_file) if Path(run_or_file).is_dir() else None
    recipe = read_recipe(run) or metadata["config"]
    atomic_write(folder / RECIPE, yaml.safe_dump(recipe, sort_keys=False).encode())
    save_picture(grid(to_picture(G.sample(SHOWN, 0).numpy())), folder / GRID)
    images = metadata.get("images")
    facts = Facts(
        repository=repository,
        title=title or repository.partition("/")[2],
        licence=licence,
        model=recipe["model"],
        spec=str(G.spec),
        parameters=sum(parameter.numel() for parameter in G.network.parameters()),
        trained_with=G.trained_with if G.spec.conditional or G.classes else "no labels",
        classes=G.classes,
        latents=metadata.get("latents"),
        dataset=recipe.get("data", {}).get("shards"),
        manifest=metadata.get("manifest"),
        ema=metadata["ema"],
        images=images,
        provenance=load_weights(G.path)[1].provenance,
        differences=differences(recipe),
        training=training_of(run),
        cards=cards_at(run, images),
    )
    atomic_write(folder / CARD, model_card(facts).encode())
    return facts


def write_weights(file: Path, folder: Path) -> dict[str, Any]:
    """Write the tensors of a generator's file as FOLDER/model.safetensors, and its metadata as config.json too.

    Of paths in the metadata only the last part is kept. Returns the metadata. Raises UsageError and OSError.
    """
    weights, about_weights = load_weights(file)
    with safetensors.safe_open(file, framework="pt") as opened:
        metadata = json.loads(opened.metadata()[METADATA])
    metadata |= {"config": without_paths(metadata["config"]), "ema": about_weights.is_ema(file.stem)}
    folder.mkdir(parents=True, exist_ok=True)
    # One entry: safetensors writes several in random order, and the same weights would be another file each time.
    save_weights(folder / MODEL, weights, metadata)
    about = {"library_name": "distgan", "distgan_version": __version__}
    atomic_write(folder / CONFIG, (json.dumps(about | metadata, indent=2, sort_keys=True) + "\n").encode())
    return metadata


def without_paths(value: Any) -> Any:
    """JSON values whose paths and addresses, but those on the hub, are their last part: they are of one machine."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    if isinstance(value, str) and not value.startswith(HUB):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


def read_recipe(run: Path | None) -> dict[str, Any]:
    """The configuration of a run, without paths; {} without a run. Raises UsageError."""
    if run is None or not (run / "config.yaml").is_file():
        return {}
    try:
        recipe = yaml.safe_load((run / "config.yaml").read_text())
        return without_paths(recipe) if "model" in recipe else {}
    except (TypeError, ValueError, yaml.YAMLError):
        raise UsageError(f"{run / 'config.yaml'} is corrupt; resume the run to write it again") from None


def differences(recipe: dict[str, Any]) -> dict[str, Any]:
    """The keys of a configuration that are not at their defaults, flat."""
    defaults = flatten(to_dict(Config()))
    values = flatten(recipe)
    return {key: value for key, value in values.items() if value != defaults.get(key) and key != "run_dir"}


def training_of(run: Path | None) -> Training | None:
    """How a run was trained, from its environment.json and the rates in its metrics.jsonl; None where it is not known.

    Raises UsageError for a corrupt metrics.jsonl.
    """
    if run is None:
        return None
    try:
        environment = json.loads((run / "environment.json").read_text())
        processes, device, commit = (environment[key] for key in ("processes", "device", "commit"))
        torch_version = environment["libraries"]["torch"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    rates = scalar_curves(MetricsFile(run / "metrics.jsonl").records()).get("images_per_second")
    rate = statistics.median(rates[1]) if rates else None
    return Training(processes, device, commit, environment.get("distgan"), torch_version, rate)


def cards_at(run: Path | None, images: int | None) -> list[dict[str, Any]]:
    """The metric cards of the checkpoint at `images` seen: of evaluations during the run, and of `distgan evaluate`.

    A card that says less than cards do is left out. Raises UsageError for a damaged file.
    """
    if run is None or images is None:
        return []
    found = [card for at, card in all_cards(run, MetricsFile(run / "metrics.jsonl").records()) if at == images]
    needed = ("metrics", "floor", "counts", "extractor", "data")
    return [card for card in found if all(isinstance(card.get(key), dict) for key in needed)]


def listed(folder: Path) -> Sequence[tuple[str, int]]:
    """The files of a folder, and their bytes."""
    return [(path.name, path.stat().st_size) for path in sorted(folder.iterdir())]
