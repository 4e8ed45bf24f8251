"""What GAT and CAT cost: parameters, FLOPs and memory by estimate; images/s with and without recomputed activations.

python tests/bench/transformers.py             the table of configs/, without running anything
python tests/bench/transformers.py --measure   a narrow gat on this machine
"""

import argparse
import resource
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from distgan import models
from distgan.config.keys import Config
from distgan.config.read import read_config
from distgan.gan.augment import Pipeline
from distgan.gan.finite_difference import FiniteDifference
from distgan.gan.levels import View
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch, WeightedPenalty
from distgan.gan.penalties import PENALTIES
from distgan.gan.step import train_step
from distgan.samples import LatentSpec, SampleSpec
from distgan.training.cost import estimate_cost

CONFIGS = Path(__file__).parents[2] / "configs"
IMAGENET = SampleSpec(32, 32, 4, 1000, dtype="float16", latents=LatentSpec("0" * 64, 0.18215, 0.0, 256, 256, 3))
GPUS = 8
ROUNDS = 5


def with_options(config: Config, **options: object) -> Config:
    """The same with more options of the networks; without features of a frozen network, which is not counted."""
    kept = {name: value for name, value in config.terms.items() if name != "align"}
    return replace(config, terms=kept, model=replace(config.model, options=config.model.options | options))


def describe(path: Path) -> str:
    """A row of the table."""
    config = read_config(["--config", str(path)], prog="", description="")[0]
    depth = 0
    with FakeTensorMode():
        options = with_options(config, features=768).model.options
        G, D = models.build(config.model.name, IMAGENET, z_dim=config.model.latent, options=options, seed=0)
        depth = len(G.blocks)  # type: ignore[arg-type]
        with FlopCounterMode(display=False) as counter:
            G(torch.empty(1, config.model.latent), torch.zeros(1, dtype=torch.long))
    parameters = [models.count_parameters(network) / 1e6 for network in (G, D)]
    costs = [
        estimate_cost(with_options(config, features=768, checkpoint_blocks=blocks), IMAGENET, GPUS)
        for blocks in (0, depth)
    ]
    per_image = costs[0].flops * GPUS / config.batch / 1e12
    total = per_image * (config.images or 0) / 1e6
    memory = " | ".join(f"{cost.memory / 1e9:.1f}" for cost in costs)
    return (
        f"| {path.stem} | {parameters[0]:.1f} / {parameters[1]:.1f} | {counter.get_total_flops() / 2e9:.1f} | "
        f"{per_image:.2f} | {total:.1f} | {memory} |"
    )


def measure() -> None:
    """Images/s and peak memory of a narrow gat, 256 tokens, in turns with and without recomputed activations."""
    batch = 32
    spec = SampleSpec(32, 32, 4, 10)
    times: dict[int, list[float]] = {0: [], 8: []}
    gans = {blocks: build(spec, blocks) for blocks in times}
    minibatch = random_minibatch(spec, batch, gans[0])
    penalties = {
        name: WeightedPenalty(PENALTIES[name], 0.1, difference=FiniteDifference(0.01, 4)) for name in ("r1_fd", "r2_fd")
    }
    for _ in range(ROUNDS + 1):
        for blocks, gan in gans.items():
            start = time.perf_counter()
            train_step(gan, Batches([[minibatch]]), penalties)
            times[blocks].append(time.perf_counter() - start)
    for blocks, seconds in times.items():
        print(f"checkpoint_blocks {blocks}: {batch / statistics.median(seconds[1:]):.1f} images/s")
    ratios = [plain / again for plain, again in zip(times[0][1:], times[8][1:], strict=True)]
    print(f"recomputed / kept: {statistics.median(ratios):.2f} of the images/s")


def build(spec: SampleSpec, blocks: int) -> GAN:
    options = {"width": 128, "depth": 8, "heads": 4, "embedding": 256, "checkpoint_blocks": blocks}
    G, D = models.build("gat", spec, z_dim=64, options=options, seed=0)
    adam = [torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.99), fused=True) for network in (G, D)]
    return GAN(G, D, G, D, adam[0], adam[1], LOSSES["rpgan"], View(Pipeline([]), D.noise_levels))  # type: ignore[arg-type]


def random_minibatch(spec: SampleSpec, n: int, gan: GAN) -> Minibatch:
    torch.manual_seed(0)
    labels = torch.arange(n) % spec.num_classes
    u = torch.rand(3, n, gan.augment.columns)  # type: ignore[attr-defined]
    keys = torch.randint(2**62, (2, n))
    real = torch.randn(n, *spec.shape)
    return Minibatch(real, torch.randn(n, 64), labels, labels, u[0], u[1], u[2], None, keys[0], keys[1])


def peak_memory(blocks: int) -> None:
    """The peak of this process's memory; one for each number of blocks."""
    spec = SampleSpec(32, 32, 4, 10)
    gan = build(spec, blocks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    train_step(gan, Batches([[random_minibatch(spec, 64, gan)]]), {})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"checkpoint_blocks {blocks}: {(peak - before) / 1024:,.0f} MiB for an iteration of 64 images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--memory", type=int, metavar="BLOCKS", help="the peak memory with so many blocks recomputed")
    arguments = parser.parse_args()
    if arguments.memory is not None:
        peak_memory(arguments.memory)
    elif arguments.measure:
        measure()
    else:
        print("| config | parameters G / D, M | G, GFLOPs | TFLOPs an image | run, EFLOPs | GB kept | GB recomputed |")
        print("|---|---|---|---|---|---|---|")
        for path in sorted(CONFIGS.glob("*-imagenet-256-*.yaml")):
            print(describe(path), flush=True)


if __name__ == "__main__":
    main()
