"""The latents of images: `distgan project`, its optimization and its distances."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import distgan
import distgan.commands.project
import distgan.commands.sample
import distgan.commands.shards
from distgan.evaluation.classifier import Classifier, ClassifierInfo, save_classifier
from distgan.frozen.vae import load_vae
from distgan.generators.distance import open_distance
from distgan.generators.pretrained import PretrainedGenerator
from distgan.generators.projection import (
    Plan,
    Space,
    image_keys,
    noise_at,
    project,
)
from distgan.generators.projection_parts import SHELL, learning_rate, statistics_of_w, to_shell
from distgan.generators.targets import read_targets
from distgan.pixels import normalize
from distgan.samples import Condition, LatentSpec, SampleSpec
from helpers import change_weights, make_arrays, make_vae, noise, save_gat, save_generator, save_stylegan2

CLASSES = ["a", "b", "c"]
SPEC = SampleSpec(16, 16, 3, 3)


@pytest.fixture(scope="module")
def stylegan2(tmp_path_factory) -> Path:
    return save_stylegan2(tmp_path_factory.mktemp("stylegan2") / "G.safetensors", SPEC, CLASSES)


@pytest.fixture(scope="module")
def gat(tmp_path_factory) -> Path:
    return save_gat(tmp_path_factory.mktemp("gat") / "G.safetensors", SPEC, CLASSES)


@pytest.fixture(scope="module")
def mlp(tmp_path_factory) -> Path:
    """Without classes, and without a mapping network."""
    return save_generator(tmp_path_factory.mktemp("mlp") / "G.safetensors", SampleSpec(12, 12, 1))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """Of the images of SPEC, untrained."""
    path = tmp_path_factory.mktemp("classifier") / "C.safetensors"
    torch.manual_seed(0)
    info = ClassifierInfo(SPEC.unconditional(), CLASSES, "0" * 64, 0.3, 100, 100, 0)
    save_classifier(Classifier(SPEC.unconditional(), 3), info, path)
    return path


def load(path: Path) -> PretrainedGenerator:
    """G with constant noise, as projected."""
    G = distgan.load(path)
    if G.noise is not None:
        G.set_noise("const")
    return G


def targets(G: PretrainedGenerator, count: int = 3) -> tuple[Tensor, Tensor | None]:
    """Images that G made, and their labels."""
    labels = torch.arange(count) % 3 if G.classes else None
    return G(G.draw(count, seed=5), labels), labels


def run(*words: object) -> int:
    return distgan.commands.project.main([str(word) for word in words])


# ---- the search


@pytest.mark.parametrize(
    ("name", "space", "factor"),
    [("stylegan2", "z", 50), ("stylegan2", "w", 200), ("stylegan2", "w+", 50), ("gat", "w", 200), ("mlp", "z", 50)],
)
def test_an_image_of_g_is_found(request, name, space: Space, factor):
    """The distance falls by the factor, of every image."""
    G = load(request.getfixturevalue(name))
    images, labels = targets(G)
    found = project(G, images, labels, open_distance("pixels", G.spec, "cpu"), Plan(space, 150, 0.1, 0))
    assert found.distances.shape == (3, 151)
    assert (found.distances[:, 0] > factor * found.distances[:, -1]).all(), found.distances[:, [0, -1]]
    again = G(found.latents, labels) if space == "z" else G.synthesis(found.latents)
    assert (again - images).abs().mean() < 0.05
    shapes = {"z": (3, G.z_dim), "w": (3, 32 if name == "gat" else 16), "w+": (3, 6, 16)}
    assert found.latents.shape == shapes[space]


@pytest.mark.slow  # diffusers takes seconds to import
def test_a_generator_of_latents(tmp_path):
    """The distance is of the decoded images, whose gradient passes the decoder."""
    vae = load_vae(make_vae(tmp_path / "vae"))
    latents = LatentSpec(vae.sha256, vae.scale, vae.shift, 16, 16, 3)
    file = save_generator(tmp_path / "G.safetensors", SampleSpec(8, 8, 4, latents=latents))
    G = distgan.load(file, vae=tmp_path / "vae")
    images, _ = targets(G, 2)
    assert images.shape == (2, 3, 16, 16)
    found = project(G, images, None, open_distance("pixels", G.spec, "cpu"), Plan("z", 100, 0.1, 0))
    assert (found.distances[:, 0] > 20 * found.distances[:, -1]).all(), found.distances[:, [0, -1]]


@pytest.mark.parametrize("extractor", ["classifier", "efficientnet-lite0"])
def test_features_measure_the_distance(stylegan2, classifier, extractor):
    G = load(stylegan2)
    images, labels = targets(G, 2)
    name = str(classifier) if extractor == "classifier" else extractor
    found = project(G, images, labels, open_distance(name, G.spec, "cpu"), Plan("w", 25, 0.2, 0))
    assert (found.distances[:, 0] > 5 * found.distances[:, -1]).all(), found.distances[:, [0, -1]]


@pytest.mark.parametrize("space", ["z", "w", "w+"])
def test_the_same_seed_gives_the_same_result(stylegan2, space: Space):
    """Bit for bit; up to rounding alone as in a batch; and another for another seed."""
    G = load(stylegan2)
    images, labels = targets(G)
    assert labels is not None
    distance = open_distance("pixels", G.spec, "cpu")
    plan = Plan(space, 12, 0.1, 3, (0, 5, 12))
    first, second = (project(G, images, labels, distance, plan, restarts=2) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(first.path[-1], first.latents) and first.path.shape == (3, *first.latents.shape)
    alone = project(G, images[1:2], labels[1:2], distance, plan, first=1, restarts=2)
    torch.testing.assert_close(alone.latents, first.latents[1:2], rtol=1e-3, atol=1e-3)
    other = project(G, images, labels, distance, plan._replace(seed=4), restarts=2)
    assert not torch.allclose(other.latents, first.latents, atol=1e-2)


def test_the_best_restart_is_kept(stylegan2):
    """For each image by itself."""
    G = load(stylegan2)
    images, labels = targets(G, 8)
    distance = open_distance("pixels", G.spec, "cpu")
    plan = Plan("z", 8, 0.1, 0)
    ends = [project(G, images, labels, distance, plan, restarts=n).distances[:, -1] for n in (1, 2, 3)]
    assert (ends[1] <= ends[0]).all() and (ends[2] <= ends[1]).all()
    assert 0 < (ends[2] < ends[0]).sum() < 8 or (ends[2] < ends[0]).all()
    best = project(G, images, labels, distance, plan, restarts=3)
    final = distance.between(distance.features(G(best.latents, labels)), distance.features(images))
    torch.testing.assert_close(final, best.distances[:, -1])


def test_w_starts_at_its_mean_for_the_label(stylegan2):
    G = load(stylegan2)
    labels = torch.tensor([2, 0, 2])
    mean, deviation = statistics_of_w(G, labels, 3)
    z = torch.randn(20_000, G.z_dim)
    for row, label in enumerate(labels):
        w = G.mapping(z, label.expand(len(z)))
        assert (w.mean(0) - mean[row]).abs().max() < 0.05 * w.std()
        torch.testing.assert_close(deviation[row], (w - w.mean(0)).square().mean().sqrt(), rtol=0.03, atol=0)
    assert not torch.allclose(mean[0], mean[1], atol=0.05)


def test_the_schedules_are_those_of_the_paper():
    """Karras et al. 2020, appendix D, of 1,000 steps."""
    rates = [learning_rate(step, 1000) for step in range(1000)]
    assert rates[24] == 0.5 and rates[49] == 1 and set(rates[49:750]) == {1.0}
    assert rates[875] == pytest.approx(0.5) and rates[999] < 1e-4
    assert all(0 < learning_rate(step, steps) <= 1 for steps in (1, 2, 7) for step in range(steps))
    keys = image_keys(0, (0, 0), 4)
    like = torch.zeros(4, 9, 64)
    for step, left in ((0, 1), (375, 0.5), (600, 0.2)):
        drawn = noise_at(step, Plan("w+", 1000, 0.1, 0), keys, like)
        assert isinstance(drawn, Tensor)
        assert drawn.std().item() == pytest.approx(0.05 * math.sqrt(64) * left**2, rel=0.1)
    assert noise_at(750, Plan("w", 1000, 0.1, 0), keys, like) == 0 == noise_at(0, Plan("z", 1000, 0.1, 0), keys, like)


def test_z_stays_where_gaussian_vectors_are():
    for width in (4, 64, 512):
        center = torch.randn(2000, width)
        norms = center.norm(dim=1)
        moved = torch.zeros_like(center)
        to_shell(center, moved)
        inside = moved.abs().amax(1) < 1e-5
        assert 0.93 < inside.float().mean() < 0.97
        limits = math.sqrt(width - 0.5) - SHELL, math.sqrt(width - 0.5) + SHELL
        now = (center + moved).norm(dim=1)
        assert now.min() > limits[0] - 1e-3 and now.max() < limits[1] + 1e-3
        assert (norms[~inside] - norms.mean()).abs().min() > SHELL - 0.1
        torch.testing.assert_close(torch.cosine_similarity(center + moved, center), torch.ones(2000))


def test_nan_is_reported(stylegan2, tmp_path, capsys):
    broken = tmp_path / "G.safetensors"
    weights = load_file(stylegan2)
    save_file(weights, broken, metadata=metadata_of(stylegan2))
    change_weights(broken, lambda name, each: each * math.nan if name == "const" else each)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", broken, "--label", "a", "--steps", 3, "--out", tmp_path / "x.npz") == 1
    error = capsys.readouterr().err
    assert "distgan: the distance is NaN or Inf after 0 steps; a lower --lr may help" in error


def metadata_of(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.metadata()


# ---- distances


def test_a_distance_of_features_is_equation_1(classifier):
    """The mean over places of 2 - 2 cos of the features, summed over layers."""
    distance = open_distance(str(classifier), SPEC, "cpu")
    a, b = torch.rand(2, 2, 3, 16, 16) * 2 - 1
    network = Classifier(SPEC.unconditional(), 3)
    network.load_state_dict(load_file(classifier))
    network.eval()
    expected = torch.zeros(2)
    for x, y in zip(network.maps(a), network.maps(b), strict=True):
        for i in range(2):
            places = [(p, q) for p in range(x.shape[2]) for q in range(x.shape[3])]
            each = [2 - 2 * torch.cosine_similarity(x[i, :, p, q], y[i, :, p, q], dim=0) for p, q in places]
            expected[i] += torch.stack(each).mean()
    torch.testing.assert_close(distance.between(distance.features(a), distance.features(b)), expected)
    assert len(network.maps(a)) == 2


def test_the_maps_of_efficientnet_lead_to_its_features():
    from distgan.evaluation.features import load_efficientnet

    network = load_efficientnet().eval()
    images = torch.rand(1, 3, 16, 16) * 255
    maps = network.maps(images)
    assert [each.shape[2] for each in maps] == [112, 56, 28, 14, 7]
    inner = network.network
    last = inner._swish(inner._bn1(inner._conv_head(maps[-1])))
    torch.testing.assert_close(last.mean((2, 3)), network(images)[0])


def test_the_distance_of_pixels_is_their_mean_squared_error():
    distance = open_distance("pixels", SampleSpec(32, 16, 2), "cpu")
    a, b = torch.rand(2, 3, 2, 32, 16)
    expected = (a - b).square().mean((1, 2, 3))
    torch.testing.assert_close(distance.between(distance.features(a), distance.features(b)), expected)


# ---- images


def test_images_are_converted_as_by_shards_make(mlp, tmp_path):
    """Of another size, mode and number of channels; and the notes say what was done."""
    picture = noise(1, 40, 4)[0][:30]
    Image.fromarray(picture, "RGBA").save(tmp_path / "a.png")
    Image.fromarray(noise(1, 12, 3)[0]).save(tmp_path / "b.webp", lossless=True)
    for fit in ("crop", "stretch", "pad"):
        folder = tmp_path / fit
        command = [
            "make",
            tmp_path,
            folder,
            "--size",
            12,
            "--channels",
            1,
            "--fit",
            fit,
            "--jobs",
            1,
            "--labels",
            "none",
        ]
        assert distgan.commands.shards.main([str(word) for word in command]) == 0
        G = load(mlp)
        found = read_targets([str(tmp_path / "a.png"), str(tmp_path / "b.webp")], G, fit, 16)
        dataset = distgan.commands.shards.open_dataset(str(folder), None)
        expected = read_targets([str(folder)], G, "crop", 16)
        order = np.argsort(dataset.sources() or [])
        assert torch.equal(found.images, expected.images[order])
        assert "1 of 2 images: transparent" in found.notes and "1 of 2 images: resized" in found.notes
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def test_images_of_other_types(tmp_path, capsys):
    """Arrays of the generator's own type are taken as they are; a picture is refused where it has other channels."""
    spec = SampleSpec(8, 10, 5, dtype="float16", range=(-2.0, 6.0))
    file = save_generator(tmp_path / "G.safetensors", spec)
    image = np.random.default_rng(0).uniform(-2, 6, (8, 10, 5)).astype(np.float16)
    np.save(tmp_path / "a.npy", image)
    found = read_targets([str(tmp_path / "a.npy")], load(file), "crop", 1)
    assert torch.equal(found.images, normalize(torch.from_numpy(image[None]), spec)) and not found.notes
    Image.new("RGB", (10, 8)).save(tmp_path / "a.png")
    assert run(tmp_path / "a.png", file) == 2
    expected = "a picture has 1, 3 or 4 channels, not 5; the generator makes 8x10x5 float16 in [-2, 6]"
    assert capsys.readouterr().err == f"distgan: {tmp_path / 'a.png'}: {expected}\n"


def test_a_dataset_brings_its_labels(tmp_path):
    """By the names of its classes, in whatever order G has them, and its conditions."""
    conditions = (Condition("energy", "number", 5.0, 2.0, 1.0, 9.0),)
    file = save_generator(tmp_path / "G.safetensors", SampleSpec(8, 8, 3, 2, conditions), ["class1", "class0"])
    values = {"energy": np.arange(1.0, 5.0)}
    make_arrays(tmp_path / "set", noise(4), labels=np.array([0, 1, 1, 0]), numbers=values)
    out = tmp_path / "out.npz"
    assert run(tmp_path / "set", file, "--steps", 2, "--count", 3, "--out", out) == 0
    found = np.load(out)
    dataset = distgan.commands.shards.open_dataset(str(tmp_path / "set"), None)
    assert found["labels"].tolist() == [1 - label for label in dataset.columns["label"][:3].tolist()]
    assert sorted(found["energy"].tolist())[0] >= 1 and len(found["energy"]) == 3
    assert run(tmp_path / "set", file, "--steps", 2, "--condition", "energy=3", "--label", "class0", "--out", out) == 0
    assert np.load(out)["labels"].tolist() == [1] * 4 and np.load(out)["energy"].tolist() == [3.0] * 4


# ---- the command


@pytest.mark.parametrize(("name", "space"), [("stylegan2", "z"), ("stylegan2", "w"), ("stylegan2", "w+"), ("gat", "z")])
def test_a_result_is_sampled_again(request, tmp_path, capsys, name, space):
    """`sample --latents` of the .npz gives the images of the projection, bit for bit."""
    file = request.getfixturevalue(name)
    out = tmp_path / "found"
    assert distgan.commands.sample.main([str(file), "--seeds", "1-3", "--out", str(tmp_path / "images")]) == 0
    assert (
        run(tmp_path / "images", file, "--label", "b", "--space", space, "--steps", 6, "--batch", 2, "--out", out) == 0
    )
    assert "seed1.png: distance " in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"00000{i}.png" for i in range(3)),
        "path.png",
        "result.npz",
    ]
    assert (
        distgan.commands.sample.main(
            [str(file), "--latents", str(out / "result.npz"), "--out", str(tmp_path / "b.npz")]
        )
        == 0
    )
    first, again = np.load(out / "result.npz"), np.load(tmp_path / "b.npz")
    np.testing.assert_array_equal(first["images"], again["images"])
    assert name == "gat" or str(first["noise"]) == "const"
    assert first["distances"].shape == (3, 7) and first["labels"].tolist() == [1, 1, 1]
    with Image.open(out / "000001.png") as image:
        np.testing.assert_array_equal(np.asarray(image), first["images"][1])
    with Image.open(out / "path.png") as image:
        sheet = np.asarray(image)
    columns = sheet.shape[1] // 18
    assert sheet.shape == (3 * 18 + 2, columns * 18 + 2, 3)
    cells = [sheet[20:36, 2 + 18 * x :][:, :16] for x in (0, columns - 1)]
    with Image.open(tmp_path / "images" / "seed2.png") as image:
        np.testing.assert_array_equal(cells[0], np.asarray(image))
    np.testing.assert_array_equal(cells[1], first["images"][1])


@pytest.mark.parametrize(("name", "size"), [("a.png", None), ("a.gif", (38, 20)), ("a.mp4", None), ("a.npz", None)])
def test_files_of_a_projection(stylegan2, tmp_path, name, size):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    out = tmp_path / name
    assert run(tmp_path / "red.png", stylegan2, "--label", "a", "--steps", 4, "--out", out) == 0
    if size is not None:
        with Image.open(out) as image:
            assert image.size == size
            target = np.asarray(image.convert("RGB"))[2:18, 2:18].astype(int)
        assert np.abs(target - np.array([255, 0, 0])).max() < 8
    assert out.stat().st_size > 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["GAT"], "give an image, a folder or a dataset, and then a run or a .safetensors file"),
        (["IMAGE", "GAT", "--label", "a", "--space", "w+"], "space: GAT has no w+; choose from z, w"),
        (["IMAGE", "MLP", "--space", "w"], "space: MLP has no w; choose from z"),
        (["IMAGE", "MLP", "--space", "v"], "space: expected one of 'z', 'w', 'w+', got v"),
        (["IMAGE", "GAT"], "label: GAT needs the class of the images; choose from a, b, c (or 0 to 2)"),
        (["IMAGE", "MLP", "--label", "a"], "label: MLP was trained without labels"),
        (["IMAGE", "MLP", "--extractor", "vgg"], "extractor: 'vgg' measures no distance of images; choose from pixels"),
        (
            ["IMAGE", "MLP", "--extractor", "CLASSIFIER"],
            "extractor: CLASSIFIER takes images 16x16x3, and the generator",
        ),
        (["nowhere.png", "MLP"], "nowhere.png: there is no such file; give images, folders or datasets"),
        (["MLP", "MLP"], "MLP: cannot identify image file"),
        (["IMAGE", "MLP", "--out", "x.bmp"], "out: unknown format .bmp; choose from .npz, .png"),
        (["IMAGE", "MLP", "--lr", "0"], "lr: expected a finite number above 0, got 0"),
    ],
)
def test_refusals(gat, mlp, classifier, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    for name, path in (("GAT", gat), ("MLP", mlp), ("CLASSIFIER", classifier), ("IMAGE", "a.png")):
        words = [str(path) if word == name else word for word in words]
        message = message.replace(name, str(path))
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distgan: {message}"), error
    assert error.count("\n") == 1 and [path.name for path in tmp_path.iterdir()] == ["a.png"]
