"""The formulae of `scaling_model.py` with this machine's constants, against runs on 1, 2 and 4 processes.

    .venv/bin/python tests/bench/scaling.py --measure

Constants: CPU seconds of `train_step` in one process, the share of a core that other jobs leave it, and all-reduces of
two sizes over gloo between two. Nothing is taken from the runs that are predicted. Rounds are interleaved; times are
medians.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.scaling_model import Network, Protocol, Work, all_reduce_seconds

from distgan import models
from distgan.config.keys import OptimizerConfig
from distgan.distributed import batchnorm
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch
from distgan.gan.step import train_step
from distgan.samples import SampleSpec
from distgan.training.optimizers import adam
from helpers import launch, make_dataset, metrics, noise

PROCESSES = (1, 2, 4)
IMAGES = 8
"""Of a process in an iteration."""
WIDTH = 32
LATENT = 100
NORMS = ("batch", "none")
SMALL_BYTES = 2048
"""About the mean of BatchNorm's all-reduces at this width."""
LARGE_BYTES = 4 * 2**20
ITERATIONS = 40
"""Of a run; the first line of its log is left out."""
LOGGED = 5
"""Iterations of a line of the log."""
RUN = (
    *("--precision", "no", "--ema.half_life_images", "0", "--samples.count", "1", "--report.page", "false"),
    *("--samples.every_epochs", "1000", "--checkpoint.every_epochs", "1000"),
)


def network_words(norm: str) -> tuple[str, ...]:
    """The networks of the runs, as options of `distgan train`."""
    return "--model.options.width", str(WIDTH), "--model.latent", str(LATENT), "--model.options.norm", norm


def median_seconds(
    works: Mapping[str, Callable[[], object]], times: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Of `times` calls of each, after two more; they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(times + 2):
        for name, work in works.items():
            start = clock()
            work()
            seconds[name].append(clock() - start)
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def step(norm: str, *, synchronized: bool) -> Callable[[], object]:
    """An iteration of the runs' networks, without data, log and other processes."""
    spec = SampleSpec(64, 64, 3)
    networks = models.build("dcgan", spec, z_dim=LATENT, options={"width": WIDTH, "norm": norm}, seed=0)
    if synchronized:
        networks = tuple(batchnorm.convert(network) for network in networks)
    G, D = (network.to(memory_format=torch.channels_last) for network in networks)  # type: ignore[call-overload]
    gan = GAN(G, D, G, D, adam(G, OptimizerConfig()), adam(D, OptimizerConfig()), LOSSES["bce"])
    images = torch.randn(IMAGES, *spec.shape).to(memory_format=torch.channels_last)
    minibatch = Minibatch(images, torch.randn(IMAGES, LATENT))
    return lambda: train_step(gan, Batches([[minibatch]]))


def measure_constants() -> dict[str, float]:
    """CPU seconds of an iteration in a process group of one, and the other jobs; or seconds of all-reduces."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
        tensors = {"small": torch.ones(SMALL_BYTES // 4), "large": torch.ones(LARGE_BYTES // 4)}
        works = {name: partial(dist.all_reduce, tensor) for name, tensor in tensors.items()}
        return median_seconds(works, 100, time.perf_counter)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    steps = {f"{norm} of one": step(norm, synchronized=False) for norm in NORMS}
    steps |= {f"{norm} of all": step(norm, synchronized=True) for norm in NORMS}
    began = time.perf_counter()
    began_cpu = time.process_time()
    constants = median_seconds(steps, 15, time.process_time)
    share = (time.process_time() - began_cpu) / (time.perf_counter() - began)
    return constants | {"others": max(0.0, cores() / share - 1)}


def cores() -> int:
    return len(os.sched_getaffinity(0))


def gloo(constants: Mapping[str, float]) -> Network:
    """From the all-reduces of two processes: 2 hops of latency, and `size` bytes sent by each."""
    bandwidth = (LARGE_BYTES - SMALL_BYTES) / (constants["large"] - constants["small"])
    hop = max(0.0, constants["small"] - SMALL_BYTES / bandwidth) / 2
    return Network((Protocol(0.0, hop, hop, bandwidth, bandwidth),), processes_per_node=len(PROCESSES) ** 2)


def predict(work: Work, norm: str, processes: int, constants: Mapping[str, float]) -> tuple[float, float, float]:
    """Seconds of compute, of BatchNorm's all-reduces and of the gradients'.

    The processes and as many others as there were share the cores, also for what gloo computes and copies. Nothing
    hides behind backward, which leaves no core idle.
    """
    network = gloo(constants)
    compute = constants[f"{norm} of {'all' if processes > 1 else 'one'}"]
    reduced = (work.batchnorm, [size for buckets in work.gradients for size in buckets])
    sums = [sum(all_reduce_seconds(network, processes, size) for size in sizes) for sizes in reduced]
    here = slower(processes, constants["others"])
    two = slower(2, constants["others"])
    return here * compute, here / two * sums[0], here / two * sums[1]


def slower(processes: int, others: float) -> float:
    """How many times as long work takes if `processes` and `others` share the cores."""
    return max(1.0, (processes + others) / cores())


def run_seconds(processes: int, norm: str, folder: Path) -> float:
    """Of an iteration of a run that `accelerate launch` starts, as its log says."""
    batch = IMAGES * processes
    sizes = ("--batch", batch, "--images", batch * ITERATIONS, "--report.every_images", batch * LOGGED)
    places = ("--data.shards", folder / "set", "--run_dir", folder / "run", "--fresh")
    launch(processes, *places, *sizes, *network_words(norm), *RUN, timeout=600)
    rates = [row["images_per_second"] for row in metrics(folder / "run") if "images_per_second" in row]
    return statistics.median(batch / rate for rate in rates[1:])


def measure(works: Mapping[str, Work], rounds: int) -> None:
    """Print predicted and measured times of iterations, for the work of each of NORMS."""
    constants: dict[str, list[float]] = {}
    measured: dict[tuple[str, int], list[float]] = {}
    loads = []
    with tempfile.TemporaryDirectory() as name:
        make_dataset(Path(name) / "set", noise(1024, size=64))
        for _ in range(rounds):
            for processes in (1, 2):
                done = launch(processes, script=f"../tests/bench/{Path(__file__).name}")
                for key, seconds in json.loads(done.stdout.splitlines()[-1]).items():
                    constants.setdefault(key, []).append(seconds)
            for norm in NORMS:
                for processes in PROCESSES:
                    loads.append(os.getloadavg()[0])
                    measured.setdefault((norm, processes), []).append(run_seconds(processes, norm, Path(name)))
    medians = {key: statistics.median(values) for key, values in constants.items()}
    print(f"load {min(loads):.1f} to {max(loads):.1f}, median {statistics.median(loads):.1f}; {rounds} rounds")
    print(f"other jobs: {medians['others']:.1f}, as seen by one process on {cores()} cores")
    print("; ".join(f"{key} {1e3 * medians[key]:.2f} ms" for key in sorted({*medians} - {"others"})), "\n")
    print("| norm | processes | compute | BatchNorm | gradients | predicted, ms | measured, ms (rounds) | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for (norm, processes), seconds in measured.items():
        parts = predict(works[norm], norm, processes, medians)
        cells = " | ".join(f"{1e3 * part:.1f}" for part in (*parts, sum(parts)))
        found = statistics.median(seconds)
        spread = f"{1e3 * found:.1f} ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f})"
        print(f"| {norm} | {processes} | {cells} | {spread} | {found / sum(parts):.2f} |")


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = measure_constants()
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()
