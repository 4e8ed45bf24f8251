"""A run on a pretended CUDA device: no iteration makes the host wait, or mixes tensors of host and device."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from gpu import pretend
from torch import Tensor

from distgan import models
from distgan.config.keys import OptimizerConfig
from distgan.config.read import read_config
from distgan.distributed import batchnorm
from distgan.distributed.batchnorm import RunningStatsWarmup
from distgan.distributed.processes import Distributed
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch, Scalars
from distgan.gan.step import train_step
from distgan.logs.log import Terminal
from distgan.runs.checkpoint import Checkpoints
from distgan.samples import SampleSpec
from distgan.training import captured, iteration
from distgan.training.build import build
from distgan.training.due import Actions
from distgan.training.finite import FiniteCheck
from distgan.training.iteration import Outcome
from distgan.training.loop import Trainer
from distgan.training.optimizers import adam
from helpers import TINY, metrics

NEVER = ("--report.every_images", "1000000", "--samples.every_epochs", "1000", "--checkpoint.every_epochs", "1000")

PRECISIONS = ("no", "bf16", "fp16")
CLIP = ("--g_optimizer.clip", "1", "--d_optimizer.clip", "1", "--model.options.norm", "group")


@dataclass
class Watched:
    """A finished run, and when its host waited for the device."""

    trainer: Trainer
    in_iterations: list[list[str]] = field(default_factory=list)
    """Waits in each iteration, and between it and the next if nothing is due there."""
    in_maintenance: list[str] = field(default_factory=list)
    """Waits before an iteration, for the log, a grid or a checkpoint."""
    uploads: list[int] = field(default_factory=list)
    """Copies from host to device in each iteration."""


class NeverStop:
    reason = None

    def requested(self) -> bool:
        return False


@pytest.fixture
def watch(tiny, tmp_path, monkeypatch) -> Callable[..., Watched]:
    """Trains on the pretended device, with more words for the command line; resumes the run of the previous call."""

    def train(*words: str) -> Watched:
        AcceleratorState._reset_state(reset_partial_state=True)
        paths = ["--data.shards", str(tiny), "--run_dir", str(tmp_path)]
        config, _ = read_config([*paths, *TINY, "--images", "80", *words], prog="", description="")
        with (
            pretend.cuda_device() as device,
            monkeypatch.context() as patches,
            contextlib.closing(Checkpoints(tmp_path / "checkpoints")) as checkpoints,
        ):
            processes = Distributed(config)
            stop: Any = NeverStop()
            places = {"terminal": Terminal(True), "checkpoints": checkpoints, "stop": stop}
            trainer = Trainer(config, processes, *build(config, processes), **places)
            if newest := checkpoints.newest():
                trainer.restore(newest)
            watched = Watched(trainer)
            trainer.start()
            follow(device, watched, patches)
            assert trainer.loop() is None
        return watched

    return train


def follow(device: pretend.CudaDevice, watched: Watched, patches: pytest.MonkeyPatch) -> None:
    """Sort what the host does to the device by the parts of the loop."""
    actions_due = Trainer.actions_due
    set_momentum = RunningStatsWarmup.set_momentum
    started: list[int] = []
    device.waits.clear()

    def take() -> list[str]:
        waits = device.waits[:]
        device.waits.clear()
        return waits

    def before_actions(self: Trainer) -> Actions:
        if started:
            watched.in_iterations.append(take())
            watched.uploads.append(device.uploads)
        due = actions_due(self)
        if started and not any(vars(due).values()):
            watched.in_iterations[-1] += take()
        return due

    def before_iteration(self: RunningStatsWarmup, iteration: int) -> None:
        watched.in_maintenance.extend(take())
        device.uploads = 0
        started.append(iteration)
        set_momentum(self, iteration)

    patches.setattr(Trainer, "actions_due", before_actions)
    patches.setattr(RunningStatsWarmup, "set_momentum", before_iteration)


@pytest.mark.parametrize(
    ("precision", "words", "uploads"),
    [
        *((precision, [], 2) for precision in PRECISIONS),
        *((precision, ["--data.labels", "true", "--data.flip", "true"], 5) for precision in ("no", "fp16")),
        *((precision, ["--data.labels", "true", "--micro_batch", "8"], 4) for precision in ("bf16", "fp16")),
        *((precision, ["--channels_last", "false", *CLIP], 2) for precision in ("bf16", "fp16")),
        ("bf16", ["--ema.half_life_images", "0", "--deterministic", "false", "--model.options.norm", "none"], 2),
    ],
)
def test_the_host_never_waits_in_an_iteration(watch, precision, words, uploads):
    watched = watch(*words, *NEVER, "--precision", precision)
    assert watched.in_iterations == [[]] * 5
    assert watched.uploads == [uploads] * 5  # images and latents; labels of both; flips
    assert watched.trainer.processes.device == torch.device("cuda:0")
    assert (watched.trainer.processes.accelerator.scaler is not None) == (precision == "fp16")
    parameters = [p for network in (watched.trainer.gan.raw_G, watched.trainer.gan.raw_D) for p in network.parameters()]
    assert all(p.is_cuda and p.grad is not None and p.grad.stride() == p.stride() for p in parameters)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_host_never_waits_for_a_frozen_network(watch, tiny_dinov2, precision):
    """With noise levels, stages, and images moved alike for both networks."""
    options = "{width: 16, depth: 2, heads: 2, stages: 2, patch: 4, embedding: 8}"
    words = ["--model.name", "gat", "--model.options", options, "--loss", "rpgan", "--g_minibatch", "same"]
    words += ["--terms", f"{{align: {{weight: 1, path: {tiny_dinov2}}}, consistency: 0.1}}"]
    watched = watch(*words, "--augment", "[mixed_color, translation, flip]", *NEVER, "--precision", precision)
    assert watched.in_iterations == [[]] * 5


BETA2 = ("--g_optimizer.betas", "[0, {from: 0.9, to: 0.99, images: 100}]")


@pytest.mark.parametrize(("precision", "words"), [("no", BETA2), ("bf16", BETA2), ("fp16", ())])
def test_the_host_waits_for_a_capture_only(watch, monkeypatch, precision, words):
    """What is captured is run anew in place of a replay: a wait in it could not be captured."""
    captures: list[Callable[[], Outcome]] = []

    class Capture:
        def __call__(self, run: Callable[[], Outcome]) -> tuple[Callable[[], object], Outcome]:
            captures.append(run)
            return run, run()

    monkeypatch.setattr(captured, "CudaCapture", Capture)
    watched = watch(*NEVER, "--graph", "true", "--precision", precision, *words)
    first, *others = watched.in_iterations
    assert others == [[]] * 4 and len(captures) == 1
    # the tensors that the warm-up changes are saved on the host
    assert first and all("captured.py" in wait for wait in first)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_host_waits_for_what_is_due_only(watch, tmp_path, precision):
    """With log, grids and checkpoints at cadences of their own; and so does a resumed run."""
    cadences = ("--report.every_images", "32", "--samples.every_epochs", "0.6", "--checkpoint.every_epochs", "0.8")
    first = watch(*cadences, "--precision", precision)
    second = watch(*cadences, "--precision", precision, "--images", "160")
    assert first.in_iterations == second.in_iterations == [[]] * 5
    assert first.in_maintenance and second.in_maintenance
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [64, 80, 128, 160]
    assert len(list((tmp_path / "samples").iterdir())) == 5  # at 48, 80, 96, 144, 160
    assert [row["images"] for row in metrics(tmp_path)][:3] == [32, 64, 80]
    scaler = json.loads((tmp_path / "checkpoints" / "160" / "state.json").read_text())["scaler"]
    assert (scaler is not None) == (precision == "fp16")


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_global_batchnorm_never_waits(monkeypatch, precision):
    """With the kernels of SyncBatchNorm, whose own forward makes the host wait."""
    reduced = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: reduced.append(tensor.device.type))
    monkeypatch.setattr(dist, "get_world_size", lambda: 8)
    options = {"width": 4}
    networks = models.build("dcgan", SampleSpec(16, 16, 3, 0), z_dim=8, options=options, seed=0)
    with pretend.cuda_device() as device:
        G, D = (batchnorm.convert(n).to(memory_format=torch.channels_last).to("cuda:0") for n in networks)
        gan = GAN(G, D, G, D, adam(G, OptimizerConfig()), adam(D, OptimizerConfig()), LOSSES["bce"])
        minibatch = Minibatch(torch.empty(4, 3, 16, 16, device="cuda:0"), torch.empty(4, 8, device="cuda:0"))
        device.waits.clear()
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            train_step(gan, Batches([[minibatch]]))
    assert device.waits == [] and reduced == ["cuda"] * 10  # forward and backward of two in G and three times one in D


def test_the_loss_scale_is_read_for_the_log_only(watch):
    """Its value, and two counts of updates: at the start of a logging interval and at its end."""
    logged = watch("--precision", "fp16", *NEVER[2:], "--report.every_images", "32")
    assert logged.in_iterations == [[]] * 5
    assert len([wait for wait in logged.in_maintenance if "_local_scalar_dense" in wait]) >= 3


def pinned_ones() -> Tensor:
    return pretend.pin(torch.ones(16, 8))


FAULTS: list[tuple[str, Callable[[Tensor], object]]] = [
    ("_local_scalar_dense", lambda z: z.sum().item()),
    ("_local_scalar_dense", lambda z: z.tolist()),
    ("_local_scalar_dense", lambda z: bool(z.sum() > 0)),
    ("equal", lambda z: torch.equal(z, z)),
    ("blocking copy of [16, 8] from cuda to cpu", lambda z: z.cpu()),
    ("blocking copy of [16, 8] from cuda to cpu", lambda z: pinned_ones().copy_(z)),
    ("blocking copy of [16, 8] from cpu to cuda", lambda z: pinned_ones().to("cuda:0")),
    ("blocking copy of [16, 8] from cpu to cuda", lambda z: z.copy_(pinned_ones())),
    ("pageable copy of [16, 8] from cpu to cuda", lambda z: torch.ones(16, 8).to("cuda:0", non_blocking=True)),
    ("pageable copy of [16, 8] from cpu to cuda", lambda z: z.copy_(torch.ones(16, 8), non_blocking=True)),
    ("torch.cuda.synchronize", lambda z: torch.cuda.synchronize()),
    ("Event.synchronize", lambda z: torch.cuda.Event().synchronize()),
]


def test_a_wait_in_the_step_is_noticed(watch, monkeypatch):
    """One kind in each iteration."""
    step, faults = iteration.train_step, iter(FAULTS)

    def train_step(gan: GAN, batches: Batches, *rest: Any) -> Scalars:
        next(faults)[1](batches.d[0][0].z)
        return step(gan, batches, *rest)

    monkeypatch.setattr(iteration, "train_step", train_step)
    watched = watch(*NEVER, "--images", str(16 * len(FAULTS)))
    for (message, _), waits in zip(FAULTS, watched.in_iterations, strict=True):
        assert waits and all(message in wait and Path(__file__).name in wait for wait in waits), (message, waits)


def test_a_wait_in_a_loss_is_noticed(watch, monkeypatch):
    bce = LOSSES["bce"]

    def d(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        return bce.d(real_logits, fake_logits) * (real_logits.mean().item() * 0 + 1)

    monkeypatch.setitem(LOSSES, "bce", replace(bce, d=d))
    assert [len(waits) for waits in watch(*NEVER).in_iterations] == [1] * 5


def test_labels_in_pageable_memory_are_noticed(watch, monkeypatch):
    def to_pinned(self: Distributed, values: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(values)
        return tensor if values.dtype == np.int64 else tensor.pin_memory()

    monkeypatch.setattr(Distributed, "to_pinned", to_pinned)
    for waits in watch(*NEVER, "--data.labels", "true").in_iterations:
        assert len(waits) == 2 and all("batches.py" in wait and "pageable copy of [16]" in wait for wait in waits)


def test_a_finite_check_that_waits_is_noticed(watch, monkeypatch):
    poll = FiniteCheck.poll
    monkeypatch.setattr(FiniteCheck, "poll", lambda self, wait=False: poll(self, wait=True))
    assert all("Event.synchronize" in " ".join(waits) for waits in watch(*NEVER).in_iterations)


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("cuda:0.*cpu", lambda z: z.sum(1) + torch.zeros(16)),
        ("cuda:0.*cpu", lambda z: torch.nn.functional.linear(z, torch.zeros(8, 8))),
        ("nonzero", lambda z: z[z > 0]),  # its shape is known on the device only
    ],
)
def test_what_a_device_cannot_do_raises(message, change):
    with pretend.cuda_device(), pytest.raises(Exception, match=message):
        change(torch.zeros(16, 8, device="cuda:0"))


def test_a_cpu_tensor_in_the_step_is_noticed(watch, monkeypatch):
    step = iteration.train_step

    def train_step(gan: GAN, batches: Batches, *rest: Any) -> Scalars:
        batch = batches.d[0][0]
        return step(gan, Batches([[batch._replace(real=torch.zeros(batch.real.shape))]]), *rest)

    monkeypatch.setattr(iteration, "train_step", train_step)
    with pytest.raises(RuntimeError, match="cuda:0.*cpu|cpu.*cuda:0"):
        watch(*NEVER)
