"""Benchmark: our numbers beside those of pytorch-fid, clean-fid and prdc, on the same images and the same features.

Needs the three packages, none of which is a dependency of distgan:

    pip install --no-deps --target peers pytorch-fid==0.3.0 clean-fid==0.1.35 prdc==0.2
    OMP_NUM_THREADS=1 PYTHONPATH=peers .venv/bin/python tests/bench/peers.py DATASET
"""

import argparse
import contextlib
import importlib
import io
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from distgan.data.dataset import open_dataset
from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.evaluation import inception
from distgan.evaluation.extractor import Extractor
from distgan.evaluation.features import extract, open_extractor
from distgan.evaluation.inputs import CHUNK, from_stored
from distgan.evaluation.resizing import resize_float
from distgan.evaluation.scores import Reference, density_coverage, frechet_distance, kernel_distance, precision_recall
from distgan.evaluation.statistics import Statistics
from helpers import save_inception

CPU = torch.device("cpu")
INSTALL = "pip install --no-deps --target peers pytorch-fid==0.3.0 clean-fid==0.1.35 prdc==0.2"


def statistics(features: Tensor) -> Statistics:
    x = features.double()
    return Statistics(len(x), x.sum(0), x.T @ x, features)


def features_of(extractor: Extractor, images: Tensor) -> Tensor:
    return torch.cat([extract(extractor, part)[0] for part in images.split(CHUNK)])


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Packages print, and warn of others."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def package(name: str) -> Any:
    """A module of another package; says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(f"{error}; {INSTALL}, and PYTHONPATH=peers")


def row(name: str, other: str, ours: float, theirs: float) -> None:
    relative = abs(ours - theirs) / max(abs(theirs), 1e-300)
    print(f"| {name} | {other} | {ours:.10g} | {theirs:.10g} | {relative:.1e} |", flush=True)


def compare_distances(name: str, fake: Tensor, real: Tensor) -> None:
    """The Frechet distance, of the mean and covariance that NumPy computes for the others."""
    ours = frechet_distance(statistics(fake), Reference(statistics(real), torch.empty(0)))["fid"]
    x, y = fake.double().numpy(), real.double().numpy()
    moments = x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False)
    others: dict[str, Callable[..., float]] = {
        "pytorch-fid": package("pytorch_fid.fid_score").calculate_frechet_distance,
        "clean-fid": package("cleanfid.fid").frechet_distance,
    }
    for other, distance in others.items():
        with silent():
            theirs = float(distance(*moments))
        row(f"Frechet distance, {name}", other, ours, theirs)


def compare_kernels(name: str, fake: Tensor, real: Tensor) -> None:
    """KID of 1,000 images each at most: all subsets are then the whole, as the packages draw other ones."""
    fake, real = fake[:1000], real[:1000]
    ours = kernel_distance(statistics(fake), Reference(statistics(real), torch.empty(0)))["kid"]
    theirs = package("cleanfid.fid").kernel_distance(real.double().numpy(), fake.double().numpy(), 1)
    row(f"kernel distance, {name}", "clean-fid", ours, theirs)


def compare_balls(name: str, fake: Tensor, real: Tensor) -> None:
    """Precision and recall of k = 3, density and coverage of k = 5."""
    pair = statistics(fake), Reference(statistics(real), torch.empty(0))
    ours = precision_recall(*pair) | density_coverage(*pair)
    for k, keys in ((3, ("precision", "recall")), (5, ("density", "coverage"))):
        with silent():
            theirs = package("prdc").compute_prdc(real.numpy(), fake.numpy(), nearest_k=k)
        for key in keys:
            row(f"{key}, k = {k}, {name}", "prdc", ours[key], float(theirs[key]))


def compare_pixels(images: Tensor) -> None:
    resize = package("cleanfid.resize").build_resizer("clean")
    rgb = images.expand(-1, 3, -1, -1)
    theirs = np.stack([resize(image) for image in rgb.permute(0, 2, 3, 1).numpy()]).transpose(0, 3, 1, 2)
    difference = np.abs(resize_float(rgb, inception.SIDE).numpy() - theirs)
    print(f"\nPixels of `--resize clean` and clean-fid: at most {difference.max():.1e} of 255 apart, ", end="")
    print(f"{(difference == 0).mean():.2%} are equal.")


def compare_networks(dataset: ShardSet, file: Path, images: Tensor) -> None:
    """Features of pytorch-fid's network with the same weights.

    It takes pixels over 255; over 256 they are scaled as FID's own code does.
    """
    module = package("pytorch_fid.inception")
    weights = torch.load(file, weights_only=True)
    with silent(), mock.patch.object(module, "load_state_dict_from_url", lambda *_, **__: weights):
        network = module.InceptionV3().eval()
    square = resize_float(images, inception.SIDE).round().to(torch.uint8)
    for what, given, scale in (
        ("images of 299x299, over 256", square, 256),
        ("images of 299x299, over 255 as it does", square, 255),
        ("images of the dataset, which each resizes, over 255", images, 255),
    ):
        options: dict[str, Any] = {"weights": str(file)}
        ours = features_of(open_extractor("inception", dataset, CPU, file.parent, **options), given)
        with torch.no_grad():
            theirs = network(given.expand(-1, 3, -1, -1).float() / scale)[0].flatten(1)
        difference = (ours - theirs).abs().max() / theirs.std()
        print(f"Features of Inception and pytorch-fid, {what}: at most {difference:.1e} standard deviations apart.")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("dataset")
    parser.add_argument("--images", type=int, default=1500, help="Of each of the two sets, for pixels as features.")
    parser.add_argument("--network_images", type=int, default=200, help="The same, for features of Inception.")
    arguments = parser.parse_args()
    dataset = open_dataset(arguments.dataset)
    total = len(dataset.columns["label"])
    count = min(arguments.images, total // 2)
    ids = np.sort(np.random.default_rng(0).permutation(total)[: 2 * count])
    images = from_stored(torch.from_numpy(Reader(dataset).read(ids).images), dataset.spec)
    # the second set is darker: equal distributions have a distance that is nothing but chance
    fake, real = (images[count:].float() * 0.9).round().to(torch.uint8), images[:count]
    print(f"{Path(arguments.dataset).name}, {dataset.spec.unconditional()}: images, and other ones made darker\n")
    print("| number | package | ours | theirs | relative difference |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        file = save_inception(Path(folder) / "inception.pth")
        networks: dict[str, dict[str, Any]] = {"pixels": {}, "inception": {"weights": str(file)}}
        for name, options in networks.items():
            extractor = open_extractor(name, dataset, CPU, Path(folder), **options)
            most = count if name == "pixels" else min(count, arguments.network_images)
            pair = features_of(extractor, fake[:most]), features_of(extractor, real[:most])
            about = f"{extractor.num_features} features of {most} images ({name})"
            compare_distances(about, *pair)
            compare_kernels(about, *pair)
            compare_balls(about, *pair)
        compare_pixels(images[:64])
        compare_networks(dataset, file, images[:32])


if __name__ == "__main__":
    main()
