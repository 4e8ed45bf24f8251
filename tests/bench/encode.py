"""Benchmark: `shards encode` by autoencoders with random weights, one of the size of Stable Diffusion's.

OMP_NUM_THREADS=1 .venv/bin/python tests/bench/encode.py
"""

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from distgan.frozen.vae import load_vae
from helpers import make_dataset, make_latents, make_vae, noise

STABLE_DIFFUSION = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "norm_num_groups": 32,
    "layers_per_block": 2,
}
ROWS = (("tiny", {}, 32, 1024), ("of Stable Diffusion's size", STABLE_DIFFUSION, 256, 4))
"""Name, keys of the config, side of the images, images."""


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process: the machine may be shared."""
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    print("| VAE | parameters | images | encode, images per CPU second | decode | `shards encode`, with its check |")
    for name, config, size, count in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            path = make_vae(Path(folder) / "vae", **config)
            source = make_dataset(Path(folder) / "source", noise(count, size), shards=max(1, count // 128))
            vae = load_vae(path)
            images = torch.rand(count, 3, size, size) * 2 - 1
            latents = vae.encode(images[:16])[:, : vae.channels]
            encode = len(latents) / cpu_seconds(partial(vae.encode, images[:16]))
            decode = len(latents) / cpu_seconds(partial(vae.decode, latents))
            whole = count / cpu_seconds(partial(make_latents, Path(folder) / "set", source, path))
            millions = sum(weight.numel() for weight in vae.parameters()) / 1e6
            rates = f"{encode:.3g} | {decode:.3g} | {whole:.3g}"
            print(f"| {name} | {millions:.2f} M | {count:,} of {size}x{size} | {rates} |", flush=True)


if __name__ == "__main__":
    main()
