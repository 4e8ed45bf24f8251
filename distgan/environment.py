"""The machine, the versions and the commit that a run had."""

import importlib.metadata
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from distgan import __version__

LIBRARIES = ("torch", "torchvision", "accelerate", "webdataset", "safetensors", "jsonargparse", "numpy", "pillow")


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """Hardware, versions and command of this run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "distgan": __version__,
        "commit": git_commit(),
        "command": shlex.join(sys.orig_argv),
        "processes": world_size,
        "device": f"{device.type}: {name}",
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "python": platform.python_version(),
        **(cuda_versions() if device.type == "cuda" else {"cuda": None}),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def cuda_versions() -> dict[str, Any]:
    """Versions of CUDA, the driver and NCCL."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError):
        driver = "unknown"
    nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[attr-defined]
    return {"cuda": torch.version.cuda, "driver": driver, "nccl": nccl}


def git_commit() -> str | None:
    """The commit of the checkout that this code is in, marked -dirty if files were modified; None outside of one."""
    here = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
