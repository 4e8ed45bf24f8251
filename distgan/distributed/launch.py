"""What the launcher and the machine must be for a run."""

import os
from pathlib import Path

import torch

from distgan.config.keys import Config
from distgan.errors import UsageError


def set_determinism(config: Config) -> None:
    """Choose deterministic kernels and TF32 as the configuration says; before the process group starts."""
    deterministic = config.deterministic
    if deterministic:
        os.environ["NCCL_NVLS_ENABLE"] = "0"  # its reductions differ from call to call (NVIDIA/nccl issue 1497)
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] - a debugging aid
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = config.tf32


def check_devices() -> None:
    """Raises UsageError if a node has more processes than GPUs: Accelerate would put two on one."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    gpus = torch.cuda.device_count()
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    if gpus and processes > gpus and not on_cpu:
        raise UsageError(f"the launch: {processes} processes on a node with {gpus} GPUs; use --num_processes {gpus}")


def check_launcher() -> None:
    """Raises UsageError if `accelerate launch` was told to start several processes and started one.

    With --cpu, and with the MULTI_CPU of `accelerate config`, it starts one process whatever their number, and sets
    MASTER_ADDR alone of the variables of a process group. Known on Linux only.
    """
    if "ACCELERATE_MIXED_PRECISION" not in os.environ or "WORLD_SIZE" in os.environ or "MASTER_ADDR" not in os.environ:
        return
    try:
        launcher = Path(f"/proc/{os.getppid()}/environ").read_bytes()
    except OSError:
        return
    if b"MASTER_ADDR=" not in launcher:  # else it is the user's own
        raise UsageError(
            "the launch: accelerate launch was told to start several processes and started one, as it does on CPUs; "
            "use --config_file launch/accelerate/cpu.yaml --num_processes N"
        )


def unused_launcher_settings(config: Config) -> list[str]:
    """A line for each setting of Accelerate's launcher that the run's configuration overrides."""
    lines = []
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", config.precision):
        lines.append(f"precision {config.precision} overrides mixed_precision {precision} of accelerate launch")
    dynamo = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if dynamo != "no":
        lines.append(f"dynamo backend {dynamo} of accelerate launch is not used; the key is compile")
    return lines
