"""`distgan plot RUN [RUN ...]`: curves of losses and other metrics of runs, from their metrics.jsonl."""

from pathlib import Path

from distgan.commands.run import run_command
from distgan.config.parser import Parser
from distgan.errors import UsageError, format_os_error
from distgan.runs.metrics_file import Curve, MetricsFile, metric_curves, scalar_curves

NOT_PLOTTED = {
    "skipped",
    "save_seconds",
    "data_wait_seconds",
    "evaluate_seconds",
    "nearest_seconds",
    "g_lr",
    "d_lr",
}


def read_curves(run: str) -> dict[str, Curve]:
    """The curves of a run's scalars and metrics by name. Raises UsageError."""
    file = MetricsFile(Path(run) / "metrics.jsonl")
    try:
        file.path.stat()
        records = file.records()
    except OSError as error:
        raise UsageError(f"{format_os_error(error)}; give a run folder") from None
    curves = scalar_curves(records) | metric_curves(records)
    return {name: curve for name, curve in curves.items() if name not in NOT_PLOTTED}


def plot(runs: list[str], out: str = "losses.png") -> None:
    """Draw one panel per scalar and one line per run over the images seen.

    Args:
        runs: Run folders.
        out: File to write: .png, .svg or .pdf.
    """
    curves = {run: read_curves(run) for run in runs}
    names = sorted({name for run in curves.values() for name in run})
    if not names:
        raise UsageError(f"{', '.join(runs)}: nothing is logged yet")
    try:
        import matplotlib
    except ImportError:
        raise UsageError("plot: matplotlib is not installed; pip install 'distgan[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(len(names), figsize=(8, 1.8 * len(names)), sharex=True, squeeze=False)
    for axis, name in zip(axes[:, 0], names, strict=True):
        for run in runs:
            if name in curves[run]:
                axis.plot(*curves[run][name], label=run, lw=1)
        axis.set_ylabel(name)
    axes[-1, 0].set_xlabel("images seen")
    axes[0, 0].legend(frameon=False)
    figure.tight_layout()
    try:
        figure.savefig(out)
    except (OSError, ValueError) as error:
        raise UsageError(f"out: {out} cannot be written: {error}") from None
    print(f"{out}: {', '.join(names)} of {len(runs)} run(s)")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""

    def command(argv: list[str]) -> None:
        parser = Parser(prog="distgan plot", description=__doc__)
        parser.add_argument("runs", nargs="+", help="Run folders.")
        parser.add_argument("--out", default="losses.png", help="File to write: .png, .svg or .pdf.")
        options = parser.parse_args(argv)
        plot(options.runs, options.out)

    return run_command(command, argv)
