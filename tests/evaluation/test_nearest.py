"""The nearest training images, exact, and the test for data-copying on generators that copy and that do not."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.shardset import LocalStorage, ShardSet, open_shardset
from distgan.data.stream import Reader
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.evaluation import nearest as nearest_module
from distgan.evaluation.copying import compare_distances
from distgan.evaluation.evaluator import never
from distgan.evaluation.features import open_extractor
from distgan.evaluation.memorization import Memorization, MemorizationTest, sheet_picture
from distgan.evaluation.nearest import Chunk, Closest, NearestSearch, Queries
from distgan.evaluation.nearest_card import keys_of, make_card
from distgan.evaluation.originals import RealImageSet
from distgan.rng import normal_rows, philox
from helpers import make_dataset, noise, reset_accelerate

TRAINING = 300
NONE = np.empty((0, 2), np.uint64)


def open_set(folder: Path) -> ShardSet:
    return open_shardset(LocalStorage(folder), str(folder))


@pytest.fixture(scope="module")
def processes() -> Distributed:
    reset_accelerate()
    return Distributed(Config())


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """Of which the first 300 are trained on, and the others are held out."""
    return noise(600, seed=1)


@pytest.fixture(scope="module")
def training(images, tmp_path_factory) -> ShardSet:
    return open_set(make_dataset(tmp_path_factory.mktemp("training") / "set", images[:TRAINING]))


@pytest.fixture(scope="module")
def held_out(images, tmp_path_factory) -> RealImageSet:
    folder = make_dataset(tmp_path_factory.mktemp("held out") / "set", images[TRAINING:])
    return RealImageSet(open_set(folder), str(folder))


@pytest.fixture(scope="module")
def search(processes) -> Callable[..., NearestSearch]:
    """Of a dataset, in the space of pixels."""

    def open_search(dataset: ShardSet, **changes) -> NearestSearch:
        extractor = open_extractor("pixels", dataset, processes.device, Path("none"))
        return NearestSearch(processes, dataset, extractor, **changes)

    return open_search


def stored(dataset: ShardSet) -> np.ndarray:
    """The images in the order of their sample ids."""
    return Reader(dataset).read(np.arange(len(dataset.columns["label"]))).images


def queries_of(images: np.ndarray, search: NearestSearch) -> Queries:
    return Queries(nearest_module.features_of(search.extractor, torch.from_numpy(images), search.dataset.spec), NONE)


def brute_force(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Distances and numbers of the nearest 3 of `b` for each of `a`, in float64."""
    x, y = (each.numpy().astype(np.float64) for each in (a, b))
    distances = np.sqrt(((x[:, None] - y) ** 2).sum(2))
    order = np.argsort(distances, axis=1, kind="stable")[:, :3]
    return np.take_along_axis(distances, order, 1), order


class Copier(nn.Module):
    """A generator whose images are those of a table, chosen by z, plus a little noise."""

    z_dim = 1 + 3 * 8 * 8

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self.table = nn.Buffer(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not self.training
        chosen = self.table[(z[:, 0].abs() * 1e6).long() % len(self.table)]
        return chosen + 0.02 * z[:, 1:].reshape(chosen.shape)

    def inputs(self, first: int, count: int) -> tuple[Tensor, None]:
        return torch.from_numpy(normal_rows(philox(0, "latents"), first, count, self.z_dim)), None


def copying_of(test: MemorizationTest, images: np.ndarray, samples: int = 200) -> Memorization:
    G = Copier(images).train()
    found = test.of_generator(G, G.inputs, samples, never)
    assert G.training
    return found


def test_the_nearest_are_those_of_brute_force(training, images, search):
    one = search(training)
    queries = queries_of(images[TRAINING : TRAINING + 40], one)
    found = one.nearest(queries, never)
    distances, ids = brute_force(queries.features, queries_of(stored(training), one).features)
    assert (found.ids == ids).all() and not found.mirrored.any()
    np.testing.assert_allclose(found.distances, distances, rtol=1e-12)


def test_small_distances_of_large_features_keep_their_digits():
    """A product of float32 matrices would be off by more than the distances themselves."""
    random = torch.Generator().manual_seed(0)
    training = 1e3 + torch.randn(200, 64, generator=random)
    queries = training[:20] + 1e-3 * torch.randn(20, 64, generator=random)
    closest = Closest(Queries(queries, NONE), 3, torch.device("cpu"))
    for part in torch.arange(200).split(64):
        closest.add(Chunk(part.numpy(), training[part][None], np.zeros(len(part), np.uint64)))
    distances, ids = brute_force(queries, training)
    assert (closest.ids.numpy() == ids).all() and distances[:, 0].max() < 0.02
    np.testing.assert_allclose(closest.distances.numpy(), distances, rtol=1e-12)


def test_equally_near_images_come_in_the_order_of_the_dataset(training, images, search, tmp_path):
    """Also in different chunks."""
    keys = keys_of(training, np.arange(TRAINING))  # the numbers of images before they were shuffled
    assert (images[[int(keys[id]) for id in range(TRAINING)]] == stored(training)).all()
    table = images[:TRAINING].copy()
    equal = [100, 150, 270, 290]
    table[[int(keys[id]) for id in equal]] = table[0]
    dataset = open_set(make_dataset(tmp_path / "set", table))
    assert all((stored(dataset)[id] == table[0]).all() for id in equal)
    first = sorted([*equal, int(next(id for id, key in keys.items() if int(key) == 0))])[:3]
    found = search(dataset).nearest(queries_of(table[:1], search(dataset)), never)
    assert found.ids.tolist() == [first] and found.distances.tolist() == [[0, 0, 0]]


def test_mirrored_training_images_are_found_where_they_were_trained_on(training, search):
    images = stored(training)
    mirrored = np.ascontiguousarray(images[7:8, :, ::-1])
    one, both = search(training), search(training, flip=True)
    found = both.nearest(queries_of(mirrored, both), never)
    assert (found.ids[0, 0], found.distances[0, 0], found.mirrored[0].tolist()[0]) == (7, 0, True)
    found = both.nearest(queries_of(images[7:8], both), never)
    assert (found.ids[0, 0], found.distances[0, 0], found.mirrored[0].tolist()[0]) == (7, 0, False)
    assert one.nearest(queries_of(mirrored, one), never).distances[0, 0] > 1
    sheet = copying_of(MemorizationTest(both, None, rows=3), mirrored, samples=20).sheet.reshape(3, 4, 3, 8, 8)
    assert (sheet[:, 0] - sheet[:, 1]).abs().max() < 0.2  # it is shown mirrored


def test_a_second_search_needs_no_second_pass(training, images, search, monkeypatch):
    kept, streamed = search(training), search(training, memory=1000)
    queries = queries_of(images[TRAINING : TRAINING + 10], kept)
    first = [each.nearest(queries, never) for each in (kept, streamed)]
    again = streamed.nearest(queries, never)
    monkeypatch.setattr(nearest_module, "StoredImages", None)
    second = kept.nearest(queries, never)
    for other in (first[1], again, second):
        assert all((a == b).all() for a, b in zip(first[0], other, strict=True))
    with pytest.raises(TypeError):
        streamed.nearest(queries, never)


@pytest.mark.parametrize("given", [True, False], ids=["held out", "the others"])
def test_copies_are_caught_and_new_images_are_not(given, training, held_out, images, search):
    test = MemorizationTest(search(training), held_out if given else None)
    new = noise(300, seed=2)
    copies = copying_of(test, images[:TRAINING]).copying
    assert copies.copied == copies.closer == 1 and copies.copying_z > 15
    honest = copying_of(test, new).copying
    assert honest.copied < 0.04 and abs(honest.copying_z) < 3 and abs(honest.closer - 0.5) < 0.1
    half = copying_of(test, np.concatenate([images[:TRAINING], new])).copying
    assert 0.4 < half.copied < 0.6 and 0.65 < half.closer < 0.85 and half.copying_z > 5
    few = copying_of(test, np.concatenate([images[:10], new[:90]])).copying
    assert few.copying_z < 5 and 0.04 < few.copied < 0.18  # only `copied` shows it
    assert copies.bound == honest.bound == half.bound  # the held-out images are the same


def test_a_sheet_and_a_card_show_which_images_are_copies(training, held_out, images, search):
    in_order = stored(training)
    test = MemorizationTest(search(training), held_out, rows=5)
    found = copying_of(test, in_order[50:60], samples=30)
    assert set(found.nearest.ids[:, 0]) <= set(range(50, 60)) and (np.diff(found.nearest.distances[:, 0]) >= 0).all()
    rows = found.sheet.reshape(5, 4, 3, 8, 8)
    for row, id in zip(rows, found.nearest.ids, strict=False):
        real = torch.from_numpy(in_order[id]).permute(0, 3, 1, 2) / 127.5 - 1
        torch.testing.assert_close(row[1:], real)
        assert 0 < (row[0] - row[1]).abs().max() < 0.2
    assert sheet_picture(found, []).shape == (5 * 10 + 2, 4 * 10 + 2, 3)
    card = make_card(found, test.search, {}, address="training", seed=0, start=0)
    assert card.counts == {"generated": 30, "training": TRAINING, "held_out": 300}
    first = card.images[0]
    assert first["image"] == found.numbers[0] and first["distance"] == found.nearest.distances[0, 0]
    for row, ids in zip(card.images, found.nearest.ids.tolist(), strict=True):
        assert [each["id"] for each in row["nearest"]] == ids
        # keys are the numbers of images before they were shuffled
        assert all((images[int(each["key"])] == in_order[each["id"]]).all() for each in row["nearest"])
    assert "copied 100.0% (1.0% expected), closer 1.000" in card.line()


def test_duplicates_in_the_training_set_do_not_hide_copies(images, search, tmp_path):
    """Each image twice: held out, its twin does not count, nor with flips the mirror image of its twin."""
    table = images[:100]
    for name, twins, flip in (("equal", table, False), ("mirrored", table[:, :, ::-1], True)):
        folder = make_dataset(tmp_path / name, np.concatenate([table, twins]))
        test = MemorizationTest(search(open_set(folder), flip=flip), None)
        found = copying_of(test, table, samples=50)
        assert found.held_out == {"held_out": "training images against the others", "images": 200}
        assert found.copying.copied == 1 and test.held_out_distances.min() > 5 * found.nearest.distances[:, 0].max()


def test_what_there_is_nothing_to_compare_with(training, held_out, search, tmp_path):
    few = RealImageSet(open_set(make_dataset(tmp_path / "few", noise(19))), "few")
    larger = RealImageSet(open_set(make_dataset(tmp_path / "larger", noise(30, 16))), "larger")
    for other, message in (
        (few, "19 held-out images are too few"),
        (larger, "larger has images 16x16x3, the training set"),
    ):
        with pytest.raises(UsageError, match=f"held_out: {message}"):
            MemorizationTest(search(training), other)
    equal = open_set(make_dataset(tmp_path / "equal", np.repeat(noise(1), 30, axis=0)))
    with pytest.raises(UsageError, match="held_out: 0 training images have others that are not equal to them"):
        copying_of(MemorizationTest(search(equal), None), noise(1))


def test_z_is_that_of_scipy_with_ties():
    random = np.random.default_rng(0)
    generated, held = random.integers(0, 20, 150).astype(float), random.integers(1, 22, 90).astype(float)
    found = compare_distances(generated, held)
    reference = mannwhitneyu(held, generated, use_continuity=False, method="asymptotic")
    assert found.closer == pytest.approx(reference.statistic / (150 * 90))
    assert math.erfc(abs(found.copying_z) / math.sqrt(2)) == pytest.approx(reference.pvalue, rel=1e-9)
    assert found.copying_z > 0 and compare_distances(held, generated).copying_z == pytest.approx(-found.copying_z)
    equal = compare_distances(np.ones(30), np.ones(40))
    assert (equal.copied, equal.closer, equal.copying_z) == (0, 0.5, 0)


@pytest.mark.parametrize("held_out", [20, 98, 500])
def test_how_many_seem_copied_by_chance_is_known(held_out):
    """Of images of the same distribution as the held-out ones."""
    random = np.random.default_rng(0)
    found = [compare_distances(random.random(200), random.random(held_out)) for _ in range(2000)]
    assert np.mean([each.copied for each in found]) == pytest.approx(found[0].copied_expected, rel=0.1)
    assert found[0].copied_expected == pytest.approx({20: 1 / 21, 98: 1 / 99, 500: 5 / 501}[held_out])
    assert abs(np.mean([each.copying_z for each in found])) < 0.1 and 0.9 < np.std([z.copying_z for z in found]) < 1.1
