"""The configuration: the contract's keys and defaults, overrides, and one line for each mistake."""

import dataclasses
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from distgan.commands.run import run_command
from distgan.config.entries import AdaptiveProbability, AugmentEntry, PenaltyEntry
from distgan.config.keys import Config, flatten, to_dict
from distgan.config.read import read_config
from distgan.errors import UsageError
from distgan.training.build import build
from helpers import ROOT

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
    return read_config(words, prog="distgan train", description="")[0]


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


def test_import_is_one_module_or_several(tmp_path):
    assert parse("--import", "mine").imports == ["mine"]
    assert parse("--import", "[mine, yours]").imports == ["mine", "yours"]
    (tmp_path / "config.yaml").write_text("import: mine")
    config = parse("--config", str(tmp_path / "config.yaml"))
    assert config.imports == ["mine"] and to_dict(config)["import"] == ["mine"]


def test_a_length_on_the_command_line_overrides_the_files(contract):
    config = parse("--config", str(contract), "--images", "640")
    assert (config.epochs, config.images) == (None, 640)


def test_the_resolved_config_reads_back(tmp_path):
    config = parse("--images", "640", "--batch", "32", "--data.flip", "true", "--model.options", "{width: 8}")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    assert parse("--config", str(tmp_path / "config.yaml")) == config


FULL = """
import: [mine]
run_dir: runs/full
seed: 3
images: 1_000_000
batch: 96
micro_batch: 16
precision: bf16
channels_last: false
deterministic: false
tf32: false
sync_batchnorm: false
data: {shards: s3://a/b, threads: 4, flip: true, labels: true, lanes: 12, skip_bad: 3, cache_dir: c, cache_gb: 1.5,
  fetch_ahead: 1, fetch_threads: 8, decoder: simplejpeg}
model: {name: r3gan, latent: 64, options: {widths: [16, 32], group_width: 16}}
loss: rpgan
n_critic: 2
penalties:
  r1: 10
  r2: {from: 0.05, to: 0.005, images: 2e6, shape: linear, start: 10}
  wgan_gp: {weight: 1.5, every: 4}
augment: [ada_blit, {ada_color: 0.5}]
augment_p: {target: 0.6, images: 500_000}
g_optimizer: {lr: {from: 2.0e-4, to: 5.0e-5, images: 20_000_000}, betas: [0, {from: 0.9, to: 0.99, images: 9}],
  eps: 1e-7, weight_decay: 0.1, clip: 1}
d_optimizer: {lr: 1e-3, betas: [0, 0.99]}
ema: {half_life_images: {from: 0, to: 5_000, images: 20_000, shape: cosine}, warmup: 0}
samples: {count: 4, every_epochs: 0.5}
checkpoint: {every_epochs: 2, keep: 0, wait: true}
evaluate: {every_epochs: 1, metrics: [fid], extractor: inception, samples: 100, reference_images: 50, best: fid,
  cache_dir: d}
report: {every_images: 100, digests: true, page: false, trackers: [wandb]}
guard: {rollbacks: 1, stop_on_collapse: true}
resume: {override: true}
"""
"""No section is left at its defaults."""

DEFAULT_FINGERPRINT = (
    '{"seed": 0, "batch": 64, "micro_batch": null, "precision": "no", "channels_last": true'
    ', "deterministic": true, "tf32": true, "compile": false, "graph": false, "sync_batchnorm": true'
    ', "data": {"flip": false, "labels": false'
    ', "lanes": 64, "decoder": "pillow"}, "model": {"name": "dcgan", "latent": 100, "options": {}}'
    ', "freeze_d": 0'
    ', "loss": "bce", "terms": {}, "g_minibatch": null, "n_critic": 1, "penalties": {}'
    ', "g_penalties": {}, "augment": [], "augment_p": 1.0'
    ', "g_optimizer": {"lr": 0.0002, "betas": [0.5, 0.999], "eps": 1e-08, "base_width": null'
    ', "weight_decay": 0.0, "decoupled": false, "clip": 0.0}'
    ', "d_optimizer": {"lr": 0.0002, "betas": [0.5, 0.999], "eps": 1e-08, "base_width": null'
    ', "weight_decay": 0.0, "decoupled": false, "clip": 0.0}'
    ', "ema": {"half_life_images": 10000, "warmup": 0.05, "power_widths": []}}'
)
FULL_FINGERPRINT = (
    '{"seed": 3, "batch": 96, "micro_batch": 16, "precision": "bf16", "channels_last": false'
    ', "deterministic": false, "tf32": false, "compile": false, "graph": false, "sync_batchnorm": false'
    ', "data": {"flip": true, "labels": true'
    ', "lanes": 12, "decoder": "simplejpeg"}, "model": {"name": "r3gan", "latent": 64'
    ', "options": {"widths": [16, 32], "group_width": 16}}, "freeze_d": 0'
    ', "loss": "rpgan", "terms": {}, "g_minibatch": null'
    ', "n_critic": 2'
    ', "penalties": {"r1": 10, "r2": {"from": 0.05, "to": 0.005, "images": 2000000.0, "shape": "linear"'
    ', "start": 10}, "wgan_gp": {"weight": 1.5, "every": 4}}'
    ', "g_penalties": {}, "augment": ["ada_blit", {"ada_color": 0.5}]'
    ', "augment_p": {"target": 0.6, "images": 500000}, "g_optimizer": {"lr": {"from": 0.0002, "to": 5e-05'
    ', "images": 20000000}, "betas": [0.0, {"from": 0.9, "to": 0.99, "images": 9}], "eps": 1e-07, "base_width": null'
    ', "weight_decay": 0.1, "decoupled": false, "clip": 1.0}'
    ', "d_optimizer": {"lr": 0.001, "betas": [0.0, 0.99], "eps": 1e-08, "base_width": null'
    ', "weight_decay": 0.0, "decoupled": false, "clip": 0.0}'
    ', "ema": {"half_life_images": {"from": 0, "to": 5000, "images": 20000'
    ', "shape": "cosine"}, "warmup": 0.0, "power_widths": []}}'
)


def test_the_fingerprint_keeps_its_bytes(tmp_path):
    """It is in the metadata of checkpoints, and compared when a run is resumed; keys that may change are not in it."""
    (tmp_path / "full.yaml").write_text(FULL)
    full = parse("--config", str(tmp_path / "full.yaml"))
    assert json.dumps(Config().fingerprint()) == DEFAULT_FINGERPRINT
    assert json.dumps(full.fingerprint()) == FULL_FINGERPRINT


def test_penalties_and_augmentations_are_typed(tmp_path):
    (tmp_path / "full.yaml").write_text(FULL)
    config = parse("--config", str(tmp_path / "full.yaml"))
    assert list(config.penalty_entries) == ["r1", "r2", "wgan_gp"]
    assert config.penalty_entries["r1"] == PenaltyEntry(10, every=1)
    assert config.penalty_entries["r2"] == PenaltyEntry(config.penalties["r2"], every=1)
    assert config.penalty_entries["wgan_gp"] == PenaltyEntry(1.5, every=4)
    assert config.augment_entries == [AugmentEntry("ada_blit", 1.0), AugmentEntry("ada_color", 0.5)]
    assert config.adaptive_p == AdaptiveProbability(target=0.6, images=500_000)
    fixed = dataclasses.replace(config, augment_p={"from": 0, "to": 1, "images": 9})
    assert fixed.adaptive_p is None


def test_help_and_print_config(capsys):
    for word, expected in (("--help", "Global minibatch in images"), ("--print_config", "half_life_images: 10000")):
        with pytest.raises(SystemExit) as end:
            parse(word)
        out = capsys.readouterr().out
        assert end.value.code == 0 and expected in " ".join(out.split())
        assert "Config(" not in out, "a section is headed by the signature of its class"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.shard", "x"], "data.shard: no such key; did you mean data.shards"),
        (["--bach", "3"], "bach: no such key; did you mean batch"),
        (["--g_optimizer.lrr", "3"], "g_optimizer.lrr: no such key; did you mean g_optimizer.lr"),
        (
            ["--nothing", "3"],
            "nothing: no such key; choose from import, run_dir, seed, epochs, .*, resume, fresh, dry_run, profile$",
        ),
        (["--lr", "3"], "lr: no such key; did you mean g_optimizer.lr, d_optimizer.lr"),
        (["--batch", "64.5"], "batch: expected an integer above 0, got 64.5"),
        (["--batch", "0"], "batch: expected an integer above 0, got 0"),
        (["--micro_batch", "0"], "micro_batch: expected an integer above 0, got 0"),
        (["--images", "x"], "images: expected an integer above 0, got x"),
        (["--ema.half_life_images", "-1"], "expected a finite number, 0 or more, or a schedule {from: .*}, got -1"),
        (["--seed", "true"], "seed: expected an integer, 0 or more, got true"),
        (["--precision", "bf17"], "precision: expected one of 'no', 'bf16', 'fp16', got bf17"),
        (
            ["--g_optimizer.betas", "[0.5]"],
            r"g_optimizer.betas: expected a list of 2 values \[value, value\], got \[0.5\]",
        ),
        (["--g_optimizer.betas", "3"], "g_optimizer.betas: expected a list of 2 values .*, got 3"),
        (["--g_optimizer.betas", "[1, 0.9]"], r"g_optimizer.betas: expected a number in \[0, 1\), got 1"),
        (["--g_optimizer.betas", "[0.5, 1.0]"], r"g_optimizer.betas: expected a number in \[0, 1\), or a .*, got 1.0"),
        (
            ["--d_optimizer.lr", "0"],
            "d_optimizer.lr: expected a finite number above 0, or a schedule {from: .*}, got 0",
        ),
        (["--data.flip", "3"], "data.flip: expected true or false, got 3"),
        (["--report.trackers", "wandb"], r"report.trackers: expected a list \[value, ...\], got wandb"),
        (["--report.trackers", "[[3]]"], r"report.trackers: expected text, got \[3\]"),
        (
            ["--ema", "0"],
            "ema: expected a section with the keys half_life_images, warmup, power_widths, snapshot_epochs, got 0",
        ),
        (["--g_optimizer", "2e-4"], "g_optimizer: expected a section with the keys lr, betas, eps, .*, got 2e-4"),
        (["--model", "[width, 4]"], r"model: expected a section with the keys name, latent, options, got \[width, 4\]"),
        (["--epochs", "3", "--images", "4"], "epochs and images are both given"),
        (["--data.lanes", "7"], "data.lanes: 7 does not divide batch 64"),
        (["--penalties.r1", "-1"], "penalties.r1: expected a number, 0 or more, or a schedule"),
        (["--penalties.r1", "x"], "penalties.r1: expected a number, 0 or more, or a schedule .*, got 'x'"),
        (["--penalties", "3"], r"penalties: expected a mapping {name: value, \.\.\.}, got 3"),
        (["--penalties", "[r1]"], r"penalties: expected a mapping {name: value, \.\.\.}, got \['r1'\]"),
        (["--penalties", "{r1: {weight: 1, every: 0}}"], "penalties.r1.every: expected an integer above 0, got 0"),
        (
            ["--penalties", "{r1: {weight: 1, evry: 2}}"],
            "penalties.r1.evry: no such key; expected {weight: number or schedule, every: iterations, sigma: number",
        ),
        (["--penalties", "{r1_fd: {weight: 1, sigma: 0}}"], "penalties.r1_fd.sigma: expected a number above 0, got 0"),
        (["--penalties", "{r1_fd: {weight: 1, share: 0.3}}"], "penalties.r1_fd.share: expected 1, or a unit fraction"),
        (["--penalties", "{r1_fd: {weight: 1, share: 2}}"], "penalties.r1_fd.share: expected 1, or a unit fraction"),
        (["--penalties", "{r1: {every: 4}}"], "penalties.r1: 'weight' is missing; expected {weight: .*, every: .*}"),
        (["--penalties", "{r1: {weight: x, every: 4}}"], "penalties.r1.weight: expected a number, 0 or more, or a sch"),
        (["--penalties", "{r1: {wieght: 1}}"], "penalties.r1.wieght: no such key; expected .*, or {weight: number or"),
        (["--g_optimizer.lr", "{from: 1, to: 0}"], "g_optimizer.lr: 'images' is missing; expected a schedule {from: "),
        (
            ["--g_optimizer.lr", "{from: 1, to: 0, images: 0}"],
            "g_optimizer.lr.images: expected a number above 0, got 0",
        ),
        (
            ["--g_optimizer.lr", "{from: 1, to: 0, images: 9, stop: 1}"],
            "g_optimizer.lr.stop: no such key; expected a schedule {from: ",
        ),
        (
            ["--g_optimizer.lr", "{from: 1, to: 0, images: 9, shape: step}"],
            "lr.shape: unknown shape 'step'; choose from",
        ),
        (["--g_optimizer.lr.from", "1"], "g_optimizer.lr: 'to' is missing; expected a schedule"),
        (
            ["--d_optimizer.betas", "[0, {from: 0.9, to: 1, images: 9}]"],
            r"betas.to: expected a number in \[0, 1\), got 1",
        ),
        (
            ["--ema.half_life_images", "{from: -1, to: 1, images: 9}"],
            "half_life_images.from: expected a number, 0 or mo",
        ),
        (["--augment", "[3]"], "augment: expected names, or {name: factor in .*}, got 3"),
        (["--augment", "[{color: 2}]"], r"augment.color: expected a number in \[0, 1\], got 2"),
        (["--augment", "[{color: 1, cutout: 1}]"], "augment: expected names, or {name: factor in .*}, got {'color': 1"),
        (["--augment", "[color]", "--augment_p", "2"], r"augment_p: expected a number in \[0, 1\], or a schedule"),
        (
            ["--augment", "[color]", "--augment_p", "{target: {from: 0, to: 1, images: 9}, images: 9}"],
            r"augment_p.target: expected a number in \[0, 1\], got {'from': 0",
        ),
        (
            ["--augment", "[color]", "--augment_p", "{target: 0.6, images: 0}"],
            "augment_p.images: expected a number abo",
        ),
        (
            ["--augment", "[color]", "--augment_p", "{images: 9}"],
            "augment_p: 'from' is missing; .*, or {target: number",
        ),
        (["--augment_p", "0.5"], "augment_p: no augmentation is given in augment"),
        (
            ["--augment", "[color]", "--augment_p", "{target: 0.6}"],
            "augment_p: 'images' is missing; expected {target: number, images: number}",
        ),
        (
            ["--augment", "[color]", "--augment_p", "{target:0.6,images:5000}"],
            "augment_p: YAML needs a blank after the colon: target: 0.6, not target:0.6",
        ),
        (["--penalties", "{r1:10}"], "penalties: YAML needs a blank after the colon: r1: 10, not r1:10"),
        (["--penalties", "{r1: {from:1, to:0, images:9}}"], "penalties.r1: YAML needs a blank .*: from: 1, not from:1"),
        (["--g_optimizer.lr", "{from:1e-3,to:0,images:9}"], "g_optimizer.lr: YAML needs a blank .*: from: 1e-3, not"),
        (["--model.options", "{width:64}"], "model.options: YAML needs a blank after the colon: width: 64"),
        (["--config", "nowhere.yaml"], "no such file: nowhere.yaml"),
        (["--config=nowhere.yaml"], "no such file: nowhere.yaml"),
        (["--config"], "^--config: expected a value after it$"),
        (["--batch", "--seed", "3"], "^--batch: expected a value after it$"),
        (["--fresh=3"], "^--fresh: takes no value, got 3$"),
        (["stray"], "^stray: unexpected argument$"),
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
        (
            "g_optimizer: {lr: fast}",
            "g_optimizer.lr: expected a finite number above 0, or a schedule {from: .*}, got fast",
        ),
        (
            "a: [",
            "^--config: not YAML: while parsing a flow node did not find expected node content, line 2, column 1$",
        ),
        ("hello", "^--config: hello sets no key$"),
        ("", "^--config: an empty file sets no key$"),
        ("augment: [color]\naugment_p:\n  target:0.6\n  images:5000", "augment_p: YAML needs a blank .*: target: 0.6"),
        ("seed:3\nbatch:4", "--config: YAML needs a blank after the colon: seed: 3"),
        ("penalties:\n  r1:10", "penalties: YAML needs a blank after the colon: r1: 10, not r1:10"),
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
        (
            "ema: 0",
            "ema: expected a section with the keys half_life_images, warmup, power_widths, snapshot_epochs, got 0",
        ),
        ("data: {cache_dir: [3]}", r"data.cache_dir: expected text, got \[3\]"),
        (
            "batch: 3\nema:",
            "ema: expected a section with the keys half_life_images, warmup, power_widths, snapshot_epochs, got "
            "nothing",
        ),
        (
            "g_optimizer: 2.0e-4",
            "g_optimizer: expected a section with the keys lr, betas, eps, base_width, weight_decay, decoupled, clip, "
            "got 0.0",
        ),
        ("model: [width, 4]", "model: expected a section with the keys name, latent, options, got "),
        (
            "ema: {half_life_images: .nan}",
            "ema.half_life_images: expected a finite number, 0 or more, or a .*, got nan",
        ),
        ("checkpoint: {every_epochs: .inf}", "checkpoint.every_epochs: expected a finite number above 0, got inf"),
        ("g_optimizer: {lr: .inf}", "g_optimizer.lr: expected a finite number above 0, or a .*, got inf"),
    ],
)
def test_valid_yaml_with_invalid_values(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=message):
        parse("--config", str(tmp_path / "config.yaml"))


def test_help_config_and_refusals_do_not_import_torch(tmp_path):
    """What a user waits for before anything is computed."""
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'accelerate', 'webdataset'])); "
    block += "from distgan.__main__ import main; sys.argv[0] = 'distgan'; sys.exit(main())"
    for code, words in (
        (0, ["train", "--help"]),
        (0, ["train", "--print_config"]),
        (0, ["sample", "--help"]),
        (0, ["evaluate", "--help"]),
        (0, ["shards", "--help"]),
        (0, ["shards"]),
        (2, ["train", "--bach", "3"]),
        (2, ["train", "--batch", "0"]),
        (2, ["sample", "run", "--count", "0"]),
        (2, ["evaluate", "run", "--samples", "0"]),
    ):
        done = subprocess.run([sys.executable, "-c", block, *words], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


def run(argv: list[str]) -> int:
    return run_command(lambda argv: build(parse(*argv), None), argv)  # type: ignore[arg-type] - refused before it is used


DIGITS, LONG = "1" + "0" * 400, "x" * 10_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('run_dir: "a\\0b"', "run_dir: a NUL byte in 'a.x00b'"),
        ('data: {shards: "a\\0b"}', "data.shards: a NUL byte"),
        (f"augment: {'[' * 3000}{']' * 3000}", "nested too deep"),
        (f"model: {{options: {'{a: ' * 40}1{'}' * 40}}}", "model.options.a.*: nested more than 20 deep"),
        ("a: &a [*a]", "a.0.*: nested more than 20 deep"),
        ("a: &x {b: *x}", "a.b.*: nested more than 20 deep"),
        ("a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijklmnopq")), "values"),
        (LONG * 10, "--config: x*"),
        ("run_dir: !!timestamp x", "a value that YAML cannot read"),
        ("seed: !!int x", "a value that YAML cannot read: invalid literal for int"),
        (f"seed: {DIGITS}", "seed: a number of more than 300 digits"),
        (f"seed: {DIGITS}{'0' * 5000}", "seed: a number of more than 300 digits"),
        (f"g_optimizer: {{lr: {DIGITS}}}", "lr: a number of more than 300 digits"),
        (f"g_optimizer: {{betas: [0, {DIGITS}]}}", "a number of more than 300 digits"),
        (f"batch: {DIGITS[:30]}", "batch: a number beyond 64 bits"),
        (f"loss: {LONG}", "loss: unknown loss 'x*"),
        (f"loss: {'x y ' * 3000}", "loss: unknown loss 'x y"),
        (f"seed: {LONG}", "seed: expected an integer, 0 or more, got x*"),
        (f"precision: {LONG}", "precision: expected one of"),
        (f"data: {LONG}", "data: "),
        (f"? {LONG}\n: 3", "x*: no such key"),
        (f"g_optimizer: {{betas: {list(range(3000))}}}", "g_optimizer.betas: expected a list of 2 values"),
    ],
)
def test_hostile_values_are_one_short_line(tmp_path, capsys, text, message):
    """Of what was given a message repeats 200 characters at most."""
    (tmp_path / "config.yaml").write_text(text)
    assert run(["--config", str(tmp_path / "config.yaml")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1 and len(error) < 620, error
    assert "x" * 201 not in error and "x y " * 51 not in error


@pytest.mark.parametrize(
    "words",
    [["--seed", DIGITS], ["--config", "a\0b"], ["--config=a\0b"], ["--run_dir", "a\0b"], ["--augment", "[" * 3000]]
    + [[f"--{LONG}", "3"], ["--seed", LONG], ["--config", LONG], ["--augment", "[" * 3000 + "]" * 3000]]
    + [["--model.options", "&a {b: *a}"], ["--augment", "&a [*a]"]],
)
def test_hostile_words_are_one_short_line(capsys, words):
    assert run(words) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and len(error) < 620 and "x" * 201 not in error, error
