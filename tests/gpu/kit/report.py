"""Runs every section that needs a GPU, each in a process of its own with a time limit, and writes one report.

`make gpu`; see tests/gpu/README.md. Exit codes: 0, 1 if a section failed, 2 without a GPU or for a bad argument.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

KIT = Path(__file__).resolve().parent
ROOT = KIT.parents[2]

FIRST = {"environment": 90}
TOGETHER = {
    # early and long: `speed` and `speed_r3gan` find in the compiler's cache what it has compiled by then
    "warm_compile": 215,
    "resume_fp16": 150,
    "tests": 190,
    "nccl": 190,
    "equal": 190,
    "resume_both": 190,
    "same": 150,
    "host_waits": 190,
    "resume_captured": 150,
    "resume_no": 150,
    "resume_bf16": 150,
    "share_no": 150,
    "share_bf16": 150,
    "share_fp16": 150,
}
"""Correctness: sections that run side by side, longest first; the seconds that each may take."""
ALONE = {
    "limits": 25,
    "speed": 200,
    "speed_r3gan": 130,
    "weak_scaling": 260,
    "gpus": 280,
    "profile": 50,
    "memory": 60,
    "batchnorm": 75,
    "out_of_memory": 60,
}
"""What is timed, or needs all memory or all GPUs: one at a time, what answers most first."""
RESERVED = ("limits", "speed", "speed_r3gan")
"""What gets its time however few the cores are; the others share what is left."""
LIMITS = FIRST | TOGETHER | ALONE
DRY_LIMIT = 240
CUDA_ONLY = ("resume_fp16", "resume_captured", "resume_both", "share_fp16", "out_of_memory")


class Report:
    """The results so far; every change is written."""

    def __init__(self, out: Path, dry: bool) -> None:
        self.out, self.dry, self.start = out, dry, time.monotonic()
        self.sections: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        self.log = open(out / "log.txt", "w")  # noqa: SIM115 - open until the process ends

    def add(self, name: str, **values: Any) -> None:
        with self.lock:
            facts = self.sections.setdefault(name, {"status": "running", "seconds": None, "facts": {}})
            facts["facts"] |= values.pop("facts", {})
            facts |= values
            self.write()

    def write_log(self, name: str, line: str) -> None:
        with self.lock:
            self.log.write(f"{name:<15} {line}")
            self.log.flush()

    def write(self) -> None:
        seconds = round(time.monotonic() - self.start)
        device = "dry run on a CPU" if self.dry else "on a GPU"
        ordered = {name: self.sections[name] for name in LIMITS if name in self.sections}
        values = {"dry": self.dry, "host": platform.platform(), "seconds": seconds, "sections": ordered}
        (self.out / "report.json").write_text(json.dumps(values, indent=1) + "\n")
        statuses = [section["status"] for section in ordered.values()]
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in sorted(set(statuses)))
        lines = [f"distgan GPU report, {device}: {counts}; {seconds} s", ""]
        lines += [f"{name:<15} {s['status']:<9} {s['seconds'] or '':>6}" for name, s in ordered.items()]
        for name, section in ordered.items():
            lines += ["", f"{name}: {section['status']}"]
            lines += [f"  {key:<58} {str(value).strip()}" for key, value in section["facts"].items()]
        (self.out / "report.txt").write_text("\n".join(lines) + "\n")

    def run(self, name: str, limit: float) -> None:
        """Run a section for at most `limit` seconds."""
        if self.dry and name in CUDA_ONLY:
            return self.add(name, status="skipped", facts={"skipped": "needs CUDA"})
        if limit < 10:
            return self.add(name, status="skipped", facts={"skipped": f"no time left; --only {name}"})
        self.add(name)
        start = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, __file__, "--section", name],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env=os.environ | {"GPU_KIT_SECONDS": str(limit)},
        )
        timer = threading.Timer(limit, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("FACT "):
                self.add(name, facts=json.loads(line.removeprefix("FACT ")))
            elif line.startswith("STATUS "):
                self.add(name, status=line.split()[1])
            else:
                self.write_log(name, line)
        code, late = process.wait(), not timer.is_alive()
        timer.cancel()
        if late:
            self.add(name, status="failed", facts={"failed": f"ran past {limit:.0f} s"})
        elif code:
            self.add(name, status="failed", facts={"failed": f"exit code {code}, see log.txt"})
        self.add(name, seconds=round(time.monotonic() - start, 1))
        print(f"[{time.monotonic() - self.start:5.0f} s] {name}: {self.sections[name]['status']}", flush=True)


def run_section(name: str) -> int:
    """A section in this process; its facts and its status go to the parent by stdout."""
    import traceback
    import warnings

    import common
    import compile_sections
    import device_sections
    import limit_sections
    import run_sections
    import scaling_sections
    import speed_sections

    modules = (run_sections, device_sections, compile_sections, limit_sections, speed_sections, scaling_sections)
    sections = {name: function for module in modules for name, function in module.SECTIONS.items()}
    warnings.simplefilter("ignore")
    status = "ok"
    try:
        sections[name]()
    except common.Skipped as reason:
        status = "skipped"
        common.record("skipped", reason)
    except Exception as error:  # the other sections run all the same
        traceback.print_exc()
        status = "failed"
        lines = str(error).splitlines() or [""]
        common.record("failed", f"{type(error).__name__}: {lines[0][:250]}; see log.txt")
    print(f"STATUS {'failed' if common.failures else status}", flush=True)
    return 0


def run_all(report: Report, only: set[str], total: float) -> None:
    """The sections in three groups; each gets its limit, or what is left of `total` seconds."""

    def left() -> float:
        return total - (time.monotonic() - report.start)

    def chosen(group: dict[str, int]) -> dict[str, int]:
        limits = {name: limit for name, limit in group.items() if not only or name in only or group is FIRST}
        return dict.fromkeys(limits, DRY_LIMIT) if report.dry else limits

    for name, limit in chosen(FIRST).items():
        report.run(name, min(limit, left()))
    reserved = 0 if report.dry else sum(limit for name, limit in chosen(ALONE).items() if name in RESERVED)
    cores = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(2 if report.dry else max(1, min(8, cores // 2))) as pool:
        for name, limit in chosen(TOGETHER).items():
            pool.submit(lambda name=name, limit=limit: report.run(name, min(limit, left() - reserved)))
    for name, limit in chosen(ALONE).items():
        report.run(name, min(limit, left()))


def dry_groups() -> None:
    """Without a GPU nothing is timed: everything runs side by side, the longest first."""
    together = {name: ALONE[name] for name in ("gpus", "weak_scaling")} | TOGETHER | ALONE
    TOGETHER.clear()
    TOGETHER.update(together)
    ALONE.clear()


def prepare_environment(args: argparse.Namespace, work: str) -> None:
    """Variables of the sections' processes."""
    paths = [str(ROOT), str(ROOT / "tests")] + [path for path in [os.environ.get("PYTHONPATH")] if path]
    # a profile of a CUDA graph can crash where the profiler was taken down before (torch/profiler/profiler.py)
    os.environ |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    # one cache for all sections, empty at the start: the seconds of `warm_compile` are those of a first run
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(work) / "inductor")
    os.environ |= {"OUT": str(args.out), "GPU_KIT_WORK": work, "GPU_KIT_DRY": str(int(args.dry))}
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):  # a machine may not resolve its own name
        os.environ.setdefault(name, "lo")
    if args.dry:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="run everything tiny, on a CPU")
    parser.add_argument("--only", default="", help="comma-separated sections: " + ", ".join(LIMITS))
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu-report", help="folder of the report")
    parser.add_argument("--seconds", type=float, help="for everything (default 580, and 560 more with several GPUs)")
    parser.add_argument("--section", choices=sorted(LIMITS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.section:
        return run_section(args.section)
    only = {name for name in args.only.split(",") if name}
    if unknown := only - LIMITS.keys():
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; choose from {', '.join(LIMITS)}")
    from wheels import install

    install()
    try:
        import torch
    except ImportError:
        print("torch is not installed; see tests/gpu/README.md", file=sys.stderr)
        return 2
    if not args.dry and not torch.cuda.is_available():
        found = f"torch {torch.__version__}, built for CUDA {torch.version.cuda}"
        print(f"no CUDA GPU ({found}); `make gpu ARGS=--dry` runs the same code on a CPU", file=sys.stderr)
        return 2
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.dry:
        dry_groups()
    with tempfile.TemporaryDirectory(prefix="distgan-gpu-") as work:
        prepare_environment(args, work)
        report = Report(args.out, args.dry)
        several = torch.cuda.device_count() > 1
        run_all(report, only, args.seconds or (580 + 560 * several))
    print((args.out / "report.txt").read_text())
    print(f"attach the files in {args.out} to an issue: report.txt, report.json, log.txt, profile.txt, *.png")
    return int(any(section["status"] == "failed" for section in report.sections.values()))


if __name__ == "__main__":
    sys.exit(main())
