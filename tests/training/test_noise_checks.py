"""Penalties that add noise: the keys of the noise, and what is refused before a run starts."""

import numpy as np
import pytest
import torch
from torch import nn

from distgan import models
from distgan.config.keys import Config, DataConfig
from distgan.data.order import Lanes
from distgan.errors import UsageError
from distgan.gan.penalties import PENALTIES, Penalty
from distgan.runs.checkpoint import load
from distgan.samples import SampleSpec
from distgan.training.batches import Draws, Needs
from distgan.training.checks import check_config
from distgan.training.noise_checks import check_groups, check_perturbed_d, check_shares
from helpers import TINY, train, weights

NEEDS = Needs(perturbs=frozenset(("real", "fake")))
SPEC = SampleSpec(8, 8, 3, 0)


def keys(processes: int, rank: int, images_seen: int = 64, seed: int = 0) -> dict[str, np.ndarray]:
    """A process's keys of a minibatch of 16 images on 8 lanes, in the order of the minibatch."""
    config = Config(seed=seed, batch=16, data=DataConfig(lanes=8))
    order = Lanes(np.full(8, 100), seed, 8, rank * 8 // processes, (rank + 1) * 8 // processes)
    drawn = Draws(config, order, lambda shares: shares, NEEDS)(images_seen)
    return {name: drawn[f"noise_{name}"] for name in ("real", "fake")}


def test_the_keys_do_not_depend_on_the_number_of_processes():
    whole = keys(1, 0)
    for name in ("real", "fake"):
        assert whole[name].dtype == np.int64 and (whole[name] >= 0).all()
        shared = np.concatenate([keys(2, rank)[name].reshape(2, 4) for rank in range(2)], axis=1)  # slots, lanes
        assert np.array_equal(shared.reshape(-1), whole[name])
    found = [whole["real"], whole["fake"], keys(1, 0, 80)["real"], keys(1, 0, 64, seed=1)["real"]]
    assert len(np.unique(np.concatenate(found))) == 4 * 16


def with_penalties(**penalties: object) -> Config:
    return Config(batch=16, penalties=penalties)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            with_penalties(r1={"weight": 1, "sigma": 0.1}),
            "penalties.r1.sigma: r1 adds no noise .* or take r1_fd, r2_fd",
        ),
        (with_penalties(wgan_gp={"weight": 1, "share": 1}), "penalties.wgan_gp.share: wgan_gp adds no noise"),
        (with_penalties(r1_fd=1, other_fd=1), "penalties.other_fd: r1_fd adds noise to the real images; leave one out"),
    ],
)
def test_options_and_combinations_that_are_refused(monkeypatch, config, message):
    monkeypatch.setitem(PENALTIES, "other_fd", Penalty(PENALTIES["r1_fd"].compute, perturbs="real"))
    monkeypatch.setattr("distgan.gan.penalties.PENALTIES", PENALTIES)
    with pytest.raises(UsageError, match=message):
        check_config(config)


@pytest.mark.parametrize(("precision", "sigma"), [("bf16", 0.1), ("fp16", 0.03)])
def test_half_precision_needs_a_sigma(precision, sigma):
    config = Config(precision=precision, penalties={"r1_fd": 1})
    with pytest.raises(UsageError, match=f"penalties.r1_fd.sigma: {precision} rounds .* sigma: {sigma}}}"):
        check_config(config)
    check_config(Config(precision=precision, penalties={"r1_fd": {"weight": 1, "sigma": sigma}}))


@pytest.mark.parametrize(
    ("micro_batch", "lanes", "world_size", "message"),
    [
        (None, 16, 1, None),
        (4, 16, 4, None),
        (2, 16, 1, "one image of 4 is no whole number of the 2 of micro_batch"),
        (None, 16, 8, "one image of 4 is no whole number of the 2 of a process"),
        (None, 8, 4, "each of which has 2 lanes; give another share, or more data.lanes, at most 16"),
    ],
)
def test_shares_that_depend_on_the_processes_are_refused(micro_batch, lanes, world_size, message):
    config = Config(batch=16, micro_batch=micro_batch, penalties={"r1_fd": {"weight": 1, "share": 0.25}})
    if message is None:
        return check_shares(config, lanes, world_size)
    with pytest.raises(UsageError, match=f"penalties.r1_fd.share: .*{message}"):
        check_shares(config, lanes, world_size)


@pytest.mark.parametrize(
    ("micro_batch", "lanes", "world_size", "group", "message"),
    [
        (None, 16, 1, 4, None),
        (4, 16, 4, 4, None),
        (None, 16, 2, 1, None),
        (
            2,
            16,
            1,
            4,
            "groups of 4 images, which do not divide the 2 of micro_batch; give another group, or 0 for none",
        ),
        (None, 16, 8, 4, "groups of 4 images, which do not divide the 2 of a process"),
        (None, 8, 4, 4, "each of which has 2 lanes; give another group, or more data.lanes, at most 16"),
    ],
)
def test_groups_that_depend_on_the_processes_are_refused(micro_batch, lanes, world_size, group, message):
    D = nn.Linear(1, 1)
    config = Config(batch=16, micro_batch=micro_batch)
    check_groups(config, D, lanes, world_size)
    D.minibatch_group = group  # type: ignore[assignment]
    if message is None:
        return check_groups(config, D, lanes, world_size)
    with pytest.raises(UsageError, match=f"model.options.group: .*{message}"):
        check_groups(config, D, lanes, world_size)


class MinibatchMean(nn.Module):
    """Adds the mean of all images to each."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + images.mean(0, keepdim=True)


class LearnedNoise(nn.Module):
    """Adds noise times a learned strength, which begins at 0, as in StyleGAN."""

    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.strength * torch.randn_like(images)


class OwnNoise(nn.Module):
    """Multiplies each image by a number of a generator of its own."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        return images * torch.rand(len(images), 1, 1, 1, generator=generator)


class D(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(part, nn.Flatten(), nn.Linear(192, 1), nn.Flatten(0))

    def forward(self, images: torch.Tensor, labels: object = None) -> torch.Tensor:
        return self.layers(images)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.Dropout(0.01), "D draws random numbers in training, as dropout does"),
        (LearnedNoise(), "D draws random numbers in training"),
        (OwnNoise(), "D draws random numbers in training"),
        (MinibatchMean(), "D's logit of an image depends on the other images"),
    ],
)
def test_discriminators_that_are_refused(part, message):
    network = D(part)
    before = torch.get_rng_state()
    with pytest.raises(UsageError, match=f"penalties.r1_fd: {message}"):
        check_perturbed_d(with_penalties(r1_fd=1), network, SPEC)
    assert torch.equal(torch.get_rng_state(), before)
    check_perturbed_d(with_penalties(r1=1), network, SPEC)


@pytest.mark.parametrize("group", [2, 4])
def test_a_d_that_sees_groups_of_images_is_refused(group):
    options = {"channel_base": 64, "w_dim": 8, "mapping_layers": 1, "group": group}
    _, D = models.build("stylegan2", SPEC, z_dim=8, options=options, seed=0)
    with pytest.raises(UsageError, match="penalties.r1_fd: D's logit of an image depends on the other images"):
        check_perturbed_d(with_penalties(r1_fd=1), D, SPEC)
    _, D = models.build("stylegan2", SPEC, z_dim=8, options=options | {"group": 0}, seed=0)
    check_perturbed_d(with_penalties(r1_fd=1), D, SPEC)


@pytest.mark.parametrize("norm", ["none", "group", "spectral"])
def test_discriminators_that_are_not(norm):
    """Spectral normalization changes its buffers in each pass: those of the run's D stay."""
    _, D = models.build("dcgan", SampleSpec(16, 16, 3, 3), z_dim=8, options={"width": 4, "d_norm": norm}, seed=0)
    before = {name: tensor.clone() for name, tensor in D.state_dict().items()}
    check_perturbed_d(with_penalties(r1_fd=1), D, SampleSpec(16, 16, 3, 3))
    assert all(torch.equal(before[name], tensor) for name, tensor in D.state_dict().items())


def test_a_run_resumes_and_differs_by_its_noise(tiny, tmp_path):
    """Two epochs at once or one after the other; `sigma` and `share` reach the penalty."""
    words = ["--data.shards", tiny, *TINY, "--model.options.norm", "none", "--penalties"]
    fd = "{r1_fd: {weight: 1, share: 0.5, every: 2}, r2_fd: {weight: 1, sigma: 0.1}}"
    run = {name: ["--run_dir", tmp_path / name, "--epochs"] for name in ("whole", "parts", "all", "fine")}
    assert train(*words, fd, *run["whole"], 2) == 0
    assert train(*words, fd, *run["parts"], 1) == train(*words, fd, *run["parts"], 2) == 0
    assert train(*words, fd.replace("0.5", "1"), *run["all"], 2) == 0
    assert train(*words, fd.replace("0.1", "0.01"), *run["fine"], 2) == 0
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    heads = [load(tmp_path / name / "checkpoints" / "160")[0]["discriminator"]["head.weight"] for name in run]
    assert [torch.equal(heads[0], head) for head in heads] == [True, True, False, False]
