"""The house: imports go down only, distribution is unknown below floor 2, every room says what is in it."""

import ast
import re
from pathlib import Path

import pytest

from shared import ROOT

PACKAGE = ROOT / "distgan"
GROUND = {"distgan", "cli", "randomness"}  # errors, the command line's manners, keyed random numbers
FLOORS = {
    **dict.fromkeys(["losses", "ema", "models", "config"], 0),
    "gan": 1,
    **dict.fromkeys(["data", "checkpoint", "report", "processes", "guard", "batchnorm"], 2),
    "run": 3,
    "resume": 4,
    **dict.fromkeys(["train", "sample", "shards", "__main__"], 5),
}
FILES = sorted(PACKAGE.rglob("*.py"))
PURE = {"torch", "collections", "dataclasses", "contextlib", "typing", "copy", "math", "inspect", "json", "pathlib"}


def room(path: Path) -> str:
    inner = path.relative_to(PACKAGE)
    return inner.parts[0].removesuffix(".py") if inner.name != "__init__.py" or len(inner.parts) > 1 else "distgan"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_imported(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("distgan.")} & (set(FLOORS) | GROUND)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    mine = room(path)
    assert mine in FLOORS or mine in GROUND, f"{path}: a room without a floor"
    for other in rooms_imported(path) - {mine}:
        if other in GROUND:
            continue
        assert mine not in GROUND and FLOORS[other] < FLOORS[mine], f"{path}: {mine} imports {other}"


@pytest.mark.parametrize("path", [path for path in FILES if FLOORS.get(room(path), 9) < 2], ids=lambda path: path.name)
def test_below_floor_2_nothing_knows_of_distribution(path):
    words = re.findall(r"(?i)accelerat\w*|\branks?\b|\bprocess(?:es)?\b|\bgather\w*", path.read_text())
    assert not words, f"{path}: {words}"
    allowed = PURE | {"distgan"} | ({"jsonargparse"} if path.name == "config.py" else set())
    foreign = {name.split(".")[0] for name in imports(path)} - allowed
    assert not foreign, f"{path}: {foreign}"
    if path.name == "config.py":
        assert not any(name.split(".")[0] == "torch" for name in imports(path))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_says_what_is_in_the_room(path):
    assert (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0].strip()


def test_the_step_fits_on_a_screen():
    tree = ast.parse((PACKAGE / "gan.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 30, node.name
    assert ".item()" not in (PACKAGE / "gan.py").read_text()


def test_nothing_else_at_the_top():
    listed = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    made = {"data", "runs"} | {name for name in listed if name.endswith(".egg-info")}
    kept = {"distgan", "launch", "configs", "tests", "pyproject.toml", "README.md", "LICENSE", "Makefile"}
    assert listed - made == kept
