"""`distgan report RUN [RUN ...]`: a page of a run, or of several side by side, as one HTML file."""

from pathlib import Path

from distgan.commands.run import run_command
from distgan.config.parser import Parser
from distgan.errors import UsageError, format_os_error


def report(runs: list[str], out: str | None = None) -> None:
    """Write the page of the run folders `runs`.

    Args:
        runs: Run folders.
        out: File to write. Default: report.html in the run folder, or here for several runs.
    """
    # Imported after parsing: --help and a mistyped option do not wait for Pillow and YAML.
    from distgan.files import atomic_write
    from distgan.page.build import build_page

    path = Path(out) if out else Path(runs[0] if len(runs) == 1 else ".") / "report.html"
    page = build_page([Path(run) for run in runs]).encode(errors="replace")
    try:
        atomic_write(path, page)
    except OSError as error:
        raise UsageError(f"out: {path} cannot be written: {format_os_error(error)}") from None
    print(f"{path}: {len(runs)} run(s), {len(page) / 1e6:.1f} MB")


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""

    def command(argv: list[str]) -> None:
        parser = Parser(prog="distgan report", description=__doc__)
        parser.add_argument("runs", nargs="+", help="Run folders.")
        parser.add_argument("--out", help="File to write. Default: report.html in the run folder, or here for several.")
        options = parser.parse_args(argv)
        report(options.runs, options.out)

    return run_command(command, argv)
