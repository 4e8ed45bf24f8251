"""Packages for a machine without a network: `make gpu-wheels` downloads them, `make gpu` installs them there.

All that distgan and its tests need, without torch, torchvision, numpy and Pillow and what these need.
"""

import argparse
import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
WHEELS = ROOT / ".wheels"
SITE = WHEELS / "site"
PRESENT = ("torch", "torchvision", "numpy", "pillow")


def closure(names: list[str]) -> set[str]:
    """The installed distributions that `names` need, themselves included."""
    from packaging.requirements import Requirement

    waiting, found = [Requirement(name) for name in names], {}
    while waiting:
        wanted = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        extras = found.setdefault(name, set())
        new = {"", *wanted.extras} - extras
        extras |= new
        for requirement in map(Requirement, importlib.metadata.requires(name) or [] if new else []):
            markers = requirement.marker
            if any(markers is None or markers.evaluate({"extra": extra}) for extra in new):
                waiting.append(requirement)
    return set(found)


def download(python_version: str) -> None:
    """Wheels of the installed versions, for x86-64 Linux, into .wheels. Run it in the virtual environment."""
    present = closure(list(PRESENT))
    names = closure(["distgan", "pytest", "hypothesis"]) - present - {"distgan"}
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in sorted(names)]
    WHEELS.mkdir(exist_ok=True)
    for old in WHEELS.glob("*.whl"):
        old.unlink()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python_version]
    for platform in ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"):
        command += ["--platform", platform]
    subprocess.run([*command, "--dest", str(WHEELS), *pinned], check=True)
    files = list(WHEELS.glob("*.whl"))
    size = sum(file.stat().st_size for file in files) / 1e6
    print(f"{len(files)} wheels for Python {python_version}, {size:.1f} MB, in {WHEELS.name}")


def install() -> None:
    """Install .wheels into .wheels/site and use it in this process and its children; nothing in a virtual environment.

    The machine's own packages stay as they are; those in .wheels/site come before them.
    """
    wheels = sorted(map(str, WHEELS.glob("*.whl")))
    if not wheels or sys.prefix == str(ROOT / ".venv"):
        return
    if not SITE.exists() or SITE.stat().st_mtime < max(Path(wheel).stat().st_mtime for wheel in wheels):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
        command += ["--no-deps", "--no-cache-dir", "--upgrade", "--target", str(SITE), *wheels]
        subprocess.run(command, check=True)
        SITE.touch()
    sys.path.insert(0, str(SITE))
    paths = [str(SITE)] + [path for path in [os.environ.get("PYTHONPATH")] if path]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="3.12", help="Python version of the machine (default 3.12)")
    download(parser.parse_args().python)
