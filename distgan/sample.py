"""`distgan sample FILE_OR_RUN`: a grid of generated images from one .safetensors file."""

import sys
from pathlib import Path

if not __package__:  # run by path: import the package from the checkout, not this folder's modules by bare name
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jsonargparse
import numpy as np
import torch
from torch import nn
from torchvision.utils import save_image

from distgan import UsageError, cli, models
from distgan.gan.step import generate
from distgan.rng import rng
from distgan.training.checkpoint import Checkpoints, load_weights
from distgan.training.logger import grid


def sample(
    file_or_run: str, count: int = 64, seed: int = 0, out: str = "samples.png", label: int | None = None
) -> None:
    """Write a grid of generated images.

    Args:
        file_or_run: A generator's or EMA's .safetensors file, or a run folder (its newest whole checkpoint's EMA).
        count: Images.
        seed: Of the latents: the same seed gives the same images.
        out: PNG file to write.
        label: Class of all images, for a network with labels; default: the classes in turn.
    """
    if count < 1:
        raise UsageError(f"--count: {count} is too small; at least 1")
    path = find(Path(file_or_run))
    G, latent, classes = load_generator(path)
    if label is not None and not 0 <= label < classes:
        raise UsageError(f"--label: {label} is not one of the {classes} classes of {path}")
    z = torch.from_numpy(rng(seed, "sample").standard_normal((count, latent), np.float32))
    labels = torch.full((count,), label) if label is not None else torch.arange(count) % max(classes, 1)
    images = generate(G, z, labels if classes else None)
    try:
        save_image(grid(images), out, format="png")
    except OSError as error:
        raise UsageError(f"--out: {out} cannot be written: {error.strerror}") from None
    print(f"{out}: {count} images of {path}")


def find(path: Path) -> Path:
    """The file to sample from."""
    if not path.is_dir():
        return path
    newest = Checkpoints(path / "checkpoints", 0).newest()
    folder = newest or path
    for name in ("ema.safetensors", "generator.safetensors"):
        if (folder / name).is_file():
            return folder / name
    raise UsageError(f"{path} holds no checkpoint")


def load_generator(path: Path) -> tuple[nn.Module, int, int]:
    """G, the dimensions of z, and the number of classes (0 without labels)."""
    weights, about = load_weights(path)
    try:
        model, classes = about["config"]["model"], len(about["classes"])
        name, latent, options = model["name"], model["latent"], model["options"]
        shape = {"size": about["size"], "channels": about["channels"]}
    except (KeyError, TypeError):
        raise UsageError(f"{path}: its metadata does not describe a network of distgan") from None
    G, _ = models.build(name, **shape, classes=classes, latent=latent, options=options, seed=0)
    try:
        G.load_state_dict(weights)
    except RuntimeError:
        raise UsageError(f"{path} does not hold a generator; give generator.safetensors or ema.safetensors") from None
    return G, latent, classes


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    return cli.run(
        lambda words: jsonargparse.auto_cli(sample, args=words, prog="distgan sample", parser_class=cli.Parser), argv
    )


if __name__ == "__main__":
    sys.exit(main())
