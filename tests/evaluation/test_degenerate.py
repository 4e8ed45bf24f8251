"""Sets of images that metrics were not made for: numbers stay finite, and the card says what repeats."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.shardset import ShardSet
from distgan.distributed.processes import Distributed
from distgan.evaluation import classifier, classifier_training, features
from distgan.evaluation.card import Card
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.neighbours import compared, number_rows, share_repeated
from distgan.evaluation.scores import METRICS, Reference, density_coverage, inception_score, precision_recall
from distgan.evaluation.settings import Settings
from distgan.evaluation.statistics import Statistics
from helpers import make_arrays, make_dinov2, noise, reset_accelerate, save_inception

IMAGES = 300


class Repeat(nn.Module):
    """A generator that makes the images uint8 [N, H, W, C] of a table in turn."""

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self.images = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        self.made = 0

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        places = (self.made + torch.arange(len(z))) % len(self.images)
        self.made += len(z)
        return self.images[places]


def smooth(count: int, seed: int = 0) -> np.ndarray:
    """Images 16x16x3 of four levels with noise."""
    levels = np.random.default_rng(seed).integers(0, 4, count)[:, None, None, None] * 50
    return (noise(count, 16, seed=seed) // 4 + levels).astype(np.uint8)


GENERATED = {
    "one image": smooth(1),
    "a black image": np.zeros((1, 16, 16, 3), np.uint8),
    "20 images": smooth(20, seed=1),
    "the real images": smooth(IMAGES),
}


@pytest.fixture(scope="module")
def processes() -> Distributed:
    reset_accelerate()
    return Distributed(Config())


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> dict[str, ShardSet]:
    """The same images once each, six times each, and one of them alone; in three classes."""
    folder = tmp_path_factory.mktemp("sets")
    sets = {
        "different": smooth(IMAGES),
        "six times": smooth(IMAGES // 6).repeat(6, 0),
        "equal": smooth(1).repeat(60, 0),
    }
    return {
        name: make_arrays(folder / name, images, labels=np.arange(len(images)) % 3) for name, images in sets.items()
    }


@pytest.fixture(scope="module")
def extractors(datasets, tmp_path_factory) -> dict[str, dict[str, str]]:
    """What an Evaluator is given for each of them."""
    folder = tmp_path_factory.mktemp("networks")
    network, info = classifier_training.train_classifier(datasets["different"], images=200)
    classifier.save_classifier(network, info, folder / "classifier.safetensors")
    vision = make_dinov2(folder / "dinov2", patch_size=56, image_size=112)
    inception = save_inception(folder / "inception.pth")
    return {
        "pixels": {"extractor": "pixels"},
        "classifier": {"extractor": str(folder / "classifier.safetensors")},
        "dinov2": {"extractor": "dinov2", "extractor_weights": str(vision)},
        "efficientnet-lite0": {"extractor": "efficientnet-lite0"},
        "inception": {"extractor": "inception", "extractor_weights": str(inception)},
    }


@pytest.mark.parametrize(
    ("extractor", "fewest"),
    [
        ("pixels", 0),
        ("classifier", 0),
        ("dinov2", 60),
        pytest.param("efficientnet-lite0", 60, marks=pytest.mark.slow),
        pytest.param("inception", 60, marks=pytest.mark.slow),
    ],
)
def test_every_number_is_finite(extractor, fewest, processes, datasets, extractors, tmp_path, recwarn):
    """Of fewer images than features too, and without a warning of a library."""
    large = extractor in ("efficientnet-lite0", "inception")  # of which a distance takes seconds
    for dataset in list(datasets.values())[large:]:
        settings = Settings(
            metrics=[name for name, each in METRICS.items() if each.needs == "features" or extractor == "classifier"],
            samples=fewest or IMAGES,
            reference_images=fewest or None,
            cache=tmp_path,
            **extractors[extractor],
        )
        evaluator = Evaluator(processes, dataset, settings)
        for images in list(GENERATED.values())[: 1 if large else None]:
            card = evaluator(Repeat(images), z_dim=1)
            assert all(map(math.isfinite, [*card.metrics.values(), *card.floor.values()])), card.line()
            assert min(0.0, *(card.metrics[name] for name in ("precision", "recall", "density", "coverage"))) == 0
            assert next(iter(card.metrics.values())) > -1e-3, "a Frechet distance"
    assert not recwarn.list


def card_of(processes: Distributed, dataset: ShardSet, images: np.ndarray, cache: Path) -> Card:
    metrics = ["precision_recall", "density_coverage"]
    settings = Settings(extractor="pixels", metrics=metrics, samples=IMAGES, cache=cache)
    return Evaluator(processes, dataset, settings)(Repeat(images), z_dim=1)


def test_a_card_says_what_repeats(processes, datasets, tmp_path):
    """With all real images six times each, density and coverage are 0 whatever is generated."""
    perfect = card_of(processes, datasets["six times"], smooth(IMAGES // 6), tmp_path)
    assert perfect.metrics == {"precision": 1, "recall": 1, "density": 0, "coverage": 0}
    assert perfect.repeated == {"generated": 1, "real": 1}
    assert "repeated: 100% of generated, 100% of real images" in perfect.line()
    collapsed = card_of(processes, datasets["different"], smooth(1), tmp_path)
    assert collapsed.repeated == {"generated": 1, "real": 0} and "100% of generated, 0% of real" in collapsed.line()
    assert collapsed.metrics["recall"] == pytest.approx(1 / IMAGES) and collapsed.metrics["precision"] == 1
    healthy = card_of(processes, datasets["different"], smooth(IMAGES, seed=5), tmp_path)
    assert not healthy.repeated and "repeated" not in healthy.line() and "repeated" not in healthy.to_json()


def statistics(rows: Tensor, logits: Tensor | None = None) -> Statistics:
    x = rows.double()
    return Statistics(len(x), x.sum(0), x.T @ x, rows, logits)


def test_repeats_are_those_of_the_formulas(processes):
    """Of rows that repeat as they like, by exact distances in float64, one pair at a time."""
    random = np.random.default_rng(0)
    real = random.normal(size=(60, 40))[random.integers(0, 60, 200)].astype(np.float32)
    fake = np.concatenate([real[:80], 1.2 * random.normal(size=(30, 40))[random.integers(0, 30, 60)]]).astype(
        np.float32
    )
    x, y = real.astype(np.float64), fake.astype(np.float64)
    real_real, fake_fake, real_fake = (
        np.sqrt(((a[:, None] - b[None]) ** 2).sum(2)) for a, b in ((x, x), (y, y), (x, y))
    )
    three, five = np.sort(real_real, 1)[:, 3], np.sort(real_real, 1)[:, 5]
    expected = {
        "precision": (real_fake <= three[:, None]).any(0).mean(),
        "recall": (real_fake <= np.sort(fake_fake, 1)[:, 3]).any(1).mean(),
        "density": (real_fake < five[:, None]).sum() / (5 * len(fake)),
        "coverage": (real_fake < five[:, None]).any(1).mean(),
    }
    assert 0 < (three == 0).mean() < 1 and all(0.1 < value < 1 for value in expected.values())
    pair = statistics(torch.from_numpy(fake)), Reference(statistics(torch.from_numpy(real)), torch.empty(0))
    assert precision_recall(*pair) | density_coverage(*pair) == pytest.approx(expected, rel=1e-6)
    counts = np.unique(real, axis=0, return_inverse=True, return_counts=True)
    assert share_repeated(torch.from_numpy(real)) == (counts[2][counts[1]] > 1).mean()


def test_rows_are_equal_up_to_rounding_and_their_distance_is_0():
    rows = torch.randn(2500, 30) + 100
    repeated = torch.cat([rows, rows + 1e-4 * torch.randn(2500, 30), rows[:1] + 0.1])
    numbers = number_rows(repeated)
    assert torch.equal(numbers[:2500], numbers[2500:5000]) and len(numbers.unique()) == 2501
    fake, real = compared(repeated[:2500], repeated[2500:])
    distances = torch.cat([fake.distances(block, real) for block in fake.blocks()])
    assert (distances.diagonal() == 0).all() and (distances == 0).sum() == 2500
    assert 0.4 < distances[0, 2500] < 0.7  # 0.1 in each of 30 features


def test_the_inception_score_of_certain_and_of_constant_logits(processes):
    """One class has all of the probability, others 0 of it in float64: the score is the entropy of the classes."""
    no_reference = Reference(statistics(torch.zeros(100, 1)), torch.empty(0))
    certain = 1000 * torch.eye(4).repeat(25, 1)[:, None]
    found = inception_score(statistics(torch.zeros(100, 1), certain), no_reference)
    classes = (np.random.RandomState(2020).permutation(100) % 4).reshape(10, 10)
    shares = np.stack([np.bincount(split, minlength=4) for split in classes]) / 10
    expected = np.exp(-(shares * np.log(np.maximum(shares, 1e-9))).sum(1))
    assert found == pytest.approx({"is": expected.mean(), "is_std": expected.std()}, rel=1e-9)
    assert inception_score(statistics(torch.zeros(100, 1), torch.ones(100, 1, 7)), no_reference) == {
        "is": 1,
        "is_std": 0,
    }


def test_features_of_one_image_differ_in_the_last_bits_with_the_chunk(extractors, datasets, tmp_path):
    """They count as equal: a G that makes one image repeats all of them, in chunks of 128 and of 44."""
    extractor = features.open_extractor("efficientnet-lite0", datasets["equal"], torch.device("cpu"), tmp_path)
    image = torch.from_numpy(smooth(1)).permute(0, 3, 1, 2)
    rows = torch.cat([features.extract(extractor, image.expand(count, -1, -1, -1))[0] for count in (32, 7)])
    assert share_repeated(rows) == 1 and len(number_rows(rows).unique()) == 1
