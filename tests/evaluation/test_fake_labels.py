"""The labels that generated images are made for: at the frequencies of the dataset, and balanced."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.shardset import ShardSet
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.evaluation.bins import split_into_bins
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.fake_labels import FakeLabels
from distgan.evaluation.settings import Settings
from helpers import make_arrays, noise, reset_accelerate

COUNTS = [90, 25, 5]
LABELS = np.repeat(np.arange(3), COUNTS)


@pytest.fixture(scope="module")
def classes(tmp_path_factory) -> ShardSet:
    """Many of the first class, few of the last."""
    return make_arrays(tmp_path_factory.mktemp("classes") / "set", noise(120), labels=LABELS)


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> ShardSet:
    """The same, with a number that lies above 10 times the class, by less than 10."""
    numbers = LABELS * 10 + np.random.default_rng(0).uniform(0, 9, len(LABELS))
    folder = tmp_path_factory.mktemp("numbers") / "set"
    return make_arrays(folder, noise(120), labels=LABELS, numbers={"size": numbers})


@pytest.fixture(scope="module")
def processes() -> Distributed:
    reset_accelerate()
    return Distributed(Config())


def test_as_many_of_each_class(classes):
    drawn = FakeLabels(classes, 0, balanced=True).draw(0, 100, classes.spec)
    assert drawn.dtype == np.int64 and sorted(np.bincount(drawn)) == [33, 33, 34]
    frequent = FakeLabels(classes, 0, balanced=False).draw(0, 1200, classes.spec)
    assert np.abs(np.bincount(frequent) - np.array(COUNTS) * 10).max() < 60


@pytest.mark.parametrize("balanced", [False, True])
def test_labels_are_a_function_of_the_seed_and_the_number(numbered, balanced):
    whole, other = (FakeLabels(numbered, seed, balanced).draw(0, 60, numbered.spec) for seed in (3, 4))
    parts = [FakeLabels(numbered, 3, balanced).draw(first, 20, numbered.spec) for first in (0, 20, 40)]
    assert np.array_equal(whole, np.concatenate(parts)) and not np.array_equal(whole, other)


def test_conditions_are_those_of_images_of_the_class(numbered):
    drawn = FakeLabels(numbered, 0, balanced=True).draw(0, 300, numbered.spec)
    assert drawn[:, :3].sum(0).tolist() == [100, 100, 100]
    (size,) = numbered.spec.conditions
    values = drawn[:, 3] * size.std + size.mean
    assert np.array_equal(np.floor(values / 10), drawn[:, :3].argmax(1))
    assert len(np.unique(values[drawn[:, 2] == 1])) == 5, "each of the images of the last class"


def test_the_classes_of_a_bin_take_turns(numbered):
    """The bin above the median has images of all three classes, the other one of the first alone."""
    labels = FakeLabels(numbered, 0, balanced=True)
    for part in split_into_bins(numbered, "size", 2):
        has = np.unique(numbered.columns["label"][part.ids])
        shares = labels.draw(0, 60, numbered.spec, part)[:, :3].sum(0)
        assert shares[has].tolist() == [60 / len(has)] * len(has)


class Shades(nn.Module):
    """Each class has its own grey."""

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        return ((labels - 1) / 2)[:, None, None, None].expand(-1, 3, 8, 8) + z[:, :1, None, None] / 100


def test_the_card_says_so(processes, classes, tmp_path):
    arguments = {"extractor": "pixels", "metrics": ["fid"], "samples": 60, "cache": tmp_path}
    cards = []
    for balanced in (False, True):
        evaluator = Evaluator(processes, classes, Settings(balanced=balanced, **arguments))
        cards.append(evaluator(Shades(), z_dim=2, spec=classes.spec, truncation_psi=0.7 if balanced else 1.0))
    plain, balanced = cards
    assert (plain.generator["labels"], balanced.generator["labels"]) == ("as in the dataset", "balanced")
    assert (plain.generator["truncation_psi"], balanced.generator["truncation_psi"]) == (1.0, 0.7)
    assert "truncation psi 0.7; labels balanced; seed 0" in balanced.line() and "labels" not in plain.line()
    assert json.loads(balanced.to_json())["generator"]["labels"] == "balanced"
    assert plain.metrics != balanced.metrics
    means = [card.image_sum["generated"]["mean"] / (8 * 8 * 3) for card in cards]
    assert means[1] == pytest.approx(127.5, abs=2) and means[0] < 90, "the middle grey is the mean of all classes"


def test_classes_of_a_g_without_are_not_balanced(processes, classes, numbered, tmp_path):
    evaluator = Evaluator(processes, classes, Settings(balanced=True, extractor="pixels", samples=40, cache=tmp_path))
    for spec in (None, classes.spec.unconditional()):
        with pytest.raises(UsageError, match="^balanced: the generator takes no classes"):
            evaluator(Shades(), z_dim=2, spec=spec)
    card = Evaluator(processes, classes, Settings(extractor="pixels", samples=40, cache=tmp_path))(Plain(), z_dim=2)
    assert card.generator["labels"] is None


class Plain(nn.Module):
    """Takes no labels."""

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.tanh(z[:, :1, None, None]).expand(-1, 3, 8, 8)
