"""`distgan sample FILE_OR_RUN`: a grid of generated images from one .safetensors file or a run folder."""

import sys
from pathlib import Path

if not __package__:  # run by path: import the package from the checkout, not this folder's modules by bare name
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import jsonargparse

from distgan import UsageError, cli
from distgan.cli import PositiveInt


def sample(
    file_or_run: str, count: PositiveInt = 64, seed: int = 0, out: str = "samples.png", label: str | None = None
) -> None:
    """Write a grid of generated images.

    Args:
        file_or_run: A .safetensors file of a generator or an EMA, or a run folder (the EMA of its newest checkpoint).
        count: Number of images.
        seed: Seed of the latents: the same seed gives the same images.
        out: PNG file to write.
        label: Class of all images, by number or name, for a network with labels; default: the classes in turn.
    """
    # Imported after parsing: --help and a mistyped option do not wait for torch.
    import distgan
    from distgan.images import grid, save_png, to_uint8

    G = distgan.load(file_or_run)
    picture = grid(to_uint8(G.sample(count, seed, label).numpy()))
    try:
        save_png(picture, Path(out))
    except OSError as error:
        raise UsageError(f"--out: {out} cannot be written: {error.strerror}") from None
    print(f"{out}: {count} images of {G.path}")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""
    return cli.run(
        lambda words: jsonargparse.auto_cli(sample, args=words, prog="distgan sample", parser_class=cli.Parser), argv
    )


if __name__ == "__main__":
    sys.exit(main())
