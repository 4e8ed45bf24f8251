"""The console script: `distgan train|evaluate|nearest|sample|ema|project|publish|convert|shards|plot|report ...`."""

import importlib
import sys

from distgan import __version__

COMMANDS = {
    "train": "train a GAN, or resume a run",
    "evaluate": "compute metrics of generated images",
    "nearest": "find the training images nearest to generated ones",
    "sample": "generate images",
    "ema": "average G's weights with another width, after the training",
    "project": "find the latents of images",
    "publish": "write a generator for the Hugging Face hub, and send it",
    "convert": "read StyleGAN2 networks of other projects",
    "shards": "write, check and describe datasets",
    "plot": "plot losses and other metrics of runs",
    "report": "write the page of a run, or of several side by side",
}


def main() -> int:
    """Returns the exit code of the command."""
    command, *args = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        return importlib.import_module(f"distgan.{command}").main(args)
    if command == "--version":
        print(f"distgan {__version__}")
        return 0
    if command in ("-h", "--help"):
        commands = "\n".join(f"  distgan {name:<8} {summary}" for name, summary in COMMANDS.items())
        print(f"usage: distgan COMMAND ...\n\n{commands}\n\n`distgan COMMAND --help` shows its options")
        return 0
    print(f"distgan: unknown command {command!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
