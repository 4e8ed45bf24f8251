"""`distgan train`: train a GAN, or resume the run in `run_dir`."""

from distgan.commands.run import interrupt_exits, run_distributed
from distgan.config.read import read_config


def train(argv: list[str]) -> None:
    config, flags = read_config(argv, prog="distgan train", description=__doc__ or "")
    # Imported after parsing: --help, --print_config and a mistyped key do not wait for torch.
    with interrupt_exits():
        from distgan.training.run import run_training

    run_training(config, fresh=flags.fresh, dry=flags.dry_run, profile=flags.profile)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for bad input, 1 for a run that failed, 130 after Ctrl-C while it starts."""
    return run_distributed(train, argv)
