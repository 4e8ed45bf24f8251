"""Runs of stylegan2: the same on any number of processes, in micro-batches, resumed, in bf16, compiled and captured.

With noise inputs, mixed styles, groups of images that D compares, labels, a lazy penalty and adaptive augmentation.
"""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from helpers import computed, launch, metrics, train, weights

OPTIONS = "channel_base: 64, channel_max: 12, w_dim: 8, mapping_layers: 2, d_mapping_layers: 2"
RECIPE = [
    *("--model.name=stylegan2", f"--model.options={{{OPTIONS}}}", "--model.latent=8", "--data.labels=true"),
    # with so large an eps Adam does not take rounding, where a gradient is 0, for a direction
    *(f"--{network}_optimizer.{key}" for network in "gd" for key in ("lr=0.01", "betas=[0,0.99]", "eps=1e-3")),
    *("--batch=16", "--penalties={r1: {weight: 1, every: 2}}", "--augment=[cutout]"),
    *("--augment_p={target: 0.0, images: 100}", "--samples.count=16", "--report.every_images=16"),
]


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory) -> Path:
    """The folder of a run of 4 iterations, in which G learned to use its noise."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(*words(tiny, folder)) == 0
    values = newest(folder)
    assert all(abs(float(value)) > 1e-3 for name, value in values.items() if name.endswith("noise_strength"))
    return folder


def words(data: Path, run: Path, *more: str, images: int = 64) -> list[str]:
    return [f"--data.shards={data}", f"--run_dir={run}", *RECIPE, f"--images={images}", *more]


def newest(run: Path) -> dict[str, Tensor]:
    """The weights of both networks and of the EMA."""
    folder = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = ("generator", "discriminator", "ema")
    return {f"{file}.{key}": t for file in files for key, t in load_file(folder / f"{file}.safetensors").items()}


def check_same(run: Path, expected: Path, tolerance: float) -> None:
    """Losses, penalties and weights agree within the tolerance of their largest."""
    assert len(metrics(run)) == len(metrics(expected)) == 4
    for row, other in zip(metrics(expected), metrics(run), strict=True):
        for name in ("d_loss", "g_loss", "r1"):
            assert (name in row) == (name in other)
            assert other.get(name, 0) == pytest.approx(row.get(name, 0), rel=tolerance, abs=tolerance), name
    values = newest(run)
    for name, value in newest(expected).items():
        assert (values[name] - value).abs().max() <= tolerance * max(float(value.abs().max()), 0.1), name


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_processes_compute_the_same_as_one(tiny, whole, tmp_path, processes):
    done = launch(processes, *words(tiny, tmp_path / "run"))
    assert f"{processes} process(es), cpu" in done.stdout
    check_same(tmp_path / "run", whole, 1e-4)


def test_micro_batches_add_up(tiny, whole, tmp_path):
    assert train(*words(tiny, tmp_path / "run", "--micro_batch=4")) == 0
    check_same(tmp_path / "run", whole, 1e-4)


def test_a_resumed_run_is_bit_identical(tiny, whole, tmp_path):
    for images in (16, 64):
        assert train(*words(tiny, tmp_path / "run", images=images)) == 0
    assert weights(tmp_path / "run") == weights(whole)
    assert computed(tmp_path / "run")[-1] == computed(whole)[-1]


def test_groups_that_depend_on_the_processes_are_refused(tiny, tmp_path, capsys):
    assert train(*words(tiny, tmp_path / "run", "--micro_batch=2")) == 2
    assert "model.options.group: D sees groups of 4 images" in capsys.readouterr().err


def test_bf16_is_close_to_float32(tiny, whole, tmp_path):
    assert train(*words(tiny, tmp_path / "run", "--precision=bf16")) == 0
    for row, half in zip(metrics(whole), metrics(tmp_path / "run"), strict=True):
        assert [half[name] for name in ("d_loss", "g_loss")] == pytest.approx(
            [row[name] for name in ("d_loss", "g_loss")], rel=0.05, abs=0.05
        )
        assert half["d_loss"] != row["d_loss"]


def test_captured_the_run_is_the_same(tiny, whole, tmp_path, captures):
    """By a recording of a CUDA graph's operations, which refuses what waits for the host."""
    assert train(*words(tiny, tmp_path / "run", "--graph=true")) == 0
    assert [each.captures for each in captures] == [2]  # with r1 and without
    check_same(tmp_path / "run", whole, 1e-4)


@pytest.mark.slow
def test_compiled_the_run_is_the_same(tiny, whole, tmp_path, capsys):
    assert train(*words(tiny, tmp_path / "run", "--compile=true")) == 0
    assert "compiled in" in capsys.readouterr().out
    check_same(tmp_path / "run", whole, 1e-3)
