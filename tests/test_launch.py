"""launch/: site.env, the choice of the interpreter, PYTHON of several words, and the config for one GPU.

train.sbatch is run by bash, with executables in place of srun and scontrol that do what these do for a job of one task:
for what happens before srun matters. tests/test_slurm.py runs it in Slurm.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import ROOT

SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do shift; done
export SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0 SLURM_NTASKS=1
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[[ $1 == show ]] && echo "$3"
"""
INTERPRETER = """#!/usr/bin/env bash
echo "ran $0 $*"
"""
SHOW = """import os, sys
line = f"word {os.environ.get('WORD')} rank {os.environ['RANK']} of {os.environ['WORLD_SIZE']} {sys.argv[1:]}"
os.write(1, f"{line}\\n".encode())  # in one piece: processes share the file
"""
Run = Callable[..., subprocess.CompletedProcess]


def write_executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def repository(tmp_path) -> Path:
    """A copy of launch/, and `python` first in PATH, which prints how it is called."""
    ignored = shutil.ignore_patterns("site.env", "*.out", "control")
    shutil.copytree(ROOT / "launch", tmp_path / "repository" / "launch", ignore=ignored)
    write_executable(tmp_path / "bin" / "srun", SRUN)
    write_executable(tmp_path / "bin" / "scontrol", SCONTROL)
    write_executable(tmp_path / "bin" / "python", INTERPRETER)
    (tmp_path / "repository" / "show.py").write_text(SHOW)
    return tmp_path / "repository"


def run(repository: Path, *command: str, **env: str) -> subprocess.CompletedProcess:
    """Run a command in `repository` with these variables, in an environment without Slurm, Python or conda."""
    unwanted = ("SLURM", "CONDA", "VIRTUAL_ENV", "PYTHON", "SITE_ENV", "LAUNCHER", "GPUS", "MASTER", "RANK", "WORLD")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    inherited["PATH"] = f"{repository.parent / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(command, cwd=repository, env=inherited | env, capture_output=True, text=True, timeout=120)


def batch(repository: Path, *args: str, **env: str) -> subprocess.CompletedProcess:
    """Run train.sbatch, by default with one process and no launcher."""
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "127.0.0.1", "SLURM_JOB_NUM_NODES": "1", "LAUNCHER": "srun"}
    return run(repository, "bash", "launch/train.sbatch", *args, **(slurm | env))


def messages(done: subprocess.CompletedProcess) -> list[str]:
    """The lines that train.sbatch itself writes, without the time."""
    return [line.split("train.sbatch: ")[1] for line in done.stdout.splitlines() if "train.sbatch: " in line]


def test_unset_variables_in_site_env(repository):
    (repository / "launch/site.env").write_text("export LIBRARIES=/x:$NOT_SET_ANYWHERE\nexport PYTHON=python\n")
    done = batch(repository, "show.py")
    assert done.returncode == 0 and "ran" in done.stdout and messages(done)[0].startswith("python: python (PYTHON: ")
    assert done.stderr == ""


def test_failing_command_in_site_env_is_reported(repository):
    (repository / "launch/site.env").write_text(
        "# modules\nno-such-command cuda/13\n[[ -d /none ]] && export A=1\nif true; then\n    false\nfi\n"
        "source launch/more.env\nyes | head -n 1 >/dev/null\nset -e\nexport B=$(true)\n"
    )
    (repository / "launch/more.env").write_text("false\nfalse\n")
    done = batch(repository, "show.py")
    assert messages(done)[:3] == [
        "launch/site.env:2: exit code 127: no-such-command cuda/13",
        "launch/site.env:5: exit code 1: false",
        "launch/site.env:7: exit code 1: source launch/more.env",
    ]
    assert done.returncode == 0 and messages(done)[3].startswith("python: ") and "ran" in done.stdout


def test_missing_site_env(repository):
    done = batch(repository, "show.py", SITE_ENV="/none/site.env")
    assert done.returncode == 1 and done.stderr == "" and done.stdout.count("\n") == 1
    assert messages(done) == ["SITE_ENV: cannot read /none/site.env"]
    (repository / "other.env").write_text("echo other\n")
    write_executable(repository.parent / "bin" / "other.env", "echo wrong\n")
    assert "other\n" in batch(repository, "show.py", SITE_ENV="other.env").stdout


def test_site_env_adds_arguments(repository):
    (repository / "launch/site.env").write_text('set -- "$@" --data.cache_dir "/local/$SLURM_JOB_ID"\n')
    assert "show.py --batch 8 --data.cache_dir /local/1\n" in batch(repository, "show.py", "--batch", "8").stdout


@pytest.mark.parametrize(
    ("env", "interpreter", "reason"),
    [
        ({}, ".venv/bin/python", ".venv"),
        ({"VIRTUAL_ENV": "active"}, "active/bin/python", "VIRTUAL_ENV"),
        ({"CONDA_PREFIX": "conda", "CONDA_DEFAULT_ENV": "gan"}, "conda/bin/python", "CONDA_PREFIX"),
        ({"CONDA_PREFIX": "conda", "CONDA_DEFAULT_ENV": "base"}, ".venv/bin/python", ".venv"),
        ({"CONDA_PREFIX": "conda", "VIRTUAL_ENV": "active"}, "active/bin/python", "VIRTUAL_ENV"),
        ({"VIRTUAL_ENV": "without-python"}, ".venv/bin/python", ".venv"),
        ({"VIRTUAL_ENV": "active", "PYTHON": "with space/python"}, "with space/python", "PYTHON"),
    ],
)
def test_choice_of_the_interpreter(repository, env, interpreter, reason):
    for folder in (".venv/bin", "active/bin", "conda/bin", "with space"):
        write_executable(repository / folder / "python", INTERPRETER)
    env = {name: value if name == "CONDA_DEFAULT_ENV" else str(repository / value) for name, value in env.items()}
    done = batch(repository, "show.py", "a  b", **env)
    assert messages(done)[0] == f"python: {repository / interpreter} ({reason})" and done.returncode == 0
    assert f"ran {repository / interpreter} show.py a  b\n" in done.stdout
    debug = run(repository, "launch/debug.sh", "--batch", "8", **env)
    assert debug.stderr == f"python: {repository / interpreter} ({reason})\n"
    assert debug.stdout == f"ran {repository / interpreter} distgan/train.py --data.threads 0 --batch 8\n"


def test_python_of_a_module(repository):
    """It is the first in PATH; PYTHON=python selects it where .venv exists."""
    path = repository.parent / "bin" / "python"
    assert messages(batch(repository, "show.py"))[0] == f"python: python (PATH: {path})"
    write_executable(repository / ".venv/bin/python", INTERPRETER)
    (repository / "launch/site.env").write_text("export PYTHON=python\n")
    done = batch(repository, "show.py")
    assert messages(done)[0] == f"python: python (PYTHON: {path})" and f"ran {path} show.py\n" in done.stdout
    (repository / "launch/site.env").write_text("export PYTHON=python-in-the-container\n")
    done = batch(repository, "show.py")
    assert messages(done)[0] == "python: python-in-the-container (PYTHON: not found on this machine)"
    assert done.returncode == 127


@pytest.mark.parametrize("launcher", ["accelerate", "srun"])
def test_python_of_several_words(repository, launcher):
    processes = 2 if launcher == "accelerate" else 1
    env = {"PYTHON": f"env WORD=here {sys.executable}", "LAUNCHER": launcher, "GPUS": str(processes)}
    done = batch(repository, "show.py", "a  b", "*", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1", **env)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [f"word here rank {rank} of {processes} ['a  b', '*']" for rank in range(processes)]
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("word")) == lines


def test_single_gpu_config_starts_one_process(repository):
    """On a machine with four GPUs, as far as the launcher can tell, and without changing which of them are visible."""
    (repository / "site").mkdir()
    (repository / "site" / "sitecustomize.py").write_text(
        "import torch\ntorch.cuda.is_available = lambda: True\ntorch.cuda.device_count = lambda: 4\n"
    )
    (repository / "show.py").write_text(
        "import os\nprint(os.environ.get('RANK'), os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--config_file", "launch/accelerate/single-gpu.yaml", "show.py"]
    done = run(repository, *command, CUDA_VISIBLE_DEVICES="2,3", PYTHONPATH=str(repository / "site"))
    assert done.stdout == "None 2,3\n" and done.returncode == 0, done.stderr
