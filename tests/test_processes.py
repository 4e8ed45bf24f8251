"""Two processes over gloo against one: the same minibatches, the same gradients, the same run."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from distgan.data.shardset import LocalStorage, open_shardset
from distgan.gan.losses import LOSSES
from helpers import ROOT, TINY, children, launch, launch_env, make_dataset, metrics, noise, start, train, weights

WORDS = [*TINY, "--report.every_images", 16, "--data.flip", "true", "--data.labels", "true"]


@pytest.fixture(scope="module")
def on_two(tiny, bands, tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a run of 20 iterations on two processes, with a norm; trained once."""

    @cache
    def run(norm: str, data: Path = tiny) -> Path:
        folder = tmp_path_factory.mktemp("two") / norm
        words = ["--data.shards", data, *WORDS, "--model.options.norm", norm, "--images", 320, "--run_dir", folder]
        assert "2 process(es), cpu" in launch(2, *words).stdout
        return folder

    return run


@pytest.mark.parametrize(
    ("dataset", "norm"),
    [
        pytest.param("tiny", "none", marks=pytest.mark.slow),
        ("tiny", "batch"),
        pytest.param("bands", "batch", marks=pytest.mark.slow),
    ],
)
def test_two_processes_compute_the_same_as_one(request, tmp_path, on_two, dataset, norm):
    """The losses agree within 1e-5 after 20 iterations, with BatchNorm too: its statistics are those of all images."""
    data = request.getfixturevalue(dataset)
    words = ["--data.shards", data, *WORDS, "--model.options.norm", norm, "--images", 320]
    assert train(*words, "--run_dir", tmp_path / "one") == 0
    one, two = metrics(tmp_path / "one"), metrics(on_two(norm, data))
    assert [row["images"] for row in one] == [row["images"] for row in two] == list(range(16, 321, 16))
    for key in ("d_loss", "g_loss", "d_real", "d_fake"):
        assert max(abs(a[key] - b[key]) for a, b in zip(one, two, strict=True)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_compiled_on_two_processes_the_run_is_the_same(tiny, tmp_path, on_two, norm):
    """With one all-reduce for each network's gradients in place of DDP, and BatchNorm's collectives compiled."""
    words = ["--data.shards", tiny, *WORDS, "--model.options.norm", norm, "--images", 160]
    assert "compiled in" in launch(2, *words, "--compile", "true", "--run_dir", tmp_path / "compiled").stdout
    compiled = metrics(tmp_path / "compiled")
    assert len(compiled) == 10
    for key in ("d_loss", "g_loss", "d_grad_norm", "g_grad_norm"):
        pairs = zip(metrics(on_two(norm)), compiled, strict=False)
        assert max(abs(a[key] - b[key]) for a, b in pairs) < 1e-5


@pytest.mark.parametrize("dataset", ["tiny", pytest.param("bands", marks=pytest.mark.slow)])
def test_resumed_on_two_processes_the_run_is_bit_identical(request, tmp_path, on_two, dataset):
    data = request.getfixturevalue(dataset)
    for images in (80, 320):
        words = ["--data.shards", data, *WORDS, "--model.options.norm", "batch", "--images", images]
        launch(2, *words, "--run_dir", tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(on_two("batch", data))


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "sync"), [(2, "false"), (4, "true")])
def test_resumed_on_as_many_processes_the_run_is_bit_identical(tiny, tmp_path, processes, sync):
    """With BatchNorm statistics of all processes, and with those of each process."""
    words = ["--data.shards", tiny, *TINY, "--sync_batchnorm", sync]
    launch(processes, *words, "--run_dir", tmp_path / "whole", "--epochs", 4)
    for epochs in (1, 4):
        launch(processes, *words, "--run_dir", tmp_path / "parts", "--epochs", epochs)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


@pytest.mark.parametrize("options", [["--multi_gpu", "--num_processes", "2"]])
def test_without_a_gpu_multi_gpu_is_still_one_run(tiny, tmp_path, options):
    """Accelerate alone would start two runs here, each process 0 of 1."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "--main_process_port", "0"]
    words = [
        str(ROOT / "distgan/train.py"),
        "--data.shards",
        tiny,
        "--run_dir",
        tmp_path / "run",
        *TINY,
        "--images",
        16,
    ]
    done = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, env=launch_env(), check=True)
    assert done.stdout.count("2 process(es)") == 1


GRADIENTS = """
import itertools, os, sys, torch
from accelerate import Accelerator
from distgan import models
from distgan.samples import SampleSpec
from distgan.distributed import batchnorm
from distgan.gan.augment import Pipeline
from distgan.gan.finite_difference import FiniteDifference
from distgan.gan.losses import LOSSES
from distgan.gan.penalties import PENALTIES
from distgan.gan.parts import GAN, Batches, Minibatch, WeightedPenalty, unaugmented
from distgan.gan.step import train_step

out, micro_batches, FULL = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "full"
accelerator = Accelerator(cpu=True)
rank, world = accelerator.process_index, accelerator.num_processes
torch.set_default_dtype(torch.float64)
pipeline = Pipeline([("color", 1.0), ("ada_geometry", 0.8), ("cutout", 1.0)])
rows = [(loss, (), "batch", False, True) for loss in LOSSES]
sets = ((), ("r1",), ("r1", "r2"), ("r1_fd", "r2_fd"), ("wgan_gp",))
rows += [(loss, penalties, "none", augment, labels) for loss, penalties, augment, labels in itertools.product(
    LOSSES, sets, (False, True), (False, True)) if augment == labels or FULL]
rows += [("hinge", (penalty,), "spectral", False, True) for penalty in ("r1", "r1_fd")]
result = {}
for loss, penalties, norm, augment, labels in rows:
    if norm in ("batch", "spectral") and micro_batches > 1:
        continue  # statistics are those of a micro-batch; a power iteration belongs to a forward pass
    options = {"width": 4, "norm": "none" if norm == "spectral" else norm, "d_norm": norm}
    G, D = models.build("dcgan", SampleSpec(16, 16, 3, 3 * labels), z_dim=8, options=options, seed=0)
    G, D = G.double(), D.double()
    if world > 1:
        G, D = batchnorm.convert(G), batchnorm.convert(D)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1) for n in (G, D)]
    G, D, g_optimizer, d_optimizer = accelerator.prepare(G, D, *optimizers)
    if world > 1:
        G.broadcast_buffers = D.broadcast_buffers = False
    raw_D = accelerator.unwrap_model(D)
    raw_G = accelerator.unwrap_model(G)
    gan = GAN(G, D, raw_G, raw_D, g_optimizer, d_optimizer, LOSSES[loss], pipeline if augment else unaugmented,
        accelerator.backward, accelerator.no_sync)
    generator = torch.Generator().manual_seed(0)
    difference = FiniteDifference(0.1, 2)  # one of two images, also of the two of a micro-batch
    weighted = {name: WeightedPenalty(PENALTIES[name], 0.1, difference=difference) for name in penalties}
    local = slice(rank * 8 // world, (rank + 1) * 8 // world)
    def draw():
        classes = torch.arange(8) % 3 if labels else None
        rand = lambda *shape: torch.rand(8, *shape, generator=generator)
        columns = [rand(3, 16, 16) * 2 - 1, torch.randn(8, 8, generator=generator), classes, classes,
            *(rand(pipeline.columns) for _ in range(3)), rand(),
            *(torch.randint(2**62, (8,), generator=generator) for _ in range(2))]
        chunks = [c[local].chunk(micro_batches) if c is not None else [None] * micro_batches for c in columns]
        return [Minibatch(*row) for row in zip(*chunks)]
    for _ in range(2):
        d, g = [draw(), draw()], draw()
        train_step(gan, Batches(d, g if gan.loss.paired else None), weighted, 0.7)
    key = ".".join([loss, "+".join(penalties), norm, str(augment), str(labels)])
    for net, module in (("G", accelerator.unwrap_model(G)), ("D", raw_D)):
        for name, parameter in module.named_parameters():
            result[f"{key}.{net}.{name}"] = parameter.detach().clone()
            result[f"{key}.{net}.{name}.grad"] = parameter.grad.clone()
        for name, buffer in module.named_buffers():
            result[f"{key}.{net}.{name}"] = buffer.clone()
if rank == 0:
    torch.save({"world": world, **result}, out)
accelerator.wait_for_everyone()
accelerator.end_training()
os._exit(0)  # without the interpreter's teardown, in which a rank's threads have aborted once
"""


@pytest.mark.parametrize("extent", ["short", pytest.param("full", marks=pytest.mark.slow)])
def test_gradients_of_two_processes_equal_those_of_the_union(tmp_path, extent):
    """Of D and G, for every loss x penalty x augmentation x labels, with one micro-batch and two, and with BatchNorm
    and spectral normalization; after two iterations of n_critic 2."""
    (tmp_path / "gradients.py").write_text(GRADIENTS)
    running, found = {}, {}
    for processes, micro_batches in ((1, 1), (2, 1), (2, 2)):
        out = tmp_path / f"{processes}-{micro_batches}.pt"
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        config = ["--config_file", str(ROOT / "launch/accelerate/cpu.yaml"), "--main_process_port", "0"]
        command += config if processes == 2 else ["--cpu", "--num_processes", "1"]
        command += [str(tmp_path / "gradients.py"), str(out), str(micro_batches), extent]
        running[processes, micro_batches] = subprocess.Popen(command, env=launch_env(PYTHONPATH=str(ROOT)))
    assert [process.wait() for process in running.values()] == [0, 0, 0]
    for processes, micro_batches in running:
        found[processes, micro_batches] = torch.load(tmp_path / f"{processes}-{micro_batches}.pt", weights_only=True)
        assert found[processes, micro_batches].pop("world") == processes
    one = found.pop((1, 1))
    assert {key.split(".")[0] for key in one} == set(LOSSES) and len(one) > 20
    assert set(one) == set(found[2, 1]) > set(found[2, 2])
    for other in found.values():
        for key, value in ((key, one[key]) for key in other):
            torch.testing.assert_close(other[key], value, rtol=1e-6, atol=1e-9, msg=key)


def test_all_processes_stop_at_the_same_iteration(tiny, tmp_path):
    """One of two processes gets the signal: both stop at the same iteration, with a checkpoint, and exit 0."""
    words = [
        "--data.shards",
        tiny,
        "--run_dir",
        tmp_path / "run",
        *TINY,
        "--epochs",
        100_000,
        "--checkpoint.every_epochs",
        10_000,
    ]
    process = start(2, *words)
    try:
        children = wait_for_children(process, tmp_path / "run" / "metrics.jsonl")
        os.kill(children[-1], signal.SIGUSR1)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, out
    stopped = re.search(r"stopped at ([\d,]+) of .*; run the same command to resume", out)
    assert stopped and weights(tmp_path / "run")["images"] == int(stopped[1].replace(",", ""))


def wait_for_children(process: subprocess.Popen, file: Path) -> list[int]:
    """The pids of a launcher's processes by rank, once `file` exists."""
    while process.poll() is None and not file.exists():
        time.sleep(0.02)
    pids = children(process.pid)
    assert pids, process.communicate()[0]

    def rank(pid: int) -> int:
        with open(f"/proc/{pid}/environ") as file:
            return int(dict(item.split("=", 1) for item in file.read().split("\0") if "=" in item)["RANK"])

    return sorted(pids, key=rank)


def test_a_process_lost_before_the_first_iteration_is_named(tiny, tmp_path):
    """The second process exits as soon as the process group is initialized."""
    exits = "import os; from distgan.config.keys import Config; from distgan.distributed.processes import Distributed; "
    exits += "Distributed(Config()); os._exit(3)"
    words = [str(word) for word in (ROOT / "distgan/train.py", "--data.shards", tiny, "--run_dir", tmp_path / "run")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "ACCELERATE_USE_CPU": "true"}
    ranks = []
    for rank, command in enumerate(([sys.executable, *words], [sys.executable, "-c", exits])):
        env = launch_env(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", **address)
        ranks.append(subprocess.Popen(command, env=env, cwd=ROOT, text=True, stderr=subprocess.PIPE))
    error = ranks[0].communicate(timeout=120)[1]
    ranks[1].communicate(timeout=120)
    assert [process.returncode for process in ranks] == [1, 3]
    assert "distgan: process 0: process 1 is unreachable (exited or hung)" in error and "Traceback" not in error


@pytest.mark.slow
def test_bad_input_is_one_line_on_many_processes(tiny, tmp_path):
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY]
    done = launch(3, *words, check=False)
    assert done.returncode != 0 and not (tmp_path / "run").exists()
    lines = [line for line in done.stderr.splitlines() if line.startswith("distgan: ")]
    assert lines == ["distgan: 3 processes do not divide the 16 lanes of data.lanes; 2 or 4 would"]
    assert train(*words, "--images", 16) == 0
    done = launch(2, *words, "--images", 32, "--seed", 4, check=False)  # only rank 0 reads the run folder
    lines = [line for line in done.stderr.splitlines() if line.startswith("distgan: ")]
    assert len(lines) == 1 and "seed 0 -> 4" in lines[0]
    last = [line for line in done.stderr.splitlines() if line.strip("=-")][-1]  # the launcher's summary ends with it
    assert "distgan: run_dir: " in last and "seed 0 -> 4" in last


def test_eight_shards_of_ten_on_two_processes(tiny, tmp_path):
    """All 80 images are read in each epoch, none twice; fewer shards than processes do not hang."""
    epochs = []
    for rank in range(2):
        out = subprocess.run(
            [sys.executable, "-m", "distgan", "shards", "order", str(tiny), "--batch", "16", "--count", "15"]
            + ["--world", "2", "--rank", str(rank)],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout.splitlines()
        epochs.append([line.split() for line in out])
    for epoch in range(3):
        read = [key for rank in epochs for line in rank[5 * epoch : 5 * epoch + 5] for key in line]
        assert len(read) == 80 == len(set(read))
    few = make_dataset(tmp_path / "few", noise(37), shards=1)
    with open(few / "shard-000000.tar", "r+b") as file:  # one budget for corrupt images over all processes
        file.seek(int(open_shardset(LocalStorage(few), "few").columns["offset"][20]))
        file.write(b"corrupt")
    words = ["--data.shards", few, *TINY, "--epochs", 5, "--data.skip_bad", 5]
    assert train(*words, "--run_dir", tmp_path / "one") == 0
    done = launch(2, *words, "--run_dir", tmp_path / "run", timeout=120)
    skipped = [metrics(tmp_path / name)[-1]["skipped"] for name in ("one", "run")]
    assert skipped[0] == skipped[1] > 0
    assert (
        "done: 160 images" in done.stdout
        and json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    )
