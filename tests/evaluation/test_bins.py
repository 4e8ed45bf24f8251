"""Cards by bins of a condition: which images are in a bin, what G is asked for there, and what the card says of it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.shardset import ShardSet
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.evaluation.bins import cut, split_into_bins
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.settings import Settings
from helpers import make_arrays, reset_accelerate, showers


@pytest.fixture(scope="module")
def processes() -> Distributed:
    reset_accelerate()
    return Distributed(Config())


@pytest.fixture(scope="module")
def calorimeter(tmp_path_factory) -> ShardSet:
    """500 showers with an energy and a flag, in two classes of which one has 12 images."""
    images, numbers = showers(500)
    labels = (np.arange(500) < 12).astype(np.int64)
    folder = tmp_path_factory.mktemp("showers") / "set"
    return make_arrays(folder, images, labels=labels, numbers=numbers, range="0,20")


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def evaluate(processes, calorimeter, cache) -> Callable[..., Evaluator]:
    return lambda **changes: Evaluator(
        processes, calorimeter, Settings(**({"cache": cache, "extractor": "pixels", "metrics": ["fid"]} | changes))
    )


class Even(nn.Module):
    """Images [N, 2, 6, 10] that are even, whose sum is 0.8 of the energy that they are asked for, times `gain`."""

    def __init__(self, dataset: ShardSet, gain: float = 1.0) -> None:
        super().__init__()
        self.energy = dataset.spec.conditions[0]
        self.gain = gain
        self.labels: list[Tensor] = []

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert labels is not None
        self.labels.append(labels)
        energy = labels[:, 2] * self.energy.std + self.energy.mean
        stored = (0.8 * self.gain * energy / 120)[:, None, None, None].expand(-1, 2, 6, 10)
        return stored / 10 - 1  # of the range 0 to 20


def test_bins_between_quantiles():
    values = np.random.default_rng(0).exponential(3.0, 1000)
    intervals, places = cut(values, 4)
    edges = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    assert np.array(intervals) == pytest.approx(np.stack([edges[:-1], edges[1:]], axis=1), rel=1e-12)
    assert np.bincount(places).tolist() == [250] * 4
    for place, (low, high) in enumerate(intervals):
        inside = (low <= values) & ((values < high) | (high == edges[-1]))
        assert (inside == (places == place)).all()


def test_an_edge_is_in_the_bin_above_it():
    intervals, places = cut(np.arange(9.0), 4)
    assert intervals == [(0, 2), (2, 4), (4, 6), (6, 8)] and places.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3]


def test_a_bin_for_each_of_few_values_and_fewer_bins_where_quantiles_are_equal():
    intervals, places = cut(np.repeat([50.0, 10.0, 20.0], [4, 3, 2]), 3)
    assert intervals == [(10, 10), (20, 20), (50, 50)] and places.tolist() == [2] * 4 + [0] * 3 + [1] * 2
    values = np.concatenate([np.zeros(80), np.arange(1.0, 21)])
    intervals, places = cut(values, 5)
    assert intervals == [(0, pytest.approx(0.2)), (pytest.approx(0.2), 20)]
    assert np.bincount(places).tolist() == [80, 20]


def test_bins_of_a_dataset_are_all_of_its_images(calorimeter):
    for by, count in (("energy", 5), ("electron", 2), ("class", 2)):
        found = split_into_bins(calorimeter, by)
        assert len(found) == count and [each.place for each in found] == list(range(count))
        assert np.sort(np.concatenate([each.ids for each in found])).tolist() == list(range(500))
    assert [each.edges for each in found] == [
        {"low": 0, "high": 0, "class": "class0"},
        {"low": 1, "high": 1, "class": "class1"},
    ]
    assert [len(each.ids) for each in found] == [488, 12]
    assert len({json.dumps(each.definition) for each in found}) == 2


def test_the_sums_of_each_bin_tell_whether_g_obeys_the_energy(calorimeter, evaluate):
    evaluator = evaluate(by="energy", bins=4)
    good = evaluator(Even(calorimeter), z_dim=3, spec=calorimeter.spec)
    half = evaluator(Even(calorimeter, 0.5), z_dim=3, spec=calorimeter.spec)
    energies = calorimeter.columns["numbers"][:, 0]
    truth = 0.8 * energies[np.argsort(energies)].reshape(4, 125).mean(1)
    for place, (row, low) in enumerate(zip(good.bins, half.bins, strict=True)):
        sums = {name: row["image_sum"][name]["mean"] for name in ("real", "generated")}
        assert sums["real"] == pytest.approx(truth[place], rel=0.03)
        assert sums["generated"] == pytest.approx(truth[place], rel=0.03)
        assert low["image_sum"]["generated"]["mean"] == pytest.approx(truth[place] / 2, rel=0.03)
        assert row["metrics"]["fd_pixels"] < low["metrics"]["fd_pixels"]
        assert row["counts"] == {"generated": 125, "reference": 125, "rows": 125, "floor": 62}
        assert row["floor"].keys() == row["metrics"].keys() == {"fd_pixels"}
    assert [good.bins[place]["high"] for place in range(3)] == [good.bins[place]["low"] for place in (1, 2, 3)]
    lines = good.line().splitlines()
    assert len(lines) == 5 and lines[1].startswith("energy 10") and "125 generated, 125 real" in lines[1]
    assert "sum of an image" in lines[1] and "sum of an image" in lines[0]


def test_g_is_asked_for_whole_rows_of_the_bin(calorimeter, evaluate):
    G = Even(calorimeter)
    evaluate(by="energy", bins=4)(G, z_dim=3, spec=calorimeter.spec)
    rows = calorimeter.labels(np.arange(500))
    asked = torch.cat(G.labels).numpy()
    assert asked.dtype == np.float32 and len(asked) == 1000
    assert {tuple(row) for row in asked.tolist()} <= {tuple(row) for row in rows.tolist()}
    order = np.sort(rows[:, 2])
    for place in range(4):  # after those of the whole
        energies = asked[500 + 125 * place :][:125, 2]
        assert order[125 * place] <= energies.min() and energies.max() <= order[125 * place + 124]
        assert len(np.unique(energies)) > 60


def test_labels_of_a_test_set_are_standardized_as_in_training(processes, calorimeter, cache, tmp_path):
    """The whole and the bins: the edges are those of the test set."""
    images, numbers = showers(60, seed=1)
    numbers["energy"] *= 2
    labels = (np.arange(60) < 30).astype(np.int64)
    other = make_arrays(tmp_path / "set", images, labels=labels, numbers=numbers, range="0,20")
    evaluator = Evaluator(
        processes, other, Settings(extractor="pixels", metrics=["fid"], by="energy", bins=2, cache=cache)
    )
    G = Even(calorimeter)
    card = evaluator(G, z_dim=3, spec=calorimeter.spec)
    asked = {tuple(row) for row in torch.cat(G.labels).tolist()}
    ours, theirs = (
        {tuple(row) for row in other.labels(np.arange(60), spec).tolist()} for spec in (other.spec, calorimeter.spec)
    )
    assert asked <= theirs and not asked & ours
    assert card.bins[1]["high"] == other.columns["numbers"][:, 0].max() > 150


def test_a_card_by_bins_is_the_ordinary_card_and_more(calorimeter, evaluate):
    cards = [evaluate(**by)(Even(calorimeter), z_dim=3, spec=calorimeter.spec) for by in ({}, {"by": "electron"})]
    plain, binned = (json.loads(card.to_json()) for card in cards)
    for card in (plain, binned):
        del card["time"], card["seconds"]
    assert binned.pop("by") == "electron"
    assert [(row["low"], row["high"]) for row in binned.pop("bins")] == [(0, 0), (1, 1)]
    assert binned == plain
    deposited = 0.8 * calorimeter.columns["numbers"][:, 0].mean()
    assert plain["image_sum"]["real"]["mean"] == pytest.approx(deposited, rel=0.02)


def test_too_few_images_are_said(calorimeter, evaluate):
    card = evaluate(by="class")(Even(calorimeter), z_dim=3, spec=calorimeter.spec)
    assert card.bins[0]["metrics"] and "too_few" not in card.bins[0]
    row = card.bins[1]
    assert (row["class"], row["metrics"], row["counts"]) == ("class1", {}, {"generated": 12, "reference": 12})
    assert card.line().splitlines()[2] == ("class class1: too few images, metrics need 20 | 12 generated, 12 real")
    few = evaluate(by="energy", bins=2, samples=30)(Even(calorimeter), z_dim=3, spec=calorimeter.spec)
    assert [row["too_few"] for row in few.bins] == [20, 20]
    without_floor = replace(card, bins=[row | {"floor": {}} for row in card.bins[:1]])
    assert "real against real" not in without_floor.line().splitlines()[1]


def test_statistics_of_bins_are_cached(calorimeter, evaluate, cache, monkeypatch):
    evaluate(by="energy", bins=3).prepare_bins()
    evaluate(by="energy", bins=3).prepare()
    files = sorted((cache / "statistics").glob("*.safetensors"))
    monkeypatch.setattr("distgan.evaluation.reference.RealImageStatistics.measure", None)
    card = evaluate(by="energy", bins=3)(Even(calorimeter), z_dim=3, spec=calorimeter.spec)
    assert len(card.bins) == 3 and card.bins[0]["image_sum"]["real"]["std"] > 1
    assert sorted((cache / "statistics").glob("*.safetensors")) == files
    with pytest.raises(TypeError):
        evaluate(by="energy", bins=6).prepare_bins()


def test_what_bins_cannot_be_made_by(calorimeter, evaluate):
    for arguments, message in (
        ({"by": "enrgy"}, "by: unknown condition 'enrgy'; choose from class, energy, electron"),
        ({"bins": 3}, "bins: give the condition to make them by, as --by CONDITION"),
        ({"by": "class", "bins": 3}, "bins: classes have a bin each"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(**arguments)
    evaluator = evaluate(by="energy")
    with pytest.raises(UsageError, match="by: the generator is not conditioned on 'energy'; it takes no labels"):
        evaluator(Even(calorimeter), z_dim=3)
