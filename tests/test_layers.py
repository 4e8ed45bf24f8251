"""The structure: imports go down only, gan/ and models/ know nothing of processes, every file says what is in it."""

import ast
import re
import sys
from pathlib import Path

import pytest

from distgan.__main__ import COMMANDS
from helpers import ROOT

PACKAGE = ROOT / "distgan"
ORDER = (  # from the bottom up: a unit imports from those in the lines above its own, utilities also from each other
    "errors files hub images locks noise pixels rng samples sizes __init__ environment plugins",
    "config",
    "gan models data distributed frozen",
    "dataset_tool evaluation runs",
    "foreign generators logs page",
    "training",
    "commands",
    "__main__ train evaluate nearest sample ema project publish convert shards plot report",
)
LAYERS = {name: rank for rank, line in enumerate(ORDER) for name in line.split()}
FILES = sorted(PACKAGE.rglob("*.py"))
PURE = [path for path in FILES if path.relative_to(PACKAGE).parts[0] in ("gan", "models")]


def unit(path: Path) -> str:
    """The subpackage or top-level module that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    # `distgan.load` imports when it is called, so that `import distgan` stays instant.
    nodes = tree.body if path == PACKAGE / "__init__.py" else ast.walk(tree)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import absolutely"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    here = unit(path)
    assert here in LAYERS, f"{path}: a file without a layer"
    for name in imports(path):
        there = name.split(".")[1] if name.startswith("distgan.") else None
        if there not in LAYERS or there == here:
            continue
        both_utilities = LAYERS[there] == LAYERS[here] == 0
        assert both_utilities or LAYERS[there] < LAYERS[here], f"{path}: {here} imports {there}"


@pytest.mark.parametrize("path", PURE, ids=lambda path: str(path.relative_to(ROOT)))
def test_gan_and_models_know_nothing_of_processes(path):
    words = re.findall(r"(?i)accelerat\w*|\branks?\b|\bworld_size\b|\bgather\w*", path.read_text())
    assert not words, f"{path}: {words}"
    roots = {name.split(".")[0] for name in imports(path)}
    assert roots <= {"torch", "distgan"} | sys.stdlib_module_names
    assert not {"distgan.distributed.processes", "torch.distributed"} & imports(path)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_first_line_says_what_is_in_the_file(path):
    assert (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0].strip()


def test_the_step_fits_on_a_screen():
    path = PACKAGE / "gan" / "step.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None and node.end_lineno - node.lineno < 30, node.name
    assert ".item()" not in path.read_text()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_attributes_are_assigned_one_a_line(path):
    """Not `self.a, self.b = a, b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            for target in node.targets:
                names = [name for name in getattr(target, "elts", ()) if isinstance(name, ast.Attribute)]
                assert not names, f"{path}:{node.lineno}"


def test_doors_only_open_commands():
    for command in COMMANDS:
        assert len((PACKAGE / f"{command}.py").read_text().splitlines()) < 40


def test_nothing_else_at_the_top_level():
    listed = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    made = {"data", "runs"} | {name for name in listed if name.endswith(".egg-info")}
    kept = {"distgan", "launch", "configs", "tests", "pyproject.toml", "README.md", "LICENSE", "Makefile"}
    assert listed - made == kept
