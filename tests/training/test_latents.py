"""Training on latents: what is drawn, the same for every number of processes, and after a resume."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

import distgan.training.data
from distgan.data.order import Lanes
from distgan.data.shardset import LocalStorage, open_shardset
from distgan.frozen.vae import keep_vae, load_vae
from distgan.gan.latents import sample_posterior
from distgan.generators.loading import load_generator
from distgan.runs.checkpoint import load_weights
from distgan.samples import SampleSpec
from distgan.training.batches import Draws, Minibatches, Needs
from distgan.training.grids import first_images
from helpers import computed, launch, make_dataset, make_latents, noise, reset_accelerate, train, weights

SMALL = ["--model.name", "mlp", "--model.options", "{width: 8, layers: 1}", "--model.latent", "8", "--batch", "16"]
WORDS = [*SMALL, "--samples.count", "16", "--data.flip", "true", "--report.every_images", "32"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def kept_vae(home, tiny_vae, monkeypatch) -> None:
    """The VAE is where runs look for it by its hash."""
    monkeypatch.setenv("HOME", str(home))
    keep_vae(load_vae(tiny_vae))


def spec_of(folder: Path) -> SampleSpec:
    return open_shardset(LocalStorage(folder), str(folder)).spec


@pytest.fixture
def opened(latents, monkeypatch):
    """The data of a run on latents, and what is on its first minibatch's way to the device."""
    from distgan.config.read import read_config
    from distgan.distributed.processes import Distributed

    reset_accelerate()
    config = read_config(["--data.shards", str(latents), *WORDS], prog="", description="")[0]
    processes = Distributed(config)
    return config, processes, distgan.training.data.open_data(config, processes)


def test_real_samples_are_drawn_by_keys_and_flipped_by_their_second_encoding(opened):
    config, processes, data = opened
    draws = Draws(config, data.order, data.dataset.draw_labels, Needs(posterior=True))
    minibatches = Minibatches(config, processes, data, draws)
    loaded = list(minibatches.load(0, 6, 0))
    for position, batch in zip(range(0, 96, 16), loaded, strict=True):
        inputs = draws(position)
        keys = torch.from_numpy(inputs["posterior"])
        assert keys.unique().numel() == 16
        flip = torch.from_numpy(inputs["flip"])
        expected = sample_posterior(batch.images.images, data.spec, keys, flip)
        assert torch.equal(batch.d[0].real, expected) and 0 < int(flip.sum()) < 16
    assert loaded[0].d[0].real.is_contiguous(memory_format=torch.channels_last)
    # the first minibatch of the next epoch has other noise for the same image
    assert not np.array_equal(draws(0)["posterior"], draws(80)["posterior"])


def test_the_keys_do_not_depend_on_the_number_of_processes(opened):
    config, _, data = opened
    counts = data.dataset.counts

    def keys(first: int, last: int) -> np.ndarray:
        order = Lanes(counts, config.seed, 16, first, last)
        return Draws(config, order, data.dataset.draw_labels, Needs(posterior=True))(32)["posterior"]

    assert np.array_equal(np.concatenate([keys(0, 8), keys(8, 16)]), keys(0, 16))


def test_the_grid_of_real_images_has_their_means(opened):
    _, _, data = opened
    images = data.reader.read(data.order.ids(0, 16)).images
    decoded = data.decoder(sample_posterior(images, data.spec))
    assert torch.equal(first_images(data, 16, torch.device("cpu")), decoded) and decoded.shape == (16, 3, 8, 8)


def test_a_resumed_run_is_bit_identical(latents, tmp_path):
    words = ["--data.shards", latents, *WORDS, "--data.labels", "true", "--penalties", "{r1_fd: 1.0}"]
    assert train(*words, "--run_dir", tmp_path / "whole", "--images", 160) == 0
    assert train(*words, "--run_dir", tmp_path / "run", "--images", 80) == 0
    assert train(*words, "--run_dir", tmp_path / "run", "--images", 160) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_train_on_what_one_does(latents, tmp_path):
    words = ["--data.shards", latents, *WORDS, "--images", 64, "--report.digests", "true"]
    assert train(*words, "--run_dir", tmp_path / "one") == 0
    launch(2, *words, "--run_dir", tmp_path / "two")
    one, two = ([row for row in computed(tmp_path / name) if "d_loss" in row] for name in ("one", "two"))
    assert [row["digest"] for row in one] == [row["digest"] for row in two]
    np.testing.assert_allclose([row["d_loss"] for row in one], [row["d_loss"] for row in two], rtol=1e-5)
    assert len(one) == 2


def test_weights_say_what_the_latents_are(latents, trained_on_latents):
    path = trained_on_latents / "checkpoints" / "16" / "ema.safetensors"
    spec = spec_of(latents)
    assert load_weights(path)[1].spec == spec.unconditional() == load_generator(path).network_spec
    assert spec.latents is not None and spec.latents.flips


@pytest.fixture
def trained_on_latents(latents, tmp_path) -> Path:
    assert train("--data.shards", latents, *WORDS, "--images", 16, "--run_dir", tmp_path / "run") == 0
    return tmp_path / "run"


def test_weights_of_pixels_say_nothing_of_latents(trained):
    path = next((trained("--images", 16) / "checkpoints").glob("*/ema.safetensors"))
    _, metadata = load_weights(path)
    assert metadata.latents is None and asdict(metadata.spec)["latents"] is None
    assert b'\\"latents\\"' not in path.read_bytes()[:20_000]


def test_flips_need_their_encodings(tiny, tiny_vae, tmp_path, capsys):
    folder = make_latents(tmp_path / "set", tiny, tiny_vae)
    words = ["--data.shards", folder, *SMALL, "--images", 32, "--run_dir", tmp_path / "run"]
    capsys.readouterr()
    assert train(*words, "--data.flip", "true") == 2
    fix = "encode the dataset again with --flips, or set data.flip false"
    assert f"data.flip: {folder} has no latents of flipped images; {fix}" in capsys.readouterr().err
    assert train(*words) == 0


def test_a_run_on_latents_is_fine_tuned(latents, trained_on_latents, tmp_path, capsys):
    """On latents of the same VAE; images of the same shape are no latents."""
    words = [*WORDS, "--images", 32, "--init_from", trained_on_latents]
    assert train("--data.shards", latents, *words, "--run_dir", tmp_path / "tuned") == 0
    assert "G: 4 of 4 tensors" in capsys.readouterr().out
    images = make_dataset(tmp_path / "images", noise(32, 4, 4), shards=1)
    assert train("--data.shards", images, *words, "--run_dir", tmp_path / "other") == 2
    error = capsys.readouterr().err
    assert "(latents of the VAE " in error and " there, none here); encode the dataset with the same VAE" in error


def test_the_vae_is_free_to_change(latents, trained_on_latents, tiny_vae):
    words = ["--data.shards", latents, *WORDS, "--images", 32, "--run_dir", trained_on_latents]
    assert train(*words, "--data.vae", tiny_vae) == 0
    assert json.loads((trained_on_latents / "checkpoints" / "32" / "state.json").read_text())["images"] == 32
