"""Data-parallel efficiency on 1 to 1,024 GPUs, on paper: `scaling_model.py` on counted work. Nothing runs on a GPU.

    .venv/bin/python tests/bench/scaling.py              # the tables, in seconds
    .venv/bin/python tests/bench/scaling.py --measure    # the same formulae against runs on this machine, in minutes

Counted: FLOPs and operations, on fake tensors; the all-reduces of DCGAN-64, on a pretended world. Networks without
BatchNorm exchange their gradients only: their buckets are those that DDP would make.
"""

import argparse
import functools
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import scaling_check
from bench.scaling_model import BUCKET_BYTES, CORE_SECONDS, CORES_PER_GPU, FIRST_BUCKET_BYTES, Work, iteration
from gpu import pretend
from gpu.test_pretended_world import exchange

from distgan.config.keys import Config
from distgan.config.read import read_config
from distgan.distributed.batchnorm import GlobalBatchNorm2d
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches
from distgan.gan.step import train_step
from distgan.samples import SampleSpec
from distgan.training.build import build_view
from distgan.training.cost import estimate_cost, fake_gan, fake_minibatch
from distgan.training.scheduled import weighted_penalties
from helpers import ROOT, make_dataset, noise

GPUS = (1, 8, 64, 256, 1024)
WORLD = 8
"""Processes of the pretended world; what one of them exchanges is the same in a larger one (its tests)."""
NO_KERNEL = {"detach", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
"""Operations that are no views and compute nothing."""


class Case(NamedTuple):
    title: str
    config: str
    spec: SampleSpec
    images: int
    """Of a process in an iteration."""
    words: Sequence[str] = ()
    captured: bool = False


DCGAN = ("dcgan-64", SampleSpec(64, 64, 3))
FFHQ = ("r3gan-ffhq-64", SampleSpec(64, 64, 3))
LOCAL = ("--sync_batchnorm", "false")
CASES = (
    Case("DCGAN-64, 64 images per GPU, eager", *DCGAN, 64),
    Case("the same, captured", *DCGAN, 64, captured=True),
    Case("the same, captured, `sync_batchnorm false`", *DCGAN, 64, LOCAL, captured=True),
    Case("DCGAN-64, 256 images per GPU, eager", *DCGAN, 256),
    Case("the same, captured", *DCGAN, 256, captured=True),
    Case("R3GAN FFHQ-64, 32 images per GPU, eager", *FFHQ, 32),
    Case("R3GAN FFHQ-64, 4 images per GPU, eager", *FFHQ, 4),
    Case("the same, captured", *FFHQ, 4, captured=True),
    Case("R3GAN ImageNet-64, 32 images per GPU, eager", "r3gan-imagenet-64", SampleSpec(64, 64, 3, 1000), 32),
)


class Starts(pretend.TorchDispatchMode):
    """Counts the operations that start a kernel: no views, no allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        computes = func.namespace == "aten" and not func.is_view
        self.count += computes and func.overloadpacket.__name__ not in NO_KERNEL
        return func(*args, **(kwargs or {}))


def count_operations(config: Config, spec: SampleSpec) -> tuple[int, GAN]:
    """Operations of an iteration of one process with all penalties due; and its networks, which have no values."""
    with pretend.FakeTensorMode():
        gan, _ = fake_gan(config, spec)
        penalties = weighted_penalties(config, torch.device("cpu"))
        starts = Starts()
        for _ in range(2):  # the first makes the optimizers' state
            minibatch = fake_minibatch(config, spec, config.batch, build_view(config, gan.raw_D).columns)
            fresh = minibatch if LOSSES[config.loss].paired else None
            starts = Starts()
            with starts:
                train_step(gan, Batches([minibatch] * config.n_critic, fresh), penalties)
    return starts.count, gan


def operations_of_global_batchnorm() -> int:
    """How many more operations than BatchNorm2d's its forward and backward are, with their two all-reduces."""
    counts = []
    for kind in (nn.BatchNorm2d, GlobalBatchNorm2d):
        with (
            mock.patch.object(dist, "all_reduce", lambda tensor: None),
            mock.patch.object(dist, "get_world_size", lambda: WORLD),
            pretend.cuda_device(),
        ):
            layer = kind(8).to("cuda:0")
            images = torch.empty(4, 8, 4, 4, device="cuda:0", requires_grad=True)
            with Starts() as starts:
                layer(images).sum().backward()
        counts.append(starts.count)
    return counts[1] - counts[0] + 2


def buckets(network: nn.Module) -> list[int]:
    """Bytes of DDP's buckets in the order of backward, if gradients are ready in reverse order of the parameters."""
    parameters = list(network.parameters())[::-1]
    shapes = [torch.empty(p.shape, device="meta") for p in parameters]
    limits = [FIRST_BUCKET_BYTES, BUCKET_BYTES]
    assign = dist._compute_bucket_assignment_by_size  # pyright: ignore[reportPrivateImportUsage]
    assigned, _ = assign(shapes, limits)
    return [sum(4 * parameters[i].numel() for i in each) for each in assigned]


def count_batchnorm(case: Case) -> list[int]:
    """Bytes of each all-reduce of an iteration that is not of gradients, counted on a pretended world."""
    with tempfile.TemporaryDirectory() as folder:
        images = make_dataset(Path(folder) / "set", noise(8 * WORLD, size=case.spec.height))
        words = ["--config", str(ROOT / "configs" / f"{case.config}.yaml"), *case.words]
        traffic = exchange(WORLD, images, Path(folder), *words)
    return [size for kind, size in traffic.iterations[-1] if kind == "allreduce_"]


def count_work(case: Case) -> Work:
    """Of a process, whether its iterations are captured or not."""
    return count_eager_work(case._replace(title="", captured=False))


@functools.cache
def count_eager_work(case: Case) -> Work:
    words = ["--config", str(ROOT / "configs" / f"{case.config}.yaml"), "--batch", str(case.images), *case.words]
    config, _ = read_config(words, prog="bench", description="")
    operations, gan = count_operations(config, case.spec)
    networks = (gan.raw_D, gan.raw_G)
    has_batchnorm = any(isinstance(m, nn.BatchNorm2d) for network in networks for m in network.modules())
    batchnorm = count_batchnorm(case) if has_batchnorm else []
    synchronized = has_batchnorm and config.sync_batchnorm
    return Work(
        images=case.images,
        flops=estimate_cost(config, case.spec, 1).flops,
        operations=operations,
        operations_of_collectives=len(batchnorm) // 2 * operations_of_global_batchnorm() if synchronized else 0,
        batchnorm=batchnorm,
        batchnorm_in_backward=synchronized,
        gradients=[buckets(network) for network in networks],
    )


def print_predictions(works: Sequence[Work]) -> None:
    print("| GPUs | host | compute | BatchNorm | gradients | ms | images/s | efficiency |")
    print("|---|---|---|---|---|---|---|---|")
    most = 0.0
    for case, work in zip(CASES, works, strict=True):
        print(f"| **{case.title}** | | | | | | | |")
        one = iteration(work, 1, captured=case.captured).seconds
        for gpus in GPUS:
            row = iteration(work, gpus, captured=case.captured)
            parts = (row.host, row.compute, row.batchnorm, row.gradients, row.seconds)
            cells = [f"{1e3 * seconds:.2f}" for seconds in parts]
            rate = work.images / row.seconds
            print(f"| {gpus:,} | {' | '.join(cells)} | {gpus * rate:,.0f} | {one / row.seconds:.2f} |")
            most = max(most, rate)
    print(f"\nreading: at most {most:,.0f} images/s and GPU, {most * CORE_SECONDS:.2f} of its {CORES_PER_GPU} cores\n")


def print_counts(works: Sequence[Work]) -> None:
    print("| | TFLOP | operations | with other processes | all-reduces of BatchNorm, bytes | gradients, bytes |")
    print("|---|---|---|---|---|---|")
    for case, work in zip(CASES, works, strict=True):
        gradients = [size for buckets in work.gradients for size in buckets]
        more = f"{work.operations + work.operations_of_collectives:,}"
        exchanged = [f"{len(sizes)}, {sum(sizes):,}" for sizes in (work.batchnorm, gradients)]
        print(f"| {case.title} | {work.flops / 1e12:.2f} | {work.operations:,} | {more} | {' | '.join(exchanged)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="predict and time runs on this machine")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    logging.disable()
    torch.set_num_threads(1)
    if args.measure:
        check = Case("", *DCGAN, scaling_check.IMAGES)
        words = {norm: (*scaling_check.network_words(norm), "--precision", "no") for norm in scaling_check.NORMS}
        works = {norm: count_work(check._replace(words=each)) for norm, each in words.items()}
        scaling_check.measure(works, args.rounds)
        return
    works = [count_work(case) for case in CASES]
    print_predictions(works)
    print_counts(works)


if __name__ == "__main__":
    main()
