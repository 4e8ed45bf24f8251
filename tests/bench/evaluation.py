"""Benchmark: what each extractor and each metric of an evaluation costs, at the size of a dataset's images.

    OMP_NUM_THREADS=1 .venv/bin/python tests/bench/evaluation.py DATASET... [--images 256]
    OMP_NUM_THREADS=1 .venv/bin/python tests/bench/evaluation.py

CPU seconds of one thread, as Markdown. The first command: features of --images images (of DINOv2, of fewer), scaled to
10,000; networks have random weights of their real sizes, which cost the same as trained ones. The second one: each
metric of 10,000 random rows against as many.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.pop(0)  # this folder has a transformers.py
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from distgan.data.dataset import open_dataset
from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.evaluation.classifier import save_classifier
from distgan.evaluation.classifier_training import train_classifier
from distgan.evaluation.extractor import Extractor
from distgan.evaluation.features import extract, open_extractor
from distgan.evaluation.inputs import CHUNK, from_stored
from distgan.evaluation.neighbours import share_repeated
from distgan.evaluation.scores import METRICS, Reference
from distgan.evaluation.statistics import ROWS, Accumulator, Statistics
from helpers import make_dinov2, save_inception

SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}

SHARES = {"dinov2, ViT-S/14": 4, "dinov2, ViT-L/14": 16}
"""Row -> of how many images it takes one: of these an image takes seconds."""


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process: the machine may be shared."""
    start = time.process_time()
    work()
    return time.process_time() - start


def choices(folder: Path, classifier: bool) -> dict[str, dict[str, Any]]:
    """What `open_extractor` is given, by the name of a row; their weights are in the folder."""
    inception = str(folder / "inception.pth")
    rows: dict[str, dict[str, Any]] = {"pixels": {"name": "pixels"}}
    if classifier:
        rows["classifier"] = {"name": str(folder / "classifier.safetensors")}
    rows["efficientnet-lite0"] = {"name": "efficientnet-lite0"}
    rows["inception"] = {"name": "inception", "weights": inception}
    rows["inception, resize clean"] = {"name": "inception", "weights": inception, "resize": "clean"}
    for size in ("ViT-S/14", "ViT-L/14"):
        rows[f"dinov2, {size}"] = {"name": "dinov2", "weights": str(folder / size[:5])}
    return rows


def save_networks(folder: Path) -> None:
    save_inception(folder / "inception.pth")
    for name, sizes in (("ViT-S", SMALL), ("ViT-L", LARGE)):
        make_dinov2(folder / name, patch_size=14, image_size=518, initializer_range=0.02, **sizes)


def features_seconds(extractor: Extractor, images: Tensor) -> float:
    """Of all images: features, and the sums of the statistics."""
    accumulator = Accumulator(extractor.num_features)

    def work() -> None:
        for start in range(0, len(images), CHUNK):
            part = images[start : start + CHUNK]
            accumulator.add(torch.arange(start, start + len(part)), *extract(extractor, part))

    extract(extractor, images[:2])  # what is set up at the first call
    return cpu_seconds(work)


def random_statistics(features: int, classes: int, seed: int) -> Statistics:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(features, features, generator=generator) / features**0.5
    rows = torch.randn(ROWS, features, generator=generator) @ mixed
    x = rows.double()
    return Statistics(ROWS, x.sum(0), x.T @ x, rows, torch.randn(ROWS, 1, classes, generator=generator))


def print_metrics(features: tuple[int, ...]) -> None:
    """Seconds of each metric of 10,000 rows, by the number of features."""
    names = list(METRICS)
    print(f"| features | {' | '.join(names)} | repeated |\n|---|{'---|' * (len(names) + 1)}")
    for count in features:
        generated = random_statistics(count, 10, seed=0)
        real = Reference(random_statistics(count, 10, seed=1), torch.full((10,), 0.1, dtype=torch.float64))
        seconds = [cpu_seconds(partial(METRICS[name].compute, generated, real)) for name in names]
        seconds.append(2 * cpu_seconds(partial(share_repeated, generated.rows)))  # of generated and of real rows
        print(f"| {count:,} | {' | '.join(f'{value:.1f}' for value in seconds)} |", flush=True)


def print_features(address: str, dataset: ShardSet, images: Tensor, folder: Path) -> None:
    classified = len(dataset.classes) > 1
    if classified:
        network, info = train_classifier(dataset, images=64)
        save_classifier(network, info, folder / "classifier.safetensors")
    print(f"\n{Path(address).name}, {dataset.spec.unconditional()}, {len(images)} images\n")
    print("| extractor | features | s per 10,000 images | images/s |\n|---|---|---|---|")
    for row, given in choices(folder, classified).items():
        extractor = open_extractor(dataset=dataset, device=torch.device("cpu"), cache=folder, **given)
        part = images[: max(1, len(images) // SHARES.get(row, 1))]
        rate = len(part) / features_seconds(extractor, part)
        print(f"| {row} | {extractor.num_features:,} | {10_000 / rate:.3g} | {rate:.3g} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("datasets", nargs="*", help="None: the metrics.")
    parser.add_argument("--images", type=int, default=256)
    arguments = parser.parse_args()
    if not arguments.datasets:
        return print_metrics((64, 128, 1024, 1280, 2048))
    with tempfile.TemporaryDirectory() as folder:
        save_networks(Path(folder))
        for address in arguments.datasets:
            dataset = open_dataset(address)
            ids = np.arange(min(arguments.images, len(dataset.columns["label"])))
            images = from_stored(torch.from_numpy(Reader(dataset).read(ids).images), dataset.spec)
            print_features(address, dataset, images, Path(folder))


if __name__ == "__main__":
    main()
