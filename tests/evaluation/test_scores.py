"""Metrics on features: equal to torch-fidelity's own pipeline, to the papers' formulae, and low for what is bad."""

import numpy as np
import pytest
import torch
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from distgan.config.keys import Config
from distgan.data.shardset import LocalStorage, open_shardset
from distgan.distributed.processes import Distributed
from distgan.evaluation import features, inception
from distgan.evaluation.scores import NEAREST_DC, Reference, class_histogram, compute
from distgan.evaluation.statistics import ROWS, Accumulator, ExactSum, Statistics
from distgan.files import sha256_file
from helpers import reset_accelerate, save_inception

CLASSES = 5


class Projection(FeatureExtractorBase):
    """A feature network of torch-fidelity's interface: fixed random projections of the pixels."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.weight = torch.randn(48, 12 + CLASSES, generator=torch.Generator().manual_seed(0)) / 400

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        out = input.flatten(1).float() @ self.weight
        found = {"features": out[:, :12].relu(), "logits": 4 * out[:, 12:]}
        return tuple(found[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "features"

    @staticmethod
    def can_be_compiled():
        return False


class Images(Dataset):
    """A dataset of torch-fidelity's interface: uint8 [C, S, S] each."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.fixture(scope="module")
def processes() -> Distributed:
    reset_accelerate()
    return Distributed(Config())


def pixels(count: int, seed: int, low: int = 0) -> Tensor:
    return torch.randint(low, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def statistics(processes: Distributed, rows: Tensor, logits: Tensor | None = None, chunk: int = 96) -> Statistics:
    """Added up in chunks, the last first."""
    accumulator = Accumulator(rows.shape[1])
    for start in reversed(range(0, len(rows), chunk)):
        part = slice(start, start + chunk)
        positions = torch.arange(len(rows))[part]
        accumulator.add(positions, rows[part], None if logits is None else logits[part])
    return accumulator.reduce(processes)


def test_fid_kid_is_precision_and_recall_are_those_of_torch_fidelity(processes):
    """Its own loop over the images, against our sums."""
    torch_fidelity.register_feature_extractor("projection", Projection)
    fake, real = pixels(1300, seed=1, low=60), pixels(1500, seed=2)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(fake),
        input2=Images(real),
        feature_extractor="projection",
        **dict.fromkeys(("fid", "kid", "isc", "prc"), True),
        cuda=False,
        save_cpu_ram=True,  # no worker processes
        cache=False,
        verbose=False,
    )
    network = Projection("projection", ["features", "logits"])
    generated, real_features = network(fake), network(real)[0]
    reference = Reference(statistics(processes, real_features), torch.empty(0))
    ours = compute(
        ["fid", "kid", "is", "precision_recall"],
        statistics(processes, generated[0], generated[1][:, None]),
        reference,
        "inception",
    )
    expected = {
        "fid": theirs["frechet_inception_distance"],
        "kid": theirs["kernel_inception_distance_mean"],
        "kid_std": theirs["kernel_inception_distance_std"],
        "is": theirs["inception_score_mean"],
        "is_std": theirs["inception_score_std"],
        "precision": theirs["precision"],
        "recall": theirs["recall"],
    }
    assert ours == pytest.approx(expected, rel=1e-3)
    assert ours["fid"] == pytest.approx(expected["fid"], rel=1e-6) and 0.05 < ours["recall"] < 0.95


def test_only_inception_gives_a_fid(processes):
    stats = statistics(processes, torch.randn(300, 4), torch.randn(300, 1, CLASSES))
    values = compute(["fid", "kid", "is"], stats, Reference(stats, torch.empty(0)), "classifier")
    assert list(values) == ["fd_classifier", "kd_classifier", "kd_std_classifier", "is_classifier", "is_std_classifier"]
    assert values["fd_classifier"] == pytest.approx(0, abs=1e-6)


def test_density_and_coverage_by_their_definition(processes):
    """Equations 4 and 5 of Naeem et al. 2020, in float64, one pair of images at a time."""
    real, fake = torch.randn(70, 3), 0.7 * torch.randn(90, 3) + 0.2
    x, y = real.double().numpy(), fake.double().numpy()
    radii = np.sort(np.linalg.norm(x[:, None] - x[None], axis=2), axis=1)[:, NEAREST_DC]
    inside = np.linalg.norm(x[:, None] - y[None], axis=2) < radii[:, None]
    values = compute(
        ["density_coverage"], statistics(processes, fake), Reference(statistics(processes, real), torch.empty(0)), "x"
    )
    assert values["density"] == pytest.approx(inside.sum() / (NEAREST_DC * len(y)), rel=1e-6)
    assert values["coverage"] == pytest.approx(inside.any(axis=1).mean(), rel=1e-6)
    assert 0.1 < values["coverage"] < 1


def test_distances_of_features_far_from_zero(processes):
    """The same images with 1000 added to every feature: float32 products of these have no digits left of a distance."""
    real, fake = torch.randn(600, 16), 1.1 * torch.randn(600, 16)
    names = ["precision_recall", "density_coverage"]
    near, far = (
        compute(
            names, statistics(processes, fake + at), Reference(statistics(processes, real + at), torch.empty(0)), "x"
        )
        for at in (0, 1000)
    )
    assert near == pytest.approx(far, abs=2e-3) and 0.3 < near["precision"] < 1 and 0.3 < near["density"] < 1


def test_a_collapse_shows_in_recall_and_coverage(processes):
    """150 of the real images repeated: precise, and hardly another image is near one of them."""
    real = torch.randn(1500, 8)
    reference = Reference(statistics(processes, real), torch.empty(0))
    names = ["precision_recall", "density_coverage"]
    collapsed = compute(names, statistics(processes, real[:150].repeat(10, 1)), reference, "x")
    healthy = compute(names, statistics(processes, torch.randn(1500, 8)), reference, "x")
    assert collapsed["recall"] < 0.11 and healthy["recall"] > 0.8
    assert collapsed["precision"] == 1
    assert collapsed["coverage"] < 0.6 < 0.9 < healthy["coverage"]


def test_classes_and_their_divergence(processes):
    """Of two units with three classes each: the class is the pair."""
    pairs = [(0, 0)] * 6 + [(0, 2)] * 3 + [(2, 1)]
    logits = torch.stack([torch.nn.functional.one_hot(torch.tensor(pair), 3) * 9.0 for pair in pairs])
    logits[0, 1] = torch.tensor([1.0, 0.5, 0.5])  # the same class, with a probability below 0.9
    stats = statistics(processes, torch.randn(10, 2), logits)
    assert class_histogram(stats).tolist() == [6, 0, 3, 0, 0, 0, 0, 1, 0]
    values = compute(["modes"], stats, Reference(stats, torch.full((9,), 1 / 9, dtype=torch.float64)), "classifier")
    share = np.array([0.6, 0.3, 0.1])
    assert values == pytest.approx(
        {"modes": 3, "missing": 6, "kl": (share * np.log(9 * share)).sum(), "confident": 0.9}, rel=1e-12
    )


def test_sums_do_not_depend_on_their_order():
    """Nor does a distance of features that are 0 in some directions but for rounding."""
    parts = [torch.randn(128, 6).double() @ torch.randn(6, 40).double() for _ in range(50)]
    sums = []
    for order in (parts, parts[::-1], parts[1::2] + parts[::2]):
        exact, plain = ExactSum(40, 40), torch.zeros(40, 40, dtype=torch.float64)
        for part in order:
            exact.add(part.T @ part)
            plain += part.T @ part
        sums.append((exact.high + exact.low, plain))
    assert all(torch.equal(exact, sums[0][0]) for exact, _ in sums)
    assert not torch.equal(sums[0][1], sums[1][1])  # as plain sums do


def test_the_first_rows_are_kept_in_their_order(processes):
    rows = torch.arange(ROWS + 300.0)[:, None]
    stats = statistics(processes, rows, chunk=128)
    assert torch.equal(stats.rows, rows[:ROWS]) and stats.n == ROWS + 300
    assert stats.covariance == pytest.approx(np.cov(rows.double().numpy(), rowvar=False).reshape(1, 1), rel=1e-12)


@pytest.mark.slow
def test_fid_and_is_with_the_inception_network_are_those_of_torch_fidelity(processes, tiny, tmp_path, monkeypatch):
    """With random weights of the right shapes and scale, from a file in the cache."""
    file = save_inception(tmp_path / "extractors" / inception.FILE)
    monkeypatch.setattr(inception, "SHA256", sha256_file(file))
    dataset = open_shardset(LocalStorage(tiny), str(tiny))
    extractor = features.open_extractor("inception", dataset, torch.device("cpu"), tmp_path)
    images = [pixels(24, seed=1), pixels(24, seed=2, low=100)]
    sets = [statistics(processes, *features.extract(extractor, part)) for part in images]
    found = compute(["fid", "is"], sets[0], Reference(sets[1], torch.empty(0)), extractor.name)
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(images[0]),
        input2=Images(images[1]),
        fid=True,
        isc=True,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(file),
        cuda=False,
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    assert found["fid"] > 0.01 and found["is"] > 1.001
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found["is"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
