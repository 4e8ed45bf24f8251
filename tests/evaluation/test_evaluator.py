"""Extractors, the evaluation of a network, and the cached statistics of the real images."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.shardset import LocalStorage, ShardSet, open_shardset
from distgan.data.stream import Reader
from distgan.dataset_tool import make, sources
from distgan.dataset_tool.sources.source import from_arrays
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.evaluation import classifier, classifier_training, features, inception
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.inputs import to_uint8
from distgan.evaluation.scores import METRICS
from distgan.evaluation.settings import Settings
from distgan.files import sha256_file
from helpers import noise, reset_accelerate


def make_digits(folder: Path) -> ShardSet:
    make.make(sources.digits(), folder, make.Options(), 1)
    return open_shardset(LocalStorage(folder), str(folder))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> ShardSet:
    return make_digits(tmp_path_factory.mktemp("digits") / "set")


@pytest.fixture(scope="module")
def cache(digits, tmp_path_factory) -> Path:
    """A cache folder with a classifier of the digits."""
    folder = tmp_path_factory.mktemp("cache")
    network, info = classifier_training.train_classifier(digits, images=10_000)
    assert info.accuracy > 0.9 and 100 < info.held_out < 260
    classifier.save_classifier(network, info, features.default_classifier(digits, folder))
    return folder


@pytest.fixture(scope="module")
def processes() -> Distributed:
    reset_accelerate()
    return Distributed(Config())


@pytest.fixture(scope="module")
def evaluate(processes, digits, cache) -> Callable[..., Evaluator]:
    return lambda log=None, **changes: Evaluator(
        processes, digits, Settings(**({"cache": cache, "samples": 600} | changes)), log=log
    )


class Table(nn.Module):
    """A generator whose images are those of a table, chosen by z."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images.permute(0, 3, 1, 2).float() / 127.5 - 1

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        assert not self.training
        return self.images[(z[:, 0].abs() * 1e6).long() % len(self.images)]


def real(dataset: ShardSet, keep: np.ndarray | slice = slice(None)) -> Table:
    ids = np.arange(len(dataset.columns["label"]))[keep]
    return Table(torch.from_numpy(Reader(dataset).read(ids).images))


def test_real_images_score_like_real_against_real(digits, evaluate):
    card = evaluate(metrics=list(METRICS))(real(digits), z_dim=1)
    found, real_vs_real = card.metrics, card.floor
    assert found["modes"] == real_vs_real["modes"] == 10 and not card.missing
    assert found["kl"] < 0.03 and real_vs_real["kl"] < 0.03 and min(found["recall"], real_vs_real["recall"]) > 0.7
    assert found["fd_classifier"] < 4 * real_vs_real["fd_classifier"] and found.keys() == real_vs_real.keys()
    assert card.counts == {"generated": 600, "reference": 1797, "rows": 600, "floor": 600}
    assert sum(card.histogram) == 600
    for shown in ("modes 10, missing 0", "real against real", "600 generated, 1,797 real", "(accuracy 9", "seed 0"):
        assert shown in card.line()
    assert card.extractor["sha256"][:8] in card.line() and digits.digest[:8] in card.line()
    assert " ".join(json.loads(card.to_json())) == (
        "metrics floor counts extractor data generator seed histogram missing code time seconds repeated"
    )


def test_a_generator_without_some_classes(digits, evaluate):
    labels = digits.columns["label"]
    card = evaluate(metrics=["modes"])(real(digits, np.isin(labels, [0, 1, 4])), z_dim=1)
    assert card.metrics["kl"] == pytest.approx(np.log(10 / 3), abs=0.15)
    assert {"2", "3", "5", "6", "7", "8", "9"} - set(card.missing) <= {"7", "8", "9"}
    assert card.metrics["missing"] == len(card.missing) == 10 - card.metrics["modes"]
    assert "missing classes: " in card.line()


def test_bins_by_class_show_the_classes_that_g_fails_in(digits, evaluate):
    """It makes zeros whatever it is asked for."""
    zeros = real(digits, digits.columns["label"] == 0)
    card = evaluate(by="class", samples=1797)(zeros, z_dim=1, spec=digits.spec)
    distances = [row["metrics"]["fd_classifier"] for row in card.bins]
    assert [row["class"] for row in card.bins] == [str(k) for k in range(10)]
    assert distances[0] < min(distances[1:]) / 10 and "modes" in card.metrics
    assert card.bins[0]["metrics"].keys() == {"fd_classifier", "precision", "recall"}
    with pytest.raises(UsageError, match="metrics: modes tells nothing of the images of one class"):
        evaluate(by="class", metrics=["modes"])


def test_an_unconditional_g_is_sorted_by_the_classifier(digits, evaluate):
    """It makes no 3, few 7s, and pale 8s."""
    labels = digits.columns["label"]
    kept = (labels != 3) & ((labels != 7) | (np.cumsum(labels == 7) <= 30))
    G = real(digits, kept)
    is_eight = torch.from_numpy(np.array(labels[kept] == 8))
    G.images[is_eight] = (G.images[is_eight] + 1) * 0.6 - 1
    card = evaluate(by="class", samples=1797)(G, z_dim=1)
    assert (card.by, card.classes_from) == ("class", "classifier")
    generated = [row["counts"]["generated"] for row in card.bins]
    assert generated == card.histogram and generated[3] < 20 and card.bins[3]["too_few"] == 20
    ratios = [row["metrics"]["fd_classifier"] / row["floor"]["fd_classifier"] for row in card.bins if row["metrics"]]
    assert ratios[7] == max(ratios) > 3 * np.median(ratios), "of the 8, without the 3"
    # a floor of about as many images as are generated: of a quarter of the share where those are few
    assert 32 <= generated[7] < 64 and card.bins[7]["counts"]["floor"] == 45
    assert card.bins[0]["counts"]["floor"] == 89, "half of the real images"
    assert card.line().splitlines()[1] == "generated images by the class that the classifier sees:"


def test_bins_by_class_need_labels_or_a_classifier(evaluate):
    evaluator = evaluate(by="class", extractor="pixels", metrics=["fid"])
    message = "by: the generator is not conditioned on 'class', and pixels does not tell the classes"
    with pytest.raises(UsageError, match=message):
        evaluator(nn.Identity(), z_dim=1)


def test_a_collapse_shows_in_recall(digits, evaluate):
    card = evaluate()(real(digits, slice(8)), z_dim=1)
    assert card.metrics["recall"] < 0.03 and card.floor["recall"] > 0.7
    assert card.metrics["fd_classifier"] > 5 * card.floor["fd_classifier"]


def test_the_seed_keys_the_latents_and_labels(digits, evaluate):
    a, b, c = evaluate(), evaluate(), evaluate(seed=1)
    for evaluator, same in ((b, True), (c, False)):
        for x, y in zip(a.latents(128, 64, 5, digits.spec), evaluator.latents(128, 64, 5, digits.spec), strict=True):
            assert x is not None and y is not None and torch.equal(x, y) == same
    whole = a.latents(0, 192, 5, digits.spec)
    assert torch.equal(whole[0][128:], a.latents(128, 64, 5)[0])
    assert whole[1] is not None and whole[1].unique().tolist() == list(range(10))


def test_statistics_are_computed_once(evaluate, cache, monkeypatch):
    first = evaluate()
    first.prepare()
    monkeypatch.setattr("distgan.evaluation.reference.RealImageStatistics.measure", None)  # a second pass would call it
    second = evaluate()
    second.prepare()
    assert first.real is not None and second.real is not None and first.real.real_vs_real == second.real.real_vs_real
    with pytest.raises(TypeError):
        evaluate(samples=601).prepare()
    key = {"format": 1, "manifest": first.dataset.digest, "extractor": first.extractor.sha256, "images": 1797}
    name = hashlib.sha256(json.dumps(key | {"floor_images": 600}).encode()).hexdigest()
    assert (cache / "statistics" / f"{name}.safetensors").is_file()  # as ever: caches of older versions are used


def test_statistics_of_other_images_are_not_used(digits, evaluate, tmp_path):
    """Nor are corrupt ones: a line says so, and they are computed again."""
    folder, lines = tmp_path / "statistics", []
    shutil.copytree(evaluate().cache / "extractors", tmp_path / "extractors")

    def prepare(samples: int) -> None:
        evaluate(cache=tmp_path, samples=samples, reference_images=200, log=lines.append).prepare()

    prepare(100)
    prepare(90)
    one, two = folder.glob("*.safetensors")
    shutil.copy(one, two)
    prepare(100)
    prepare(90)
    assert len(lines) == 1 and "are not used: they are of another dataset or extractor" in lines[0]
    data = bytearray(one.read_bytes())
    data[-100] ^= 1
    one.write_bytes(data)
    prepare(100)
    prepare(90)
    assert len(lines) == 2 and "the sha256 of the tensors does not match" in lines[1]


def test_fewer_reference_images_leave_real_against_real_its_size(evaluate):
    """The real-vs-real KL depends on the number of images: it is that of the generated ones."""
    evaluator = evaluate(reference_images=150)
    evaluator.prepare()
    assert evaluator.real is not None and evaluator.real.stand_ins == 600
    assert evaluator.real.reference.statistics.n == len(evaluator.real.reference.statistics.rows) == 150


def test_a_reference_of_so_many_images_overlaps_the_stand_ins_where_it_must(digits, evaluate):
    """With 1,797 images and 600 stand-ins, 1,500 take 303 of these; all of them are all images."""
    references = []
    for limit in (1500, 1797, None):
        evaluator = evaluate(reference_images=limit)
        evaluator.prepare()
        assert evaluator.real is not None and evaluator.real.stand_ins == 600
        references.append(evaluator.real.reference.statistics)
    assert [found.n for found in references] == [1500, 1797, 1797]
    torch.testing.assert_close(references[1].outer, references[2].outer)
    torch.testing.assert_close(references[0].total / 1500, references[2].total / 1797, rtol=0.1, atol=0.1)


def test_a_classifier_is_written_to_the_same_bytes_each_time(digits, cache, tmp_path):
    """The sha256 of the file names it on cards and in the cache."""
    network, info = classifier.load_classifier(features.default_classifier(digits, cache))
    for i in range(8):
        classifier.save_classifier(network, info, tmp_path / f"{i}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_rounding():
    assert to_uint8(torch.tensor([-1.2, -1, -1 + 0.9 / 127.5, 0, 1, 3])).tolist() == [0, 0, 1, 128, 255, 255]
    levels = torch.arange(256)
    assert torch.equal(to_uint8(levels.float() / 127.5 - 1), levels.to(torch.uint8))


def test_training_a_classifier_is_deterministic(digits):
    one, two, other = (classifier_training.train_classifier(digits, images=800, seed=seed)[0] for seed in (3, 3, 4))
    hashes = [classifier.hash_tensors(network.state_dict()) for network in (one, two, other)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_copies_of_an_image_are_held_out_together():
    images = torch.from_numpy(noise(400, 8))
    out = classifier_training.held_out(images)
    assert torch.equal(classifier_training.held_out(images.flip(0)), out.flip(0)) and 20 < out.sum() < 60


@pytest.fixture(scope="module")
def stacked(digits, tmp_path_factory) -> ShardSet:
    """Three digits as the channels of an image, 1,000 classes, as `shards make stacked-mnist` writes them."""
    ids = np.random.default_rng(0).integers(1797, size=(600, 3))
    images, labels, _ = Reader(digits).read(np.arange(1797)), digits.columns["label"], None
    stack = np.stack([images.images[ids[:, i], :, :, 0] for i in range(3)], axis=-1)
    names = [f"{i:03d}" for i in range(1000)]
    folder = tmp_path_factory.mktemp("stacked") / "set"
    source = from_arrays("stacked", stack, labels[ids].astype(np.int64) @ [100, 10, 1], names)
    make.make(source, folder, make.Options(), 1)
    return open_shardset(LocalStorage(folder), str(folder))


def test_stacked_digits_are_classified_channel_by_channel(processes, digits, stacked, cache):
    """By a classifier of single digits; KL is to the uniform distribution."""
    file = features.default_classifier(digits, cache)
    evaluator = Evaluator(processes, stacked, Settings(extractor=str(file), samples=500, cache=cache))
    card = evaluator(real(stacked), z_dim=1)
    assert card.data["kl_to"] == "uniform" and len(card.histogram) == 1000
    distinct = len(np.unique(stacked.columns["label"]))
    assert 0.6 * distinct < card.metrics["modes"] < distinct and card.metrics["kl"] > 0.5
    labels = torch.from_numpy(stacked.columns["label"].astype(np.int64))
    logits = evaluator.extractor.network(to_uint8(real(stacked).images))[1]
    found = (logits.argmax(2) * torch.tensor([100, 10, 1])).sum(1)
    assert (found == labels).double().mean() > 0.8
    units = classifier_training.load_units(stacked, 0)
    assert units.images.shape == (1800, 32, 32, 1) and units.classes == list("0123456789")
    images, targets = units.batch(torch.arange(1800), torch.device("cpu"))
    assert (evaluator.extractor.network(images)[1][:, 0].argmax(1) == targets).double().mean() > 0.9


def test_efficientnet_has_no_classes_and_a_checked_hash(processes, digits, monkeypatch, tmp_path):
    evaluator = Evaluator(processes, digits, Settings(extractor="efficientnet-lite0", cache=tmp_path))
    found, logits = features.extract(evaluator.extractor, torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    assert found.shape == (2, 1280) and logits is None and found.std() > 0.01
    assert evaluator.metrics == ["fid", "precision_recall"]
    for metric, message in (("is", "needs classes"), ("modes", "needs a classifier of the dataset's own labels")):
        with pytest.raises(UsageError, match=f"metrics: {metric} {message}"):
            Evaluator(processes, digits, Settings(extractor="efficientnet-lite0", metrics=[metric], cache=tmp_path))
    monkeypatch.setattr(features, "EFFICIENTNET_SHA256", "0" * 64)
    with pytest.raises(UsageError, match="the sha256 of .* is 579344248a93..., not 000000000000"):
        Evaluator(processes, digits, Settings(extractor="efficientnet-lite0", cache=tmp_path))


def test_inception_is_a_local_file_with_the_right_hash(processes, digits, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with pytest.raises(UsageError, match="the weights of inception are missing; run `distgan evaluate --prefetch`"):
        Evaluator(processes, digits, Settings(extractor="inception", cache=tmp_path))
    (tmp_path / "extractors").mkdir()
    (tmp_path / "extractors" / inception.FILE).write_bytes(b"an error page")
    with pytest.raises(UsageError, match="remove it and get it again"):
        Evaluator(processes, digits, Settings(extractor="inception", cache=tmp_path))


def test_prefetch_keeps_only_the_right_file(tmp_path, monkeypatch):
    (tmp_path / "served").write_bytes(b"weights")
    monkeypatch.setattr(inception, "URL", (tmp_path / "served").as_uri())
    with pytest.raises(UsageError, match="prefetch: file:.*invalid hash value.*or copy the file to"):
        inception.prefetch_inception(tmp_path)
    assert not list((tmp_path / "extractors").iterdir())
    monkeypatch.setattr(inception, "SHA256", sha256_file(tmp_path / "served"))
    assert inception.prefetch_inception(tmp_path).read_bytes() == b"weights"
    (tmp_path / "served").unlink()
    inception.prefetch_inception(tmp_path)  # without network


def test_a_corrupt_classifier(digits, cache, processes, tmp_path):
    file = features.default_classifier(digits, cache)
    data = bytearray(file.read_bytes())
    data[-50] ^= 1
    (tmp_path / "flipped.safetensors").write_bytes(data)
    (tmp_path / "cut.safetensors").write_bytes(data[:-50])
    for name, message in (
        ("flipped.safetensors", "the sha256 of the weights in .* does not match; train it again"),
        ("cut.safetensors", "is not a classifier of distgan"),
        ("none.safetensors", "no such file"),
        ("resnet", "unknown extractor 'resnet'; choose from classifier, dinov2, efficientnet-lite0, inception"),
    ):
        with pytest.raises(UsageError, match=f"extractor: .*{message}"):
            Evaluator(
                processes, digits, Settings(extractor=name if name == "resnet" else str(tmp_path / name), cache=cache)
            )
