"""A run of the section `weak_scaling` on each of the launched processes; the first prints what it measured.

accelerate launch ... scale_run.py "DCGAN-64" eager
"""

import json
import os
import re
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cases import dcgan, r3gan
from common import BATCH, DRY, Stopwatch, run_loop, synchronize
from torch.profiler import ProfilerActivity

PROFILED = 2 if DRY else 10
"""Iterations in a profile."""
SIZES = {"Float": 4, "Half": 2, "BFloat16": 2, "Double": 8, "Long": 8, "Int": 4, "Byte": 1, "Char": 1, "Bool": 1}
"""Bytes of the dtypes that a profile names."""


class Measurement:
    """Rates first, then a profile; the first process ends the run of all, since they train in step."""

    def __init__(self, batch: int, main: bool) -> None:
        self.watch = Stopwatch(batch)
        self.main = main
        activities = [ProfilerActivity.CPU, *([] if DRY else [ProfilerActivity.CUDA])]
        self.profiler = torch.profiler.profile(activities=activities)
        self.profile_ends: int | None = None
        self.seconds = 0.0

    def __call__(self, i: int) -> bool:
        if not self.main:
            return False
        if self.profile_ends is None:
            if self.watch(i):
                synchronize()
                self.profiler.start()
                self.seconds = time.perf_counter()
                self.profile_ends = i + PROFILED
            return False
        if i < self.profile_ends:
            return False
        synchronize()
        self.seconds = (time.perf_counter() - self.seconds) / PROFILED
        self.profiler.stop()
        return True

    def result(self) -> dict[str, Any]:
        """Images per second of all processes, and the collectives of an iteration on this one."""
        events = [event for event in trace(self.profiler) if event.get("ph") == "X"]
        collectives = [event for event in events if is_collective(event)]
        described = [event["args"] for event in events if event["name"] == "record_param_comms"]
        return {
            "rate": self.watch.rate,
            "iteration_milliseconds": self.seconds * 1e3,
            "collectives": len(collectives) / PROFILED,
            "milliseconds": sum(event["dur"] for event in collectives) / 1e3 / PROFILED,
            "bytes": sum(message_bytes(arguments) for arguments in described) / PROFILED,
        }


def is_collective(event: dict[str, Any]) -> bool:
    """NCCL's kernels; on a CPU gloo's operations."""
    if DRY:
        return re.match(r"gloo:", event["name"]) is not None
    return event.get("cat") == "kernel" and "nccl" in event["name"].lower()


def message_bytes(arguments: dict[str, Any]) -> int:
    """Of a collective over NCCL, as the profiler describes it; gloo and a replayed graph describe nothing."""
    return int(arguments.get("In msg nelems", 0)) * SIZES.get(arguments.get("dtype", ""), 0)


def trace(profiler: torch.profiler.profile) -> list[dict[str, Any]]:
    """The events of a profile as Chrome's trace format has them, which alone says how large a collective is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def main() -> None:
    network, mode = sys.argv[1:]
    processes = int(os.environ.get("WORLD_SIZE", 1))
    case = dcgan(BATCH, "bf16") if network == "DCGAN-64" else r3gan("small", "r1 + r2")
    trainer = replace(case, batch=case.batch * processes).build(mode)
    measurement = Measurement(case.batch * processes, trainer.processes.is_main_process)
    run_loop(trainer, measurement)
    if measurement.main:
        print("SCALE " + json.dumps(measurement.result()), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
