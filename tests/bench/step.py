"""Training throughput, data reading included, against the textbook loop, DCGAN-64 at batch 64: `make bench`.

Textbook: the loop of the DCGAN tutorial: ImageFolder of JPEGs and a DataLoader with 2 workers, float32, D not frozen in
the G update, four `.item()` per iteration. Ours: raw shards read by 2 threads, D frozen in the G update, channels-last,
fused Adam, no synchronization with the device, and the EMA of G. The variants are interleaved, a few iterations each,
in one process; a ratio is the median of the per-round ratios, so that load on the machine slows both.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms

from distgan import models
from distgan.config.keys import Config
from distgan.config.read import read_config
from distgan.distributed.processes import Distributed
from distgan.gan.step import train_step
from distgan.samples import SampleSpec
from distgan.training.batches import minibatches_of
from distgan.training.build import build, build_ema


def photos(folder: Path, count: int) -> None:
    """JPEGs with the smoothness of photographs: noise at several scales."""
    random = np.random.default_rng(0)
    (folder / "one").mkdir(parents=True)
    for i in range(count):
        layers = [random.normal(0, 60 / 2**k, (64 // 2**k, 64 // 2**k, 3)) for k in range(4, -1, -1)]
        image = sum(layer.repeat(64 // len(layer), 0).repeat(64 // len(layer), 1) for layer in layers)
        Image.fromarray(np.clip(image + 128, 0, 255).astype(np.uint8)).save(folder / "one" / f"{i}.jpg", quality=95)


def textbook(folder: Path) -> Iterator[None]:
    """Yields after each iteration."""
    steps = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.5,) * 3)]
    dataset = torchvision.datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2, drop_last=True)
    G, D = models.build("dcgan", SampleSpec(64, 64, 3, 0), z_dim=100, options={"width": 64}, seed=0)
    criterion = nn.BCEWithLogitsLoss()
    g_optimizer, d_optimizer = (torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in (G, D))
    while True:
        for real, _ in loader:
            D.zero_grad()
            output = D(real)
            real_error = criterion(output, torch.ones(64))
            real_error.backward()
            output.mean().item()
            fake = G(torch.randn(64, 100))
            output = D(fake.detach())
            fake_error = criterion(output, torch.zeros(64))
            fake_error.backward()
            output.mean().item()
            d_optimizer.step()
            G.zero_grad()
            g_error = criterion(D(fake), torch.ones(64))
            g_error.backward()
            g_optimizer.step()
            _ = (real_error + fake_error).item(), g_error.item()
            yield


def ours(config: Config) -> Iterator[None]:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    processes = Distributed(config)
    data, gan = build(config, processes)
    ema = build_ema(config, gan)
    assert ema is not None
    images_seen = 0
    sums: dict[str, torch.Tensor] = {}
    for batches in minibatches_of(config, processes, data, gan).iterations(0, 10**6, on_read=lambda batch: None):
        scalars = train_step(gan, batches)
        ema.update(gan.raw_G, ema.weight(64, images_seen))
        images_seen += 64
        sums = {name: sums.get(name, 0) + value for name, value in scalars.items()}
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=6)
    args = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        photos(Path(folder) / "images", 1024)
        from distgan.dataset_tool import make
        from distgan.dataset_tool.sources import open_source

        source = open_source(f"{folder}/images", split="train", files=None, labels="auto", samples=1, seed=0)
        make.make(source, Path(folder) / "set", make.Options(), 2)
        words = ["--data.shards", f"{folder}/set", "--data.labels=false"]
        variants = {"textbook float32": textbook(Path(folder) / "images")}
        for name, more in {
            "ours float32": [],
            "ours float32, not channels-last": ["--channels_last=false"],
            "ours bf16": ["--precision=bf16"],
        }.items():
            variants[name] = ours(read_config([*words, *more], prog="bench", description="")[0])
        rates: dict[str, list[float]] = {name: [] for name in variants}
        for round_number in range(args.rounds + 1):
            for name, variant in variants.items():
                began = time.perf_counter()
                for _ in range(args.iterations):
                    next(variant)
                if round_number:  # the first is a warm-up
                    rates[name].append(args.iterations * 64 / (time.perf_counter() - began))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    base = rates["textbook float32"]
    for name, values in rates.items():
        ratio = statistics.median(value / reference for value, reference in zip(values, base, strict=True))
        print(f"{name:<34} {statistics.median(values):7.1f} img/s   x{ratio:.2f}")


if __name__ == "__main__":
    main()
