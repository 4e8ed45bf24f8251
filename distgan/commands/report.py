"""`distgan report RUN [RUN ...]`: a page of a run, or of several side by side with a table, as one HTML file."""

import re
from collections.abc import Sequence
from pathlib import Path

from distgan.commands.run import run_command
from distgan.config.parser import Parser
from distgan.errors import UsageError, format_os_error

RUNS = "Run folders, and folders of which every subfolder that holds a run is taken."
OUT = "File to write. Default: report.html in the run folder, or here for several."
TABLE = "Also write the table of the runs to this file, .md or .csv."


def report(runs: list[str], out: str | None = None, table: str | None = None) -> None:
    """Write the page of the run folders `runs`.

    Args:
        runs: Run folders, or folders of run folders.
        out: File to write. Default: report.html in the run folder, or here for several runs.
        table: File of the table of the runs: .md or .csv.
    """
    # Imported after parsing: --help and a mistyped option do not wait for Pillow and YAML.
    from distgan.page.build import page_of, read_runs
    from distgan.page.export import export_table
    from distgan.page.table import build_table

    folders = find_runs([Path(run) for run in runs])
    path = Path(out) if out else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    found = read_runs(folders)
    if table is not None:
        write("table", Path(table), export_table(build_table(found), Path(table)).encode(errors="replace"))
        print(table)
    page = page_of(found).encode(errors="replace")  # a name that is not UTF-8
    write("out", path, page)
    print(f"{path}: {len(folders)} run(s), {len(page) / 1e6:.1f} MB")


def write(option: str, path: Path, data: bytes) -> None:
    """Raises UsageError, which names the option."""
    from distgan.files import atomic_write

    try:
        atomic_write(path, data)
    except OSError as error:
        raise UsageError(f"{option}: {path} cannot be written: {format_os_error(error)}") from None


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The run folders among `folders`, and in place of a folder of runs those in it, by name.

    Of those, runs that --fresh moved aside (RUN.1, RUN.2, ... beside RUN) are left out, and named.
    """
    found = []
    for folder in folders:
        inside = [] if is_run(folder) or not folder.is_dir() else [path for path in folder.iterdir() if is_run(path)]
        aside = [path for path in inside if path.with_name(re.sub(r"\.\d+$", "", path.name)) in set(inside) - {path}]
        if aside:
            names = ", ".join(sorted(path.name for path in aside))
            print(f"{folder}: moved aside, left out: {names} (give them by name to have them)")
        found += sorted(set(inside) - set(aside), key=natural_order) or [folder]
    return found


def is_run(folder: Path) -> bool:
    return (folder / "metrics.jsonl").is_file() or (folder / "config.yaml").is_file()


def natural_order(path: Path) -> list[tuple[int, str]]:
    """Sorts run-2 before run-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for bad input."""

    def command(argv: list[str]) -> None:
        parser = Parser(prog="distgan report", description=__doc__)
        parser.add_argument("runs", nargs="+", help=RUNS)
        parser.add_argument("--out", help=OUT)
        parser.add_argument("--table", help=TABLE)
        options = parser.parse_args(argv)
        report(options.runs, options.out, options.table)

    return run_command(command, argv)
