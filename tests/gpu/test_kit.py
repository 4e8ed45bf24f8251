"""The GPU kit where there is no GPU: every section runs tiny on a CPU, and `make gpu` says that it needs one."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT, launch_env

KIT = ROOT / "tests" / "gpu" / "kit"


def run_kit(out: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(KIT / "report.py"), "--out", str(out), *words]
    return subprocess.run(command, capture_output=True, text=True, env=launch_env(CUDA_VISIBLE_DEVICES=""))


def test_without_a_gpu_it_says_so_in_one_line(tmp_path):
    done = run_kit(tmp_path / "report")
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "report").exists()
    assert done.stderr.startswith("no CUDA GPU (torch ") and done.stderr.count("\n") == 1


def test_an_unknown_section_is_named(tmp_path):
    done = run_kit(tmp_path / "report", "--dry", "--only", "speed,sped")
    assert done.returncode == 2 and "--only: unknown sped; choose from environment, " in done.stderr


def test_the_tests_that_need_a_cpu_exist():
    """The kit names them apart on a machine with a GPU."""
    table = (KIT / "run_sections.py").read_text().split("CPU_TESTS = {")[1].split("}")[0]
    names = re.findall(r'"(test_\w+)":', table)
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert names and all(f"def {name}(" in sources for name in names)


def test_the_bytes_of_collectives_are_read_from_a_profile(monkeypatch):
    """As torch describes an all-reduce of NCCL: a number of elements and the name of their type."""
    monkeypatch.syspath_prepend(str(KIT))
    message_bytes = importlib.import_module("scale_run").message_bytes
    assert message_bytes({"In msg nelems": 1000, "Out msg nelems": 1000, "dtype": "BFloat16"}) == 2000
    assert message_bytes({}) == 0


@pytest.mark.slow
def test_every_section_runs_on_a_cpu(tmp_path):
    done = run_kit(tmp_path, "--dry")
    assert done.returncode == 0, done.stdout + (tmp_path / "log.txt").read_text()[-10000:]
    sections = json.loads((tmp_path / "report.json").read_text())["sections"]
    listed = subprocess.run([sys.executable, str(KIT / "report.py"), "--help"], capture_output=True, text=True).stdout
    names = re.search(r"comma-separated sections: ([\w,\s]+?)\s+--", listed)
    assert names and list(sections) == re.split(r",\s+", names[1].strip())
    assert {name for name, section in sections.items() if section["status"] == "skipped"} == {
        "resume_fp16",
        "resume_captured",
        "resume_both",
        "share_fp16",
        "out_of_memory",
    }
    text = (tmp_path / "report.txt").read_text()
    assert text.startswith("distgan GPU report, dry run on a CPU: ") and "UNEXPECTED" not in text
    assert (tmp_path / "profile.txt").stat().st_size and list(tmp_path.glob("fake-*.png"))
