"""Runs on samples that are not square 8-bit RGB: what is refused, by the key that it is about."""

import pytest

from helpers import TINY, train

EVALUATE = ["--evaluate.every_epochs", "1"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--samples.show", "[5,3,6]"],
            "samples.show: [5, 3, 6] is not one (grey) or three (RGB) of the channels 1 to 5",
        ),
        (
            [*EVALUATE, "--evaluate.extractor", "inception"],
            "evaluate.extractor: inception takes 8-bit grey or RGB images",
        ),
        (
            [*EVALUATE, "--evaluate.extractor", "pixels", "--evaluate.metrics", "[modes]"],
            "evaluate.metrics: modes needs a classifier of the dataset's own labels",
        ),
        ([*EVALUATE, "--evaluate.extractor", "pixels", "--evaluate.samples", "5"], "evaluate.samples: metrics need 20"),
    ],
)
def test_a_refusal_names_the_key(bands, tmp_path, capsys, words, message):
    assert train("--data.shards", bands, "--run_dir", tmp_path / "run", *TINY, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distgan: {message}") and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()
