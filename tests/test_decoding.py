"""Runs on latents: grids, samples and metrics are of the images that they are decoded to."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distgan
import distgan.commands.evaluate
import distgan.commands.sample
from distgan import rng
from distgan.data.dataset import open_dataset
from distgan.data.shardset import LocalStorage, ShardSet, open_shardset
from distgan.data.stream import Reader
from distgan.errors import UsageError
from distgan.evaluation.classifier import load_classifier
from distgan.evaluation.originals import real_images_of
from distgan.frozen.vae import keep_vae, load_vae
from distgan.gan.latents import sample_posterior
from distgan.images import grid
from distgan.pixels import to_picture, to_stored
from distgan.samples import SampleSpec
from helpers import launch, make_arrays, make_dataset, make_latents, make_vae, metrics, noise, reset_accelerate, train

MODEL = ["--model.name", "mlp", "--model.options", "{width: 16, layers: 1}", "--model.latent", 8, "--batch", 16]
EVALUATION = ["--evaluate.every_epochs", 1, "--evaluate.extractor", "pixels", "--evaluate.samples", 60]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("latents")


@pytest.fixture(scope="module")
def vae(folder) -> Path:
    return make_vae(folder / "vae")


@pytest.fixture(scope="module")
def images(folder) -> ShardSet:
    """80 images of 12x16 pixels: 60 of the first class, 12 of the second, 8 of the third."""
    labels = np.repeat([0, 1, 2], [60, 12, 8])
    return make_arrays(folder / "images", noise(80, 16)[:, :12], labels=labels)


@pytest.fixture(scope="module")
def latents(folder, images, vae) -> Path:
    return make_latents(folder / "latents", folder / "images", vae)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Where no VAE is kept."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def run(folder, latents, vae) -> Path:
    """With classes, grids, and two evaluations of balanced classes."""
    words = ["--data.shards", latents, "--data.labels", "true", "--data.vae", vae, "--run_dir", folder / "run"]
    evaluation = [*EVALUATION, "--evaluate.balanced", "true", "--evaluate.cache_dir", folder / "cache"]
    assert train(*words, *MODEL, *evaluation, "--samples.count", 16, "--epochs", 2) == 0
    return folder / "run"


def evaluate(*words: object) -> int:
    reset_accelerate()
    return distgan.commands.evaluate.main([str(word) for word in words])


def sample(*words: object) -> int:
    return distgan.commands.sample.main([str(word) for word in words])


def test_grids_are_decoded(run, latents, vae):
    """The real one is of the means of the posterior of the first images."""
    dataset = open_shardset(LocalStorage(latents), "latents")
    decoded = load_vae(vae).decode(sample_posterior(torch.from_numpy(read_all(dataset)), dataset.spec))
    possible = {image.tobytes() for image in to_picture(decoded.numpy())}
    with Image.open(run / "samples/real.png") as picture:
        real = np.asarray(picture)
    assert real.shape == grid(np.zeros((16, 12, 16, 3), np.uint8)).shape
    assert real[2:14, 2:18].tobytes() in possible and real[16:28, 20:36].tobytes() in possible
    G = distgan.load(run / "checkpoints/160/ema.safetensors", vae=vae)
    with Image.open(run / "samples/fake-0002.png") as picture:
        fake = np.asarray(picture)[2:14, 2:18]
    z = torch.from_numpy(rng.rng(0, "samples").standard_normal((16, 8), np.float32))
    expected = to_picture(G(z, torch.arange(16) % 3).numpy())[0]
    assert np.abs(fake.astype(int) - expected).max() <= 1


def read_all(dataset: ShardSet) -> np.ndarray:
    return Reader(dataset).read(np.arange(dataset.manifest.samples)).images


def test_cards_are_of_images(run, folder, images):
    cards = [row["card"] for row in metrics(run) if "card" in row]
    assert [card["generator"]["images"] for card in cards] == [80, 160]
    for card in cards:
        assert card["data"]["manifest"] == images.digest and card["data"]["path"] == str(folder / "images")
        assert card["generator"]["labels"] == "balanced" and card["generator"]["truncation_psi"] == 1
        assert card["counts"] == {"generated": 60, "reference": 80, "rows": 60, "floor": 40}
        assert card["image_sum"]["real"]["mean"] == pytest.approx(float(read_all(images).sum((1, 2, 3)).mean()))
        assert 0 < card["image_sum"]["generated"]["mean"] < 255 * 12 * 16 * 3


def test_a_run_says_what_decodes_and_what_it_is_measured_against(latents, vae, folder, tmp_path, capsys, monkeypatch):
    words = ["--data.shards", latents, "--data.vae", vae, *MODEL, "--samples.count", 16, "--images", 16]
    assert train(*words, "--run_dir", tmp_path / "run") == 0
    out = capsys.readouterr().out
    sha256 = load_vae(vae).sha256[:12]
    assert f"latents are decoded to 12x16x3 by the VAE {sha256} in {vae}\n" in out
    assert f"metrics compare with the images of {folder / 'images'}\n" in out
    moved = tmp_path / "moved"
    shutil.copytree(latents, moved)
    keys = json.loads((moved / "manifest.json").read_text())
    keys["source"]["name"] = "nowhere"
    (moved / "manifest.json").write_text(json.dumps(keys))
    words[1] = moved
    remote = ["--evaluate.data", "s3://nowhere/images"]
    assert train(*words, *remote, "--run_dir", tmp_path / "remote") == 0
    assert "metrics will need the images of s3://nowhere/images\n" in capsys.readouterr().out
    assert train(*words, "--run_dir", tmp_path / "other") == 0
    assert "no metrics can be computed: data: " in (out := capsys.readouterr().out) and "nowhere" in out
    assert "(evaluate.data and `distgan evaluate --data` name the dataset of the images)\n" in out
    assert train(*words, *EVALUATION, "--run_dir", tmp_path / "third") == 2
    error = capsys.readouterr().err
    assert error.startswith("distgan: evaluate.data: ") and error.count("\n") == 1
    cache = ["--evaluate.cache_dir", tmp_path / "cache", "--evaluate.data", folder / "images"]
    assert train(*words, *EVALUATION, *cache, "--run_dir", tmp_path / "third") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "data.vae: the VAE "),
        (["--data.vae", "other"], "data.vae: {other} is the VAE "),
        (["--data.vae", "nowhere"], "data.vae: nowhere/config.json"),
        (["--data.vae", "vae", "--evaluate.truncation_psi", "0.5"], "evaluate.truncation_psi: G has no w to truncate"),
        (
            ["--data.vae", "vae", "--evaluate.balanced", "true", *map(str, EVALUATION)],
            "evaluate.balanced: G takes no classes",
        ),
        (
            ["--data.vae", "vae", "--evaluate.data", "small", *map(str, EVALUATION)],
            "evaluate.data: {small} has images 8x8x3, the generator makes 12x16x3",
        ),
    ],
)
def test_what_a_run_cannot_use_is_refused_before_it_begins(latents, vae, tiny, home, tmp_path, capsys, change, message):
    places = {"other": str(make_vae(tmp_path / "other", seed=1)), "vae": str(vae), "small": str(tiny)}
    words = [places.get(word, word) for word in change]
    assert train("--data.shards", latents, *MODEL, *words, "--run_dir", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert message.format(**places) in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_samples_are_decoded(run, vae, tmp_path):
    """Of the run's own VAE; the same from one file and a VAE."""
    assert sample(run, "--count", 70, "--out", tmp_path / "a.npz") == 0
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["images"].shape == (70, 12, 16, 3) and arrays["images"].dtype == np.uint8
    weights = shutil.copy(distgan.load(run, vae=vae).path, tmp_path / "alone.safetensors")
    G = distgan.load(weights, vae=vae)
    assert G.spec == SampleSpec(12, 16, 3, 3) and G.network_spec.shape == (4, 6, 8)
    z, labels = torch.from_numpy(arrays["z"]), torch.from_numpy(arrays["labels"])
    made = G.latents(z, labels)
    assert made.shape == (70, 4, 6, 8) and torch.equal(made, G.network(z, labels))
    expected = to_stored(load_vae(vae).decode(made), G.spec).numpy()
    assert np.abs(arrays["images"].astype(int) - expected).max() <= 1
    torch.testing.assert_close(G.sample(70), G(z, G.labels(np.arange(70) % 3)))
    assert sample(weights, "--vae", vae, "--count", 3, "--out", tmp_path / "folder") == 0
    assert len(list((tmp_path / "folder").glob("*.png"))) == 3


def test_the_vae_is_found_by_its_hash(run, vae, home, tmp_path, capsys):
    weights = shutil.copy(distgan.load(run, vae=vae).path, tmp_path / "alone.safetensors")
    words = [weights, "--count", 4, "--out", tmp_path / "a.npy"]
    assert sample(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("distgan: vae: the VAE ") and str(home) in error and error.count("\n") == 1
    assert sample(*words, "--vae", make_vae(tmp_path / "other", seed=1)) == 2
    assert f"vae: {tmp_path / 'other'} is the VAE " in capsys.readouterr().err
    keep_vae(load_vae(vae))
    assert sample(*words) == 0 and np.load(tmp_path / "a.npy").shape == (4, 12, 16, 3)


def test_the_decoder_moves_with_the_generator(run, vae):
    G = distgan.load(run, vae=vae).to(torch.float64)
    assert {tensor.dtype for tensor in G.decoder.parameters()} == {torch.float64}
    assert not G.training and not G.train().decoder.training, "a VAE stays as it is"


@pytest.mark.slow
def test_an_evaluation_by_two_processes_is_that_of_one(run, folder, tmp_path):
    """Each decodes its share."""
    words = [run, "--extractor", "pixels", "--samples", 300, "--balanced"]
    assert evaluate(*words, "--cache_dir", tmp_path / "one", "--out", tmp_path / "1.json") == 0
    launch(2, *words, "--cache_dir", tmp_path / "two", "--out", tmp_path / "2.json", script="evaluate.py")
    one, two = (json.loads((tmp_path / f"{count}.json").read_text()) for count in (1, 2))
    assert (one["code"]["processes"], two["code"]["processes"]) == (1, 2)
    for key in ("metrics", "floor"):
        assert one[key] == pytest.approx(two[key], rel=1e-9)
    for key in ("generated", "real"):
        assert one["image_sum"][key] == pytest.approx(two["image_sum"][key], rel=1e-9)
    for key in ("counts", "data", "generator", "extractor", "seed"):
        assert one[key] == two[key], key
    assert one["generator"]["labels"] == "balanced" and one["data"]["path"] == str(folder / "images")


def test_cards_of_other_choices_have_names_of_their_own(run, folder, images, vae, tmp_path, capsys):
    words = [run, "--extractor", "pixels", "--cache_dir", tmp_path, "--samples", 40, "--vae", vae]
    assert evaluate(*words) == evaluate(*words, "--balanced") == evaluate(*words, "--data", folder / "images") == 0
    names = {path.name for path in (run / "cards").iterdir()}
    assert names == {f"160-pixels{name}.json" for name in ("-n40", "-balanced-n40", f"-n40-data{images.digest[:8]}")}
    capsys.readouterr()
    assert evaluate(*words, "--truncation_psi", 0.5) == 2
    assert "truncation_psi: G has no w to truncate" in capsys.readouterr().err


def test_a_dataset_that_changed_is_no_reference(run, images, latents, vae, folder, tmp_path, capsys):
    """Unless it is given."""
    changed = tmp_path / "changed"
    shutil.copytree(folder / "images", changed)
    manifest = changed / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    shutil.copytree(latents, tmp_path / "latents")
    keys = json.loads((tmp_path / "latents/manifest.json").read_text())
    keys["source"]["name"] = str(changed)
    (tmp_path / "latents/manifest.json").write_text(json.dumps(keys))
    weights = distgan.load(run, vae=vae).path
    words = [weights, "--vae", vae, "--extractor", "pixels", "--samples", 40, "--cache_dir", tmp_path / "cache"]
    assert evaluate(*words, "--data", tmp_path / "latents") == 2
    error = capsys.readouterr().err
    assert "is not the dataset that they were encoded from any more" in error and images.digest[:12] in error
    assert evaluate(*words, "--data", changed, "--out", tmp_path / "card.json") == 0
    assert json.loads((tmp_path / "card.json").read_text())["data"]["path"] == str(changed)


def test_images_beside_the_latents_are_the_reference(run, folder, vae, tmp_path):
    """They are those that were encoded."""
    kept = make_latents(tmp_path / "kept", folder / "images", vae, "--keep_images", "--flips")
    weights = distgan.load(run, vae=vae).path
    words = [weights, "--vae", vae, "--extractor", "pixels", "--samples", 40, "--cache_dir", tmp_path / "cache"]
    cards = []
    for data in (kept, folder / "images"):
        assert evaluate(*words, "--data", data, "--out", tmp_path / "card.json") == 0
        cards.append(json.loads((tmp_path / "card.json").read_text()))
    assert cards[0]["data"]["path"] == str(kept) and cards[0]["data"]["manifest"] != cards[1]["data"]["manifest"]
    for key in ("metrics", "floor", "image_sum"):
        assert cards[0][key] == cards[1][key], key


def test_grey_images_are_a_reference_as_rgb(vae, tmp_path):
    """A VAE decodes to RGB: only the images that are kept beside the latents are RGB too."""
    grey = make_dataset(tmp_path / "grey", noise(40, 16, 1), shards=1)
    without = make_latents(tmp_path / "without", grey, vae)
    with pytest.raises(UsageError, match="^data: .* has grey images, .* encode it again with --keep_images"):
        real_images_of(open_dataset(str(without)), str(without))
    kept = make_latents(tmp_path / "kept", grey, vae, "--keep_images")
    real = real_images_of(open_dataset(str(kept)), str(kept))
    assert real.dataset.spec.channels == 3 and real.address == str(kept)


def test_an_extractor_of_latents_is_that_of_their_images(latents, images, folder, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    assert evaluate("--train_extractor", latents, "--train_images", 100, "--out", out) == 0
    assert load_classifier(out)[1].manifest == images.digest
    assert evaluate("--prefetch", "--data", latents, "--extractor", out, "--cache_dir", tmp_path) == 0
    assert f"the statistics of {folder / 'images'} for " in capsys.readouterr().out


GAT = {"width": 32, "depth": 2, "heads": 2, "stages": 2, "embedding": 32}


def test_a_transformer_on_latents_is_truncated_in_its_cards_and_samples(folder, latents, vae, tmp_path):
    """Its G returns several outputs by name."""
    words = ["--data.shards", latents, "--data.labels", "true", "--data.vae", vae, "--run_dir", tmp_path / "run"]
    model = ["--model.name", "gat", "--model.options", json.dumps(GAT), "--model.latent", 8, "--batch", 16]
    psi = ["--evaluate.truncation_psi", 0.5, "--evaluate.cache_dir", folder / "cache", "--samples.count", 16]
    assert train(*words, *model, *EVALUATION, *psi, "--g_optimizer.lr", 0.01, "--epochs", 1) == 0
    (card,) = [row["card"] for row in metrics(tmp_path / "run") if "card" in row]
    assert card["generator"]["truncation_psi"] == 0.5 and card["generator"]["labels"] == "as in the dataset"
    same = ["--extractor", "pixels", "--samples", 60, "--cache_dir", folder / "cache"]
    for change in ([], ["--truncation_psi", 0.5]):
        assert evaluate(tmp_path / "run", *same, *change) == 0
    by_psi = {
        name: json.loads((tmp_path / f"run/cards/80-pixels{name}-n60.json").read_text()) for name in ("", "-psi0.5")
    }
    assert by_psi["-psi0.5"]["metrics"] == pytest.approx(card["metrics"], rel=1e-6)
    assert by_psi["-psi0.5"]["image_sum"]["generated"] == pytest.approx(card["image_sum"]["generated"], rel=1e-6)
    assert by_psi[""]["image_sum"]["generated"] != by_psi["-psi0.5"]["image_sum"]["generated"]
    pixels = []
    for name, words in (("a.npy", []), ("b.npy", ["--truncation_psi", 0.5])):
        assert sample(tmp_path / "run", "--count", 6, "--out", tmp_path / name, *words) == 0
        pixels.append(np.load(tmp_path / name))
    assert pixels[0].shape == (6, 12, 16, 3) and not np.array_equal(*pixels)
