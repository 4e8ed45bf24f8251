"""The configuration: the contract's keys and defaults, overrides, and one line for each mistake."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from distgan import UsageError
from distgan.config import Config, flatten, read, to_dict
from shared import ROOT

CONTRACT = """
run_dir: runs/dcgan
seed: 0
epochs: 25
batch: 64
precision: "no"
data:    {shards: data/digits, threads: 2, flip: false, labels: false, lanes: null, skip_bad: 0, cache_dir: null}
model:   {name: dcgan, latent: 100, options: {width: 64}}
loss: bce
penalties: {}
augment: []
g_optimizer: {lr: 2.0e-4, betas: [0.5, 0.999]}
d_optimizer: {lr: 2.0e-4, betas: [0.5, 0.999]}
ema:     {half_life_images: 10_000}
samples: {count: 64, every_epochs: 1}
checkpoint: {every_epochs: 1, keep: 3}
"""


def parse(*words: str) -> Config:
    return read(words, prog="distgan train", description="")[0]


@pytest.fixture
def contract(tmp_path) -> Path:
    path = tmp_path / "contract.yaml"
    path.write_text(CONTRACT)
    return path


def test_the_contract_is_the_default(contract):
    written = parse("--config", str(contract))
    assert written == dataclasses.replace(Config(), model=written.model)
    assert flatten(yaml.safe_load(CONTRACT)).items() <= {**flatten(to_dict(written)), "penalties": {}}.items()


def test_file_then_command_line(contract):
    config = parse("--config", str(contract), "--g_optimizer.lr", "1e-4", "--model.options.norm", "none", "--seed=3")
    assert config.g_optimizer.lr == 1e-4 and config.d_optimizer.lr == 2e-4 and config.seed == 3
    assert config.model.options == {"width": 64, "norm": "none"}
    assert parse("--images", "10_000_000").images == 10_000_000
    assert parse("--d_optimizer.betas", "[0, 0.99]").d_optimizer.betas == (0.0, 0.99)


def test_a_length_on_the_command_line_replaces_the_files(contract):
    config = parse("--config", str(contract), "--images", "640")
    assert (config.epochs, config.images) == (None, 640)


def test_what_was_resolved_reads_back(tmp_path):
    config = parse("--images", "640", "--batch", "32", "--data.flip", "true", "--model.options", "{width: 8}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    assert parse("--config", str(tmp_path / "config.yaml")) == config


def test_help_and_print_config(capsys):
    for word, expected in (("--help", "Global minibatch in images"), ("--print_config", "half_life_images: 10000")):
        with pytest.raises(SystemExit) as end:
            parse(word)
        assert end.value.code == 0 and expected in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.shard", "x"], "data.shard: no such key; did you mean data.shards"),
        (["--bach", "3"], "bach: no such key; did you mean batch"),
        (["--g_optimizer.lrr", "3"], "g_optimizer.lrr: no such key; did you mean g_optimizer.lr"),
        (["--nothing", "3"], "nothing: no such key; the keys are"),
        (["--batch", "64.5"], "batch: expected int, got 64.5"),
        (["--batch", "0"], "batch: 0 is too small; at least 1"),
        (["--seed", "true"], "seed: expected int, got True"),
        (["--precision", "bf17"], "precision: expected one of .'no', 'bf16', 'fp16'., got bf17"),
        (["--g_optimizer.betas", "[0.5]"], "g_optimizer.betas: expected tuple with 2 elements"),
        (["--g_optimizer.betas", "[0.5, 1.0]"], "must both lie in"),
        (["--d_optimizer.lr", "0"], "d_optimizer.lr: 0.0 must be above 0"),
        (["--epochs", "3", "--images", "4"], "epochs and images are both given"),
        (["--data.lanes", "7"], "data.lanes: 7 does not divide batch 64"),
        (["--penalties.r1", "10"], "penalties: there is no 'r1'"),
        (["--config", "nowhere.yaml"], "there is no file nowhere.yaml"),
        (["--config"], "expected one argument"),
    ],
)
def test_mistakes_are_one_line(words, message):
    with pytest.raises(UsageError, match=message) as error:
        parse(*words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bath: 3", "bath: no such key; did you mean batch"),
        ("g_optimizer: {lrr: 3}", "g_optimizer.lrr: no such key"),
        ("g_optimizer: {lr: fast}", "g_optimizer.lr: expected float, got fast"),
        ("a: [", "flow node"),
    ],
)
def test_mistakes_in_a_file_are_one_line(text, message, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        parse("--config", str(tmp_path / "config.yaml"))
    assert "\n" not in str(error.value)


def test_lanes_are_the_largest_divisor_up_to_64():
    lanes = {batch: parse("--batch", str(batch)).lanes for batch in (1, 48, 64, 96, 100, 128, 4096, 67)}
    assert lanes == {1: 1, 48: 48, 64: 64, 96: 48, 100: 50, 128: 64, 4096: 64, 67: 1}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_configs_read_and_open_with_their_command(path):
    assert parse("--config", str(path)).run_dir.startswith("runs/")
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any("distgan/train.py" in line or "make demo" in line for line in head), "a config opens with its command"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ema: 0", "ema: 0 is no section; its keys are half_life_images"),
        ("g_optimizer: 2.0e-4", "g_optimizer"),
        ("model: [width, 4]", "model"),
        ("ema: {half_life_images: .nan}", "ema.half_life_images: nan is not a finite number"),
        ("checkpoint: {every_epochs: .inf}", "checkpoint.every_epochs: inf is not a finite number"),
        ("g_optimizer: {lr: .inf}", "g_optimizer.lr: inf is not a finite number"),
    ],
)
def test_a_file_that_reads_but_makes_no_sense(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        parse("--config", str(tmp_path / "config.yaml"))
