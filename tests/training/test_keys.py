"""Keys of a run: those that networks cannot have, exact penalties of transformers, the minibatch of G's update."""

import pytest

from distgan.config.read import read_config
from distgan.distributed.processes import Distributed
from distgan.training.batches import minibatches_of
from distgan.training.build import build
from helpers import reset_accelerate, train


def test_terms_and_learning_rates_that_the_networks_cannot_have(tiny, tmp_path, capsys):
    words = [
        "--data.shards",
        tiny,
        "--run_dir",
        tmp_path / "run",
        "--model.name",
        "mlp",
        "--model.options",
        "{width: 4}",
    ]
    for more, message in (
        (["--terms", "{consistency: 0.1}"], "terms.consistency: G has no stages to compare; take the model cat or gat"),
        (["--terms", "{consistency_detached: 0.1}"], "terms.consistency_detached: G has no stages to compare"),
        (["--g_optimizer.base_width", 8], "g_optimizer.base_width: the network mlp has no width; leave it out"),
        (["--g_minibatch", "next"], "g_minibatch: the loss bce is not paired; set it to same, or take the loss rpgan"),
    ):
        assert train(*words, *more) == 2
        assert message in capsys.readouterr().err


def test_exact_penalties_of_a_transformer(tiny, tmp_path):
    """Its attention has a second derivative then."""
    options = "{width: 8, depth: 2, heads: 1, patch: 4, stages: 2, embedding: 8}"
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", "--model.name", "gat", "--model.options", options]
    assert train(*words, "--model.latent", 4, "--batch", 16, "--images", 16, "--penalties", "{r1: 1, r2: 1}") == 0


@pytest.mark.parametrize(
    ("keys", "own"), [([], True), (["--g_minibatch", "next"], True), (["--g_minibatch", "same"], False)]
)
def test_g_has_a_minibatch_of_its_own_or_that_of_d(tiny, keys, own):
    reset_accelerate()
    words = ["--data.shards", str(tiny), "--loss", "rpgan", "--model.name", "mlp", "--batch", "16", *keys]
    config = read_config(words, prog="", description="")[0]
    processes = Distributed(config)
    data, gan = build(config, processes)
    batches = next(minibatches_of(config, processes, data, gan).iterations(0, 1, lambda batch: None))
    assert (batches.g is not None) == own
