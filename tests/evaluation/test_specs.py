"""Evaluation of images of any shape and type: what extractors get, pooled pixels, classifiers, and what is refused."""

import json

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.shardset import ShardSet
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.evaluation import classifier_training, features
from distgan.evaluation.classifier import Classifier, ClassifierInfo, load_classifier, save_classifier
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.feature_networks import PixelFeatures
from distgan.evaluation.inputs import chunk_size, from_generator, from_stored, image_sums
from distgan.evaluation.settings import Settings
from distgan.pixels import to_stored
from distgan.samples import SampleSpec
from helpers import make_arrays, noise, reset_accelerate, showers

SPECS = [
    SampleSpec(6, 10, 3),
    SampleSpec(6, 10, 5, range=(10.0, 99.0)),
    SampleSpec(6, 10, 2, dtype="uint16", range=(0.0, 65535.0)),
    SampleSpec(6, 10, 1, dtype="uint16", range=(17.0, 4095.0)),
    SampleSpec(6, 10, 2, dtype="float16", range=(-0.3, 7.0)),
    SampleSpec(6, 10, 2, dtype="float32", range=(-1000.0, 3000.0)),
]


@pytest.fixture(scope="module")
def processes() -> Distributed:
    reset_accelerate()
    return Distributed(Config())


class Row(nn.Module):
    """A generator that makes the images of a table in their order, once each."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images
        self.made = 0

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        self.made += len(z)
        return self.images[self.made - len(z) : self.made]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_generated_images_are_rounded_as_they_would_be_stored(spec):
    images = 1.2 * torch.rand(40, *spec.shape) * 2 - 1.2
    stored = to_stored(images, spec).numpy()
    low, high = spec.range
    scaled = (np.clip(images.numpy(), -1, 1) + 1) / 2 * (high - low) + low
    whole = np.floor(scaled + 0.5) if spec.dtype.startswith("uint") else scaled
    assert stored.dtype == spec.dtype and stored.tobytes() == whole.astype(spec.dtype).transpose(0, 2, 3, 1).tobytes()
    assert torch.equal(from_generator(images, spec), from_stored(torch.from_numpy(stored), spec))
    sums = stored.astype(np.float64).sum((1, 2, 3))
    assert image_sums(torch.from_numpy(stored)).numpy() == pytest.approx(sums, rel=1e-12)


@pytest.mark.parametrize(
    ("shape", "images"), [((256, 256, 3), 128), ((16, 16, 64), 128), ((1024, 1024, 3), 16), ((1024, 1024, 64), 1)]
)
def test_large_images_pass_in_smaller_chunks(shape, images):
    assert chunk_size(SampleSpec(*shape)) == images


@pytest.mark.parametrize(
    ("shape", "cells"),
    [
        ((32, 32, 3), (8, 8)),
        ((5, 100, 1), (5, 8)),
        ((32, 48, 17), (7, 7)),
        ((256, 8, 64), (4, 4)),
        ((2, 9, 64), (2, 8)),
    ],
)
def test_pixels_are_pooled_to_1024_features_at_most(shape, cells):
    network = PixelFeatures(SampleSpec(*shape, dtype="float32", range=(-1.0, 1.0)))
    assert network.cells == cells and network.num_features == shape[2] * cells[0] * cells[1] <= 1024
    assert network(torch.zeros(3, shape[2], *shape[:2]))[0].shape == (3, network.num_features)


def test_pooled_pixels_are_the_means_of_cells():
    images = torch.from_numpy(noise(4, 32, 3))
    found = PixelFeatures(SampleSpec(32, 32, 3))(from_stored(images, SampleSpec(32, 32, 3)))[0]
    cells = images.double().reshape(4, 8, 4, 8, 4, 3).mean((2, 4)) / 127.5 - 1
    assert found.numpy() == pytest.approx(cells.permute(0, 3, 1, 2).flatten(1).numpy(), abs=1e-6)


@pytest.fixture(scope="module")
def bands(tmp_path_factory) -> ShardSet:
    """300 images float16 8x12x5 with values about 10 to 30, in three classes by the level of a band."""
    labels = np.arange(300) % 3
    images = np.random.default_rng(0).normal(20, 2, (300, 8, 12, 5))
    images[..., 3] += 3.0 * labels[:, None, None] - 3
    folder = tmp_path_factory.mktemp("bands") / "set"
    return make_arrays(folder, images.astype(np.float16), labels=labels, range="0,40")


def stored_of(dataset: ShardSet) -> Tensor:
    return classifier_training.load_units(dataset, 0).images


def test_a_shift_of_all_pixels_is_its_square_in_every_feature(processes, bands, tmp_path):
    """The same images, 0.05 brighter in [-1, 1]: the covariances are equal, and the means differ by that."""
    images = from_stored(stored_of(bands), bands.spec)
    evaluator = Evaluator(processes, bands, Settings(extractor="pixels", metrics=["fid"], samples=300, cache=tmp_path))
    same = evaluator(Row(images), z_dim=1)
    shifted = evaluator(Row(images + 0.05), z_dim=1)
    count = 5 * 8 * 8
    assert evaluator.extractor.num_features == count
    assert same.metrics["fd_pixels"] == pytest.approx(0, abs=1e-6)
    assert shifted.metrics["fd_pixels"] == pytest.approx(0.05**2 * count, rel=2e-2)  # rounded to float16
    assert shifted.extractor["resize"] == "average pooling to 8x8 cells" and "fd_pixels" in shifted.line()
    change = 1.0 * 8 * 12 * 5  # the range is 40: 0.05 of it is one stored unit
    sums = shifted.image_sum
    assert sums["generated"]["mean"] - sums["real"]["mean"] == pytest.approx(change, rel=2e-2)
    assert sums["real"]["std"] == pytest.approx(stored_of(bands).double().sum((1, 2, 3)).std().item(), rel=1e-9)


def test_fd_of_pixels_by_the_formula_and_about_its_floor_for_equal_distributions(processes, tmp_path):
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), in NumPy, of images in uint16."""
    random = np.random.default_rng(0)
    stored = random.integers(0, 4096, (400, 8, 8, 1), dtype=np.uint16)
    dataset = make_arrays(tmp_path / "set", stored, range="0,4095")
    evaluator = Evaluator(processes, dataset, Settings(extractor="pixels", metrics=["fid"], cache=tmp_path))
    darker = random.integers(0, 1500, (400, 8, 8, 1), dtype=np.uint16)
    found = evaluator(Row(from_stored(torch.from_numpy(darker), dataset.spec)), z_dim=1).metrics["fd_pixels"]
    a, b = (part.reshape(400, 64) / 2047.5 - 1 for part in (stored, darker))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).real.clip(0)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1]) - 2 * root
    assert found == pytest.approx(expected, rel=1e-5) and expected > 1
    equal = random.integers(0, 4096, (400, 8, 8, 1), dtype=np.uint16)
    card = evaluator(Row(from_stored(torch.from_numpy(equal), dataset.spec)), z_dim=1)
    assert 0.3 < card.metrics["fd_pixels"] / card.floor["fd_pixels"] < 1.5
    assert card.metrics["fd_pixels"] < found / 10


def test_a_classifier_of_floats_in_a_rectangle(processes, bands, tmp_path):
    network, info = classifier_training.train_classifier(bands, images=6000)
    assert info.accuracy > 0.9
    file = tmp_path / "extractors" / f"{bands.digest}.safetensors"
    save_classifier(network, info, file)
    loaded, read = load_classifier(file)
    assert read == info and read.spec == bands.spec.unconditional()
    images = from_stored(stored_of(bands), bands.spec)
    assert torch.equal(loaded(images)[0], network(images)[0])
    card = Evaluator(processes, bands, Settings(samples=300, cache=tmp_path))(Row(images), z_dim=1)
    assert card.metrics["fd_classifier"] < 1e-4 and card.metrics["modes"] == 3
    assert not card.image_sum


def test_a_classifier_takes_the_images_it_was_trained_on(processes, bands, tmp_path):
    """Of another range they would be other images."""
    network, info = classifier_training.train_classifier(bands, images=600)
    save_classifier(network, info, tmp_path / "a.safetensors")
    labels = bands.columns["label"].astype(np.int64)
    other = make_arrays(tmp_path / "set", stored_of(bands).numpy(), labels=labels, range="0,50")
    with pytest.raises(
        UsageError, match=r"takes images 8x12x5 float16 in \[0, 40\], the dataset has 8x12x5 float16 in"
    ):
        Evaluator(processes, other, Settings(extractor=str(tmp_path / "a.safetensors"), cache=tmp_path))


def test_files_of_square_images_of_8_bits_are_as_ever(tmp_path):
    """And what an older version reads; a damaged description is none of a classifier."""
    spec = SampleSpec(16, 16, 3)
    info = ClassifierInfo(spec, ["a", "b"], "0" * 64, accuracy=0.5, held_out=10, images=200, seed=3)
    keys = {"version": 1, "size": 16, "channels": 3, "classes": ["a", "b"], "manifest": "0" * 64, "accuracy": 0.5}
    assert list(info.to_metadata().items()) == [*keys.items(), ("held_out", 10), ("images", 200), ("seed", 3)]
    network = Classifier(spec, 2)
    for name, change in (("version", 3), ("size", "16"), ("channels", None), ("accuracy", "high")):
        broken = info.to_metadata() | {name: change}
        tensors = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        save_classifier(network, info, tmp_path / "a.safetensors")
        with safetensors.safe_open(tmp_path / "a.safetensors", framework="pt") as file:
            metadata = json.loads(file.metadata()["distgan_classifier"])
        metadata["info"] = broken
        text = {"distgan_classifier": json.dumps(metadata)}
        safetensors.torch.save_file(tensors, tmp_path / "b.safetensors", text)
        expected = "is of version 3, this is version 2" if name == "version" else "is not a classifier of distgan"
        with pytest.raises(UsageError, match=expected):
            load_classifier(tmp_path / "b.safetensors")


@pytest.mark.parametrize("shape", [(8, 1024), (37, 9), (9, 9), (64, 200)])
def test_classifiers_of_any_rectangle(shape):
    height, width = shape
    network = Classifier(SampleSpec(height, width, 2, dtype="float32", range=(0.0, 1.0)), 7)
    features, logits = network(torch.zeros(2, 2, *shape))
    assert features.shape == (2, 128) and logits.shape == (2, 7)
    assert network.get_parameter("features.0.weight").shape[1] <= 128 * 16


@pytest.fixture(scope="module")
def calorimeter(tmp_path_factory) -> ShardSet:
    images, numbers = showers(60)
    return make_arrays(tmp_path_factory.mktemp("showers") / "set", images, numbers=numbers, range="0,20")


def test_what_an_extractor_cannot_take_is_refused_with_pixels_as_a_way_out(processes, calorimeter, tmp_path):
    for name in ("inception", "efficientnet-lite0"):
        message = (
            rf"{name} takes 8-bit grey or RGB images, the dataset has 6x10x2 float32.*the extractor pixels takes any"
        )
        with pytest.raises(UsageError, match=message):
            Evaluator(processes, calorimeter, Settings(extractor=name, cache=tmp_path))
    with pytest.raises(UsageError, match="the dataset has no classes.*the extractor pixels needs none"):
        Evaluator(processes, calorimeter, Settings(cache=tmp_path))
    with pytest.raises(UsageError, match="train_extractor: the dataset has no classes.*fd_pixels needs none"):
        classifier_training.train_classifier(calorimeter)
    for metric in ("is", "modes"):
        with pytest.raises(UsageError, match=f"metrics: {metric} needs .* the extractor pixels does not give"):
            Evaluator(processes, calorimeter, Settings(extractor="pixels", metrics=[metric], cache=tmp_path))


def test_efficientnet_resizes_rectangles(processes, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 20, 3), dtype=np.uint8)
    dataset = make_arrays(tmp_path / "set", images)
    evaluator = Evaluator(processes, dataset, Settings(extractor="efficientnet-lite0", cache=tmp_path))
    square = torch.nn.functional.interpolate(
        torch.from_numpy(images[:2]).permute(0, 3, 1, 2).float(), (224, 224), mode="bicubic", antialias=True
    )
    found, expected = (
        features.extract(evaluator.extractor, part)[0]
        for part in (from_stored(torch.from_numpy(images[:2]), dataset.spec), square.clamp(0, 255))
    )
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-4) and found.std() > 0.01
    assert evaluator.extractor.resize == "224 bicubic antialiased"


def test_labels_of_a_test_set_are_those_of_the_training_set(calorimeter, tmp_path):
    """With its mean and std, and its order of the columns; by the index or drawn."""
    images, numbers = showers(50, seed=1)
    numbers = {"electron": numbers["electron"], "energy": 2 * numbers["energy"]}
    other = make_arrays(tmp_path / "set", images, numbers=numbers, range="0,20")
    labels = other.labels(np.arange(50), calorimeter.spec)
    energy, electron = calorimeter.spec.conditions
    raw = other.columns["numbers"]
    assert labels.dtype == np.float32 and energy.std > 20 and (electron.mean, electron.std) == (0, 1)
    assert labels[:, 0] == pytest.approx((raw[:, 1] - energy.mean) / energy.std, rel=1e-6)
    assert (labels[:, 1] == raw[:, 0]).all()
    assert not np.allclose(labels[:, 0], other.labels(np.arange(50))[:, 1])
    drawn = other.draw_labels(np.linspace(0.001, 0.999, 30), calorimeter.spec)
    rows = {tuple(row) for row in labels.tolist()}
    assert {tuple(row) for row in drawn.tolist()} <= rows and len(rows) == 50
