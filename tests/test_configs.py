"""The recipes in configs/: each is complete, is not refused, and trains at reduced width on two processes."""

import functools
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from distgan import models
from distgan.config.keys import Config, to_dict
from distgan.config.read import read_config
from distgan.gan.schedules import value_at
from distgan.samples import Condition, LatentSpec, SampleSpec
from distgan.training.checks import check_config, check_d
from helpers import (
    ROOT,
    launch_env,
    make_arrays,
    make_dataset,
    make_dinov2,
    make_latents,
    make_vae,
    metrics,
    noise,
    train,
)

PATHS = sorted((ROOT / "configs").glob("*.yaml"))
DATASETS = {
    "digits": SampleSpec(32, 32, 1, 10),
    "digits-16": SampleSpec(16, 16, 1, 10),
    "fashion-mnist": SampleSpec(32, 32, 1, 10),
    "cifar10": SampleSpec(32, 32, 3, 10),
    "stacked-mnist": SampleSpec(32, 32, 3, 1000),
    "images-32": SampleSpec(32, 32, 3),
    "images-64": SampleSpec(64, 64, 3),
    "images-128": SampleSpec(128, 128, 3),
    "images-256": SampleSpec(256, 256, 3),
    "images-512": SampleSpec(512, 512, 3),
    "ffhq-64": SampleSpec(64, 64, 3),
    "ffhq-256": SampleSpec(256, 256, 3),
    "ffhq-512": SampleSpec(512, 512, 3),
    "ffhq-1024": SampleSpec(1024, 1024, 3),
    "imagenet-32": SampleSpec(32, 32, 3, 1000),
    "imagenet-64": SampleSpec(64, 64, 3, 1000),
    "imagenet-256-latents": SampleSpec(
        32, 32, 4, 1000, dtype="float16", latents=LatentSpec("0" * 64, 0.18215, 0.0, 256, 256, 3)
    ),
    "showers": SampleSpec(24, 16, 1, conditions=(Condition("energy"),), dtype="float16", range=(0, 2.2)),
}
"""What the configs train on."""
KINDS = "demo dcgan-stabilised r3gan-cifar10-small rpgan-stacked-mnist-cpu showers-cpu".split()
KINDS += ["sngan-cifar10-cond", "wgan-gp", "gat-imagenet-256-s", "cat-imagenet-256-b", "stylegan2-cifar"]
"""One config of each kind."""

VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [4] * 4,
    "scaling_factor": 0.18215,
}
"""A random one that halves three times, as Stable Diffusion's."""

every_config = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@functools.cache
def parse(path: Path) -> Config:
    return read_config(["--config", str(path)], prog="distgan train", description="")[0]


def dataset(config: Config) -> SampleSpec:
    return DATASETS[Path(config.data.shards).name]


@every_config
def test_a_config_is_complete(path):
    """A length and a run folder; at the top the commands, the cost, what is published and what was run."""
    text, keys = path.read_text(), yaml.safe_load(path.read_text())
    config = parse(path)
    assert ("epochs" in keys) != ("images" in keys) and config.run_dir == f"runs/{path.stem}"
    header = text[: re.search(r"^[^#]", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    assert text.startswith("# ") and f"distgan/train.py --config configs/{path.name}" in header
    for words in ("Cost: ", "Published( result)?: ", "Run: |Not run "):
        assert re.search(words, header.replace("\n# ", " ")), words
    if path.stem != "demo":  # make demo makes its dataset
        made = re.search(r"#   distgan shards make \S+ (\S+)(?: --size (\d+))?", header)
        spec = dataset(config)
        assert made and made[1] == config.data.shards.removesuffix("-latents")
        if spec.latents is not None:
            assert f"distgan.shards encode {made[1]} {config.data.shards} " in header
        height = spec.pixels.height
        assert int(made[2] or 32) == height or spec.pixels.dtype == "float16"  # arrays keep their size


@every_config
def test_a_config_is_not_refused(path):
    config = parse(path)
    spec = dataset(config)
    check_config(config)
    with torch.device("meta"):
        _, D = models.build(
            config.model.name,
            spec if config.data.labels else spec.unconditional(),
            z_dim=config.model.latent,
            options=config.model.options,
            seed=0,
        )
    check_d(config, D)


def test_the_table_of_recipes_has_them_all():
    recipes = (ROOT / "configs" / "README.md").read_text().split("## What was run")[0]
    rows = re.findall(r"^\| ([\w-]+) \|", recipes, re.MULTILINE)
    assert sorted(rows) == sorted(["config", *(path.stem for path in PATHS)])


def schedules(keys: Any) -> Iterator[dict[str, Any]]:
    """The schedules anywhere in a configuration, to change them in place."""
    for value in keys.values() if isinstance(keys, dict) else keys if isinstance(keys, list) else ():
        if isinstance(value, dict) and "from" in value:
            yield value
        yield from schedules(value)


def reduced_options(config: Config) -> dict[str, Any]:
    """The narrowest networks."""
    if config.model.name == "r3gan":
        widths = [16] * len(config.model.options.get("widths", ()))
        return {"widths": widths, "group_width": 16, "blocks": 1, "expansion": 1}
    if config.model.name == "stylegan2":
        return {"channel_base": 4096, "channel_max": 4, "w_dim": 8, "mapping_layers": 1, "group": 2}
    if config.model.name in ("gat", "cat"):
        return {name: value for d in ("", "d_") for name, value in narrow_transformer(d)}
    return {"width": 4}


def narrow_transformer(prefix: str) -> list[tuple[str, int]]:
    return [(f"{prefix}width", 16), (f"{prefix}depth", 4), (f"{prefix}heads", 2)]


def reduce(path: Path, data: Callable[[SampleSpec], Path], run_dir: Path) -> Path:
    """The config of two iterations of four images at reduced width, as a file; schedules end after three."""
    config = parse(path)
    keys = to_dict(config)
    keys |= {
        "run_dir": str(run_dir),
        "batch": 4,
        "micro_batch": None,
        "epochs": None,
        "images": 2 * 4 * config.n_critic,
    }
    keys["data"]["shards"] = str(data(dataset(config)))
    keys["model"]["options"] |= reduced_options(config)
    keys["evaluate"]["every_epochs"] = 0
    if dataset(config).latents is not None:
        pretrained = Path(keys["data"]["shards"]).parent
        keys["data"]["vae"] = str(pretrained / "vae")
        keys["terms"]["align"]["path"] = str(pretrained / "dinov2")
    for schedule in schedules(keys):
        schedule["images"] = 3 * 4 * config.n_critic
        schedule["start"] = 0
        assert value_at(schedule, 0) != value_at(schedule, 4 * config.n_critic)
    # a lazy one is due in the first iteration alone
    for penalty in [*keys["penalties"].values(), *keys["g_penalties"].values()]:
        if isinstance(penalty, dict) and "every" in penalty:
            penalty["every"] = 2
        if isinstance(penalty, dict) and "share" in penalty:
            penalty["share"] = 0.5  # of the two images of a process
    keys["samples"] = {"count": 4, "every_epochs": 1000}
    keys["report"]["every_images"] = 4 * config.n_critic
    run_dir.parent.mkdir(exist_ok=True)
    file = run_dir.parent / path.name
    file.write_text(yaml.safe_dump(keys))
    return file


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Callable[[SampleSpec], Path]:
    """A dataset of eight such images, written once."""
    root = tmp_path_factory.mktemp("data")

    def of(spec: SampleSpec) -> Path:
        folder = root / str(spec.unconditional()).replace(" ", "")
        if not folder.exists() and spec.latents is not None:
            vae = make_vae(root / "vae", **VAE)
            make_dinov2(root / "dinov2")
            return make_latents(folder, of(spec.pixels), vae, "--keep_images")
        if not folder.exists() and spec.conditions:
            images = noise(8, spec.height, spec.channels)[:, :, : spec.width].astype(spec.dtype)
            make_arrays(folder, images, numbers={one.name: np.arange(8) for one in spec.conditions})
        return folder if folder.exists() else make_dataset(folder, noise(8, spec.height, spec.channels), shards=1)

    return of


def check_run(path: Path, run_dir: Path, processes: int) -> None:
    """Two iterations were logged, with finite losses and every penalty, and the last was saved."""
    config, rows = parse(path), metrics(run_dir)
    assert [row["images"] for row in rows] == [4 * config.n_critic, 8 * config.n_critic]
    assert {"d_loss", "g_loss", *config.penalties, *config.g_penalties} <= rows[0].keys()
    assert all(math.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
    saved = run_dir / "checkpoints" / str(8 * config.n_critic)
    assert (saved / "ema.safetensors").exists() == bool(config.ema.half_life_images)
    assert (saved / "generator.safetensors").exists()
    assert json.loads((run_dir / "environment.json").read_text())["processes"] == processes


@pytest.mark.parametrize("name", KINDS)
def test_two_iterations_at_reduced_width(name, data, tmp_path):
    path = ROOT / "configs" / f"{name}.yaml"
    assert train("--config", reduce(path, data, tmp_path / "runs" / name)) == 0
    check_run(path, tmp_path / "runs" / name, processes=1)


RUNS = """
import os, sys, torch
from accelerate.state import AcceleratorState
from distgan.commands import train
from distgan.distributed.processes import Distributed
from distgan.samples import SampleSpec

# All runs share one process group: another of the same launch would find the addresses of the first in its store.
Distributed.shutdown = Distributed.drain_pending
for path in sys.argv[1:]:
    AcceleratorState._reset_state()  # another precision
    if code := train.main(["--config", path]):
        os._exit(code)
torch.distributed.barrier()
os._exit(0)  # without the interpreter's teardown, in which a rank's threads have aborted once
"""


@pytest.mark.slow
def test_every_config_trains_on_two_processes_at_reduced_width(data, tmp_path):
    """In one launch; the weights of the processes are compared at each line of the log."""
    (tmp_path / "runs.py").write_text(RUNS)
    files = [str(reduce(path, data, tmp_path / "runs" / path.stem)) for path in PATHS]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / "launch/accelerate/cpu.yaml"), str(tmp_path / "runs.py"), *files]
    env = launch_env(PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    for path in PATHS:
        check_run(path, tmp_path / "runs" / path.stem, processes=2)
