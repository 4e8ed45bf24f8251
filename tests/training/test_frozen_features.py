"""The term `align` in a run: what the frozen network sees, how it is recorded, and what is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distgan.config.read import read_config
from distgan.frozen.vision import load_dinov2
from distgan.gan.augment import Pipeline
from distgan.gan.parts import Minibatch
from distgan.models import MODELS, gat
from distgan.samples import SampleSpec
from distgan.sizes import Size
from distgan.training.batches import minibatches_of
from distgan.training.build import build
from distgan.training.cost import estimate_cost
from distgan.training.frozen_features import FrozenFeatures
from helpers import make_arrays, make_dinov2, make_latents, noise, reset_accelerate, train

GAT = ["--model.name", "gat", "--model.options", "{width: 16, depth: 2, heads: 2, embedding: 8, patch: 4, stages: 2}"]
WORDS = [*GAT, "--model.latent", "8", "--batch", "16", "--samples.count", "16", "--images", "16"]


def align(path: object, **more: object) -> list[str]:
    return ["--terms", json.dumps({"align": {"weight": 1, "path": str(path), **more}})]


class Watched(torch.nn.Module):
    """A network that returns the images that it sees."""

    def forward(self, images: Tensor, grid: Size) -> Tensor:
        return images


def seen(images: Tensor, entries: list[tuple[str, float]], u: Tensor | None, pixels: Tensor | None = None) -> Tensor:
    features = FrozenFeatures(Watched(), Size(2, 2), Pipeline(entries))  # pyright: ignore[reportArgumentType]
    return features(Minibatch(images, torch.zeros(len(images), 8), u_real=u, pixels=pixels), torch.tensor(0.5))


def test_the_network_sees_images_moved_as_d_sees_them_and_with_their_colours():
    images = torch.rand(6, 3, 8, 8) * 2 - 1
    entries = [("color", 1.0), ("translation", 1.0), ("cutout", 1.0), ("flip", 0.8)]
    u = torch.rand(6, 4 + 3 + 3 + 1 + 2)  # the last two are of noise levels
    moved = Pipeline([("translation", 1.0), ("flip", 0.8)])
    expected = moved(images, u[:, [4, 5, 6, 10]], 0.5)
    assert not torch.equal(expected, images)
    assert torch.equal(seen(images, entries, u), expected)
    assert torch.equal(seen(images[:, :1], entries, u), expected[:, :1].expand(-1, 3, -1, -1))
    assert torch.equal(seen(torch.rand(6, 4, 4, 4), entries, u, pixels=images), expected)
    assert torch.equal(seen(images, [], None), images)


def opened(*words: object):
    """The data and the networks of a run, and what it is built from."""
    from distgan.distributed.processes import Distributed

    reset_accelerate()
    config = read_config([str(word) for word in words], prog="", description="")[0]
    processes = Distributed(config)
    return config, processes, *build(config, processes)


def test_of_latents_it_sees_the_images_beside_them(latents, tiny_vae, tiny_dinov2):
    small = [
        "--data.vae",
        tiny_vae,
        "--model.options.patch",
        2,
        "--data.flip",
        "true",
        "--loss",
        "rpgan",
        "--penalties.r1_fd",
        1,
    ]
    config, processes, data, gan = opened("--data.shards", latents, *WORDS, *small, *align(tiny_dinov2))
    batches = next(minibatches_of(config, processes, data, gan).iterations(0, 1, on_read=lambda batch: None))
    (batch,) = batches.d[0]
    assert batch.real.shape == (16, 4, 4, 4)
    read = data.reader.read(data.order.ids(0, 16))
    images = torch.from_numpy(read.pixels.numpy()).permute(0, 3, 1, 2) / 127.5 - 1
    assert batch.pixels is not None
    flipped = (batch.pixels - images.flip(3)).abs().flatten(1).amax(1) < 1e-6
    kept = (batch.pixels - images).abs().flatten(1).amax(1) < 1e-6
    assert torch.equal(flipped, ~kept) and 0 < int(flipped.sum()) < 16
    # the same images are flipped as latents
    pairs = torch.from_numpy(read.images.numpy()).float()
    means = (torch.where(flipped[:, None, None, None], pairs[:, 1, :4], pairs[:, 0, :4]) - 0.25) * 0.5
    stds = torch.where(flipped[:, None, None, None], pairs[:, 1, 4:], pairs[:, 0, 4:]) * 0.5
    assert ((batch.real - means) / stds).abs().max() < 6
    targets = gan.frozen_features(batch, 1.0)
    assert targets is not None
    torch.testing.assert_close(targets, load_dinov2(tiny_dinov2, "")(batch.pixels, Size(2, 2)))
    assert batches.g is not None and batches.g[0].pixels is None  # G's update has no use for them


def test_images_beside_latents_are_read_for_a_term_only(latents, tiny_vae):
    small = ["--data.vae", tiny_vae, "--model.options.patch", 2]
    reader = opened("--data.shards", latents, *WORDS, *small)[2].reader
    assert reader.read(np.arange(4)).pixels is None


def digests(run: Path) -> list[str]:
    return [json.loads(line)["digest"] for line in (run / "metrics.jsonl").read_text().splitlines() if "digest" in line]


def test_digests_cover_the_images_beside_latents(latents, tiny_vae, tiny_dinov2, tmp_path):
    small = ["--data.vae", tiny_vae, "--model.options.patch", 2, "--report.digests", "true", "--data.shards", latents]
    assert train(*WORDS, *small, *align(tiny_dinov2), "--run_dir", tmp_path / "with") == 0
    assert train(*WORDS, *small, "--run_dir", tmp_path / "without") == 0
    assert digests(tmp_path / "with") != digests(tmp_path / "without")


def test_d_has_as_many_features_and_the_run_names_the_weights(tiny, tiny_dinov2, tmp_path, capsys):
    words = ["--data.shards", tiny, *WORDS, *align(tiny_dinov2), "--run_dir", tmp_path / "run"]
    assert train(*words) == 0
    sha256 = load_dinov2(tiny_dinov2, "").sha256
    line = f"terms.align: dinov2 {sha256[:12]} of {tiny_dinov2}: 16 features of 2x2 patches, of images resized to 4x4"
    assert line in capsys.readouterr().out
    folder = tmp_path / "run" / "checkpoints" / "16"
    assert load_file(folder / "discriminator.safetensors")["projector.4.weight"].shape[0] == 16
    assert json.loads((folder / "state.json").read_text())["networks"] == {"terms.align.path": sha256}
    assert not any("network" in name for name in load_file(folder / "discriminator.safetensors"))


def test_a_resumed_run_may_find_the_weights_elsewhere_but_not_others(tiny, tmp_path, capsys):
    folder = make_dinov2(tmp_path / "dinov2")
    words = ["--data.shards", tiny, *WORDS, "--run_dir", tmp_path / "run"]
    assert train(*words, *align(folder)) == 0
    moved = folder.rename(tmp_path / "moved")
    assert train(*words, *align(moved), "--images", 32) == 0
    other = make_dinov2(tmp_path / "other", seed=1)
    old, new = (load_dinov2(each, "").sha256[:12] for each in (moved, other))
    capsys.readouterr()
    assert train(*words, *align(other), "--images", 48) == 2
    assert f"another configuration: the weights at terms.align.path {old} -> {new}. Give" in capsys.readouterr().err
    assert train(*words, *align(other), "--images", 48, "--resume.override", "true") == 0
    assert f"override: the weights at terms.align.path {old} -> {new}" in capsys.readouterr().out


def test_its_gradient_reaches_d_alone(tiny, tiny_dinov2):
    _, _, data, gan = opened("--data.shards", tiny, *WORDS, *align(tiny_dinov2))
    assert data.network is not None
    batch = Minibatch(torch.rand(4, 3, 8, 8) * 2 - 1, torch.randn(4, 8), u_real=torch.rand(4, 2))
    targets = gan.frozen_features(batch, 1.0)
    assert targets is not None and targets.shape == (4, 5, 16) and not targets.requires_grad
    optimized = [id(p) for o in (gan.g_optimizer, gan.d_optimizer) for g in o.param_groups for p in g["params"]]
    assert not {id(weight) for weight in data.network.parameters()} & set(optimized)


def test_its_cost_is_counted(tiny_dinov2):
    """Once for each update of D, without a backward pass."""
    network = load_dinov2(tiny_dinov2, "")
    words = ["--n_critic", "2", "--model.options.features", "16", *align(tiny_dinov2)]
    config = read_config([*WORDS, *words], prog="", description="")[0]
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(16, 3, 8, 8), Size(2, 2))
    with_term = estimate_cost(config, SampleSpec(8, 8, 3), 1, network)
    without = estimate_cost(replace(config, terms={}), SampleSpec(8, 8, 3), 1)
    extra = with_term.flops - without.flops
    # without the term nothing goes back through the projector of D: 2,048 wide, 5 tokens, three layers
    projector = 2 * 16 * 5 * (2 * 16 * 2048 + 2048**2)
    assert extra == 2 * (counter.get_total_flops() + 2 * projector)
    assert with_term.memory > without.memory


REFUSALS = {
    "no path": (
        ['--terms={"align": 1}'],
        "terms.align.path is missing: give {weight: 1, network: dinov2, path: FOLDER",
    ),
    "unknown": (align("x", network="vgg"), "terms.align.network: unknown network 'vgg'; choose from dinov2"),
    "no network": (
        ['--terms={"consistency": {"weight": 1, "path": "x"}}'],
        "terms.consistency.path: consistency needs no network; leave it out",
    ),
    "no files": (align("nowhere"), "terms.align.path: nowhere/config.json: No such file or directory"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_names_the_key(tiny, tmp_path, capsys, case):
    words, message = REFUSALS[case]
    assert train("--data.shards", tiny, *WORDS, "--run_dir", tmp_path / "run", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"distgan: {message}") and error.count("\n") == 1, error
    assert not (tmp_path / "run").exists()


def test_networks_without_the_features_are_refused(tiny, tiny_dinov2, tmp_path, capsys, monkeypatch):
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *align(tiny_dinov2), "--model.latent", 8]
    assert train(*words, "--model.name", "dcgan", "--model.options.width", 4) == 2
    assert "terms.align: D returns no features to compare; take the model gat or cat" in capsys.readouterr().err
    assert train(*words, *WORDS, "--model.options.features", 8) == 2
    message = "model.options.features: 8 is not 16, those of the network of terms.align; leave it out"
    assert message in capsys.readouterr().err
    words_without_term = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *WORDS]
    assert train(*words_without_term, "--model.options.features", 8) == 2  # DDP would wait for their gradient
    message = "model.options.features: D returns features, and no term compares them; leave model.options.features out"
    assert message in capsys.readouterr().err

    def without_grid(spec: SampleSpec, *, z_dim: int, features: int = 0):
        G, D = gat.build(spec, z_dim=z_dim, width=16, depth=2, heads=2, embedding=8, stages=2, features=features)
        D.__dict__["grid"] = grid
        return G, D

    monkeypatch.setitem(MODELS, "mine", without_grid)
    for given, message in (
        (None, "terms.align: D has no attribute `grid`, the rows and columns of its tokens"),
        (Size(2, 2), "terms.align: for 2 images D returns features [2, 17, 16]; they must be [2, 5, 16]"),
    ):
        grid = given
        assert train(*words, "--model.name", "mine", "--model.options", "{}") == 2
        assert message in capsys.readouterr().err


def test_images_that_the_network_cannot_see_are_refused(tiny, tiny_vae, tiny_dinov2, tmp_path, capsys):
    make_arrays(tmp_path / "two", noise(32, channels=2))
    make_latents(tmp_path / "latents", tiny, tiny_vae)
    for name, message in (
        ("two", "the network sees grey or RGB images, and those of .* have 2"),
        ("latents", "has no images beside its latents; encode it again with --keep_images"),
    ):
        words = ["--data.shards", tmp_path / name, *WORDS, "--model.options.patch", 2, *align(tiny_dinov2)]
        assert train(*words, "--run_dir", tmp_path / "run") == 2
        assert re.search(f"distgan: terms.align: .*{message}", capsys.readouterr().err)
