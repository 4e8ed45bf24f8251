"""Runs of gat and cat with all that their recipes have: the same on any number of processes, resumed, and in bf16.

Noise levels or a pyramid, stages, penalties by finite differences on a share of the images, augmentations, both terms
with a frozen network, clipped gradients, decoupled decay, learning rates by width, labels; posterior noise of latents.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import computed, launch, metrics, train, weights

# with so large an eps Adam does not take rounding, where a gradient is 0, for a direction
OPTIMIZER = ["lr=1e-3", "base_width=8", "betas=[0,0.99]", "eps=1e-3", "weight_decay=0.1", "decoupled=true", "clip=1"]
RECIPE = [
    *(f"--{network}_optimizer.{key}" for network in "gd" for key in OPTIMIZER),
    *("--model.latent=8", "--batch=16", "--loss=rpgan", "--g_minibatch=same", "--data.labels=true", "--data.flip=true"),
    "--penalties={r1_fd: {weight: 1000, sigma: 0.1, share: 0.5}, r2_fd: {weight: 1000, sigma: 0.1, share: 0.5}}",
    *("--augment=[{mixed_color: 0.5}, translation, cutout, {flip: 0.4}]", "--augment_p=0.8"),
    *("--samples.count=16", "--report.every_images=16", "--report.digests=true"),
]
OPTIONS = "width: 16, depth: 3, heads: 2, d_width: 32, d_depth: 1, d_heads: 2, embedding: 8"
MODELS = {
    "gat": ["--model.name=gat", f"--model.options={{{OPTIONS}, stages: 3, patch: 4}}"],
    "cat": ["--model.name=cat", f"--model.options={{{OPTIONS}, patch: 2}}"],
    "gat of latents": ["--model.name=gat", f"--model.options={{{OPTIONS}, stages: 3, patch: 2}}"],
}
every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(scope="module")
def words(tiny, latents, tiny_vae, tiny_dinov2) -> Callable[..., list[str]]:
    """The words of a run of a model, with more words."""

    def of(name: str, *more: object) -> list[str]:
        data = [f"--data.shards={tiny}"]
        if name.endswith("latents"):
            data = [f"--data.shards={latents}", f"--data.vae={tiny_vae}"]
        terms = {"align": {"network": "dinov2", "path": str(tiny_dinov2), "weight": 0.01}, "consistency": 0.1}
        return [*data, *MODELS[name], *RECIPE, f"--terms={json.dumps(terms)}", *map(str, more)]

    return of


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a run of 4 iterations; trained once.

    A new D is nearly flat, and its features have little to do with the network's: penalties count by their large
    weights, and the term does not drown them by its small one.
    """

    @cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp("whole") / name
        assert train(*words(name, "--images=64", f"--run_dir={folder}")) == 0
        assert all(min(row["r1_fd"], row["r2_fd"], row["align"], row["consistency"]) > 1e-3 for row in metrics(folder))
        return folder

    return run


def newest(run: Path) -> dict[str, torch.Tensor]:
    """The weights of both networks and of the EMA."""
    folder = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = ("generator", "discriminator", "ema")
    return {f"{file}.{key}": t for file in files for key, t in load_file(folder / f"{file}.safetensors").items()}


def check_same(run: Path, expected: Path, tolerance: float) -> None:
    """The same minibatches; losses, norms of gradients and weights agree within the tolerance of their largest."""
    one, two = (
        [{k: row[k] for k in row if k.startswith(("d_", "g_", "r", "align", "consistency"))} for row in metrics(each)]
        for each in (expected, run)
    )
    assert [row.get("digest") for row in metrics(run)] == [row.get("digest") for row in metrics(expected)]
    assert len(one) == 4
    for row, other in zip(one, two, strict=True):
        assert {"r1_fd", "r2_fd", "align", "consistency", "d_grad_norm", "g_grad_norm"} <= row.keys()
        assert other == pytest.approx(row, rel=tolerance, abs=tolerance)
    values = newest(run)
    for key, value in newest(expected).items():
        # biases that cancel in the loss have gradients of rounding only: a tensor counts as at least one learning rate
        assert (values[key] - value).abs().max() <= tolerance * max(float(value.abs().max()), 1e-3), key


@pytest.mark.parametrize(
    "name", [pytest.param("gat", marks=pytest.mark.slow), pytest.param("cat", marks=pytest.mark.slow), "gat of latents"]
)
def test_two_processes_compute_the_same_as_one(words, whole, tmp_path, name):
    done = launch(2, *words(name, "--images=64", f"--run_dir={tmp_path}"))
    assert "2 process(es), cpu" in done.stdout
    check_same(tmp_path, whole(name), 1e-4)


@every_model
def test_micro_batches_add_up(words, whole, tmp_path, name):
    assert train(*words(name, "--images=64", "--micro_batch=4", f"--run_dir={tmp_path}")) == 0
    check_same(tmp_path, whole(name), 1e-4)


@every_model
def test_a_resumed_run_is_bit_identical(words, whole, tmp_path, name):
    for images in (32, 64):
        assert train(*words(name, f"--images={images}", f"--run_dir={tmp_path}")) == 0
    assert weights(tmp_path) == weights(whole(name))
    assert computed(tmp_path)[-1]["digest"] == computed(whole(name))[-1]["digest"]


@pytest.mark.parametrize("name", ["gat", pytest.param("cat", marks=pytest.mark.slow)])
def test_bf16_is_close_to_float32(words, whole, tmp_path, name):
    assert train(*words(name, "--images=64", "--precision=bf16", f"--run_dir={tmp_path}")) == 0
    for row, half in zip(metrics(whole(name)), metrics(tmp_path), strict=True):
        keys = ("d_loss", "g_loss", "align", "consistency")
        assert [half[key] for key in keys] == pytest.approx([row[key] for key in keys], rel=0.05, abs=0.02)
        assert half != row


@pytest.mark.slow
@every_model
def test_compiled_the_run_is_the_same(words, whole, tmp_path, capsys, name):
    assert train(*words(name, "--images=64", "--compile=true", f"--run_dir={tmp_path}")) == 0
    assert "compiled in" in capsys.readouterr().out
    check_same(tmp_path, whole(name), 1e-3)
