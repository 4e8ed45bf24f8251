"""Sections that start runs in processes of their own."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import (
    BATCH,
    DRY,
    NOISE,
    OUT,
    ROOT,
    SHARE_GPU,
    TRAIN,
    WIDTH,
    WORK,
    Skipped,
    compare,
    differences,
    digits_run,
    expect,
    last_line,
    make_datasets,
    nvidia_smi,
    record,
    start_train,
    train,
    train_on_one_gpu,
    wait_for,
)

from helpers import children, metrics

CPU_TESTS = {
    "test_bad_input_is_one_line_and_nothing_is_written": "expects that fp16 is refused",
    "test_the_loss_scale_and_skipped_updates_are_logged": "its GradScaler is for CPUs",
    "test_gradients_that_always_overflow_end_the_run": "its GradScaler is for CPUs",
}
"""Tests that fail on a machine with a GPU by design, and why."""


def environment() -> None:
    """Versions, driver, TF32."""
    for name in ("torch", "torchvision", "accelerate", "webdataset", "safetensors", "jsonargparse", "numpy", "pillow"):
        record(name, importlib.metadata.version(name))
    record("python", sys.version.split()[0])
    record("CPU cores", len(os.sched_getaffinity(0)))
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    record("commit", subprocess.run(describe, capture_output=True, text=True).stdout.strip() or "unknown")
    record("CUDA of torch", torch.version.cuda)
    record("cuDNN", torch.backends.cudnn.version())
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    record("TF32 by torch's default", f"convolutions {tf32[0]}, matrix products {tf32[1]}")
    make_datasets()
    if DRY:
        return record("GPUs", "skipped: needs CUDA")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    names = [f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB, sm_{gpu.major}{gpu.minor})" for gpu in gpus]
    record("GPUs", ", ".join(names))
    record("NCCL", ".".join(map(str, torch.cuda.nccl.version())))  # type: ignore[attr-defined]
    record("driver, memory used, clock, power limit", nvidia_smi("driver_version,memory.used,clocks.sm,power.limit"))


def tests() -> None:
    """The tests where torch.cuda.is_available(): those that run in pytest's process run on the GPU."""
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    for path in ["gan"] if DRY else ["gan", "models", "training", "test_sample.py", "test_train.py"]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "--color=no"]
        command += ["-m", "not slow and not servers and not slurm", str(ROOT / "tests" / path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        print(done.stdout[-20000:], done.stderr[-2000:], sep="\n")
        failed = re.findall(r"^(?:FAILED|ERROR) \S+::(\S+?)(?: - (.*))?$", done.stdout, re.MULTILINE)
        expect(path, last_line(done.stdout), done.returncode in (0, 1) and " passed" in done.stdout)
        for name, reason in failed:
            if name.split("[")[0] in CPU_TESTS:
                record(f"must run on a CPU: {name}", CPU_TESTS[name.split("[")[0]])
            else:
                expect(name, reason or "error", False)


RESUMED: dict[str, list[object]] = {
    "no": ["--precision", "no", "--data.flip", "true"],
    "bf16": ["--precision", "bf16", "--micro_batch", BATCH // 4],
    "fp16": ["--precision", "fp16"],
    "captured": ["--precision", "bf16", "--graph", "true"],
    "both": ["--precision", "bf16", "--graph", "true", "--compile", "true"],
}
"""Runs that are killed and resumed, and their words; both: compiled and captured."""


def resume(name: str) -> None:
    """Killed by SIGKILL and resumed = uninterrupted, by sha256 of every file."""
    images = BATCH * (40 if DRY else 84)
    arguments = RESUMED[name]
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        reference, killed = Path(folder) / "reference", Path(folder) / "killed"
        train(digits_run(reference, images, *arguments))
        process = start_train(digits_run(killed, images, *arguments))

        def saved() -> int:
            return max((int(path.name) for path in (killed / "checkpoints").glob("[0-9]*")), default=0)

        wait_for(lambda: saved() > images // 3, process, 140)  # compilation included
        process.kill()
        process.communicate()
        expect("killed", f"at {saved():,} of {images:,} images", process.returncode == -signal.SIGKILL)
        train(digits_run(killed, images, *arguments))
        found = compare(reference, killed)
        expect("killed and resumed, against uninterrupted", found, found.startswith("equal"))
        rows = metrics(reference)
        for key in ("d_loss", "g_loss"):
            record(f"{key}, first and last line", f"{rows[0][key]:.3f} {rows[-1][key]:.3f}")
        for picture in sorted((reference / "samples").glob("fake-*.png"))[-1:]:
            shutil.copy(picture, OUT / f"fake-{name}.png")
        if name == "fp16":
            loss_scale(Path(folder) / "long", rows)


def loss_scale(run_dir: Path, rows: list[dict]) -> None:
    """fp16's scale and skipped updates, in a short run and past the first growth (2,000 updates: 1,000 iterations)."""
    record("fp16 scale, skipped updates", f"{rows[-1]['fp16_scale']:g}, {sum(r['fp16_skipped_steps'] for r in rows)}")
    train(digits_run(run_dir, BATCH * 2600, "--precision", "fp16", "--checkpoint.every_epochs", 1000), timeout=100)
    rows = metrics(run_dir)
    skipped = sum(row["fp16_skipped_steps"] for row in rows)
    record("fp16 scale, skipped updates, in 2,600 iterations", f"{rows[-1]['fp16_scale']:g}, {skipped} of 5200")


def same() -> None:
    """The same run twice."""
    large = 64 if DRY else 4096
    cases: dict[str, list[object]] = {
        "64 images, labels": ["--batch", 64, "--images", 640, "--data.labels", "true"],
        f"{large:,} images, labels": ["--batch", large, "--images", large * 6, "--data.labels", "true"],
        "1,024 images, bf16": ["--batch", 1024, "--images", 6144, "--precision", "bf16"],
        "256 images, GroupNorm": ["--batch", 256, "--images", 2560, "--model.options.norm", "group"],
        "64 images, deterministic false": ["--batch", 64, "--images", 640, "--deterministic", "false"],
    }
    for name, words in list(cases.items())[: 1 if DRY else None]:
        with tempfile.TemporaryDirectory(dir=WORK) as folder:
            runs = [Path(folder) / name for name in "ab"]
            for run_dir in runs:
                base = ["--data.shards", NOISE, "--run_dir", run_dir, "--model.options.width", max(4, WIDTH // 2)]
                train([*base, "--report.every_images", 1000, *words])
            found = compare(*runs)
            expect(name, found, found.startswith("equal") or "deterministic false" in name)


def share(precision: str) -> None:
    """Two processes on one GPU over gloo, against one process."""
    images = BATCH * (10 if DRY else 30)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:

        def words(name: str, length: int, *more: object) -> list[object]:
            run_dir = Path(folder) / name
            fixed = ["--precision", precision, "--tf32", "false", "--report.every_images", BATCH]
            return digits_run(run_dir, length, *fixed, *more)

        def pair(name: str, length: int, *more: object) -> Path:
            codes, output = train_on_one_gpu(words(name, length, *more), script=SHARE_GPU)
            if any(codes):
                raise RuntimeError(f"exit codes {codes}: {last_line(output)}")
            return Path(folder) / name

        train(words("one", images))
        two = pair("two", images)
        record("losses of one and of two processes differ by", differences(Path(folder) / "one", two))
        if DRY:
            return record("resumed on two processes", "see the section gpus")
        pair("resumed", images // 2)
        found = compare(two, pair("resumed", images))
        expect("resumed on two processes, against uninterrupted", found, found.startswith("equal"))
        if precision == "no":
            pair("local", images, "--sync_batchnorm", "false")
            record("sync_batchnorm false", "runs")


def nccl() -> None:
    """One process in DDP over NCCL = the plain run; SIGTERM; two processes on one GPU (--dry: gloo on the CPU)."""
    images = BATCH * (10 if DRY else 28)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        plain, ddp, stopped = (Path(folder) / name for name in ("plain", "ddp", "stopped"))
        train(digits_run(plain, images))
        done = train(digits_run(ddp, images), processes=1)
        found = compare(plain, ddp)
        expect("one process in DDP, against the plain run", found, found.startswith("equal"))
        lines = {re.sub(r"^\S+ ", "", line)[:160] for line in done.stderr.splitlines() if "arning" in line}
        record("warnings", sorted(lines)[:6] or "none")
        process = start_train(digits_run(stopped, 10**9), processes=1)
        wait_for(lambda: (stopped / "metrics.jsonl").exists(), process)
        start = time.monotonic()
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
        print(output[-2000:])
        line = re.search(r"stopped at .*", output)
        seconds = time.monotonic() - start
        expect("SIGTERM", f"{line[0][:100] if line else last_line(output)}; {seconds:.1f} s", line is not None)
        if DRY:
            return record("two processes on one GPU", "skipped: needs CUDA")
        if torch.cuda.device_count() == 1:
            start = time.monotonic()
            done = train(digits_run(Path(folder) / "two", 640), processes=2, check=False, timeout=60)
            lines = [line for line in done.stderr.splitlines() if "distgan: " in line]
            record(
                "accelerate launch, 2 processes on 1 GPU",
                f"exit code {done.returncode} after {time.monotonic() - start:.0f} s",
            )
            expect("its message", lines[0][:200] if lines else last_line(done.stderr), bool(lines))
        start = time.monotonic()
        try:
            codes, output = train_on_one_gpu(digits_run(Path(folder) / "nodes", 640), script=TRAIN, timeout=60)
        except subprocess.TimeoutExpired:
            return expect("two nodes that share one GPU", "hangs for 60 s", False)
        lines = [line for line in output.splitlines() if line.startswith("distgan: ")]
        record("two nodes that share one GPU", f"exit codes {codes} after {time.monotonic() - start:.0f} s")
        expect("its message on two nodes", lines[0][:250] if lines else last_line(output), bool(lines))


def out_of_memory() -> None:
    """What a user reads when the minibatch does not fit: this process occupies all memory but 2 GB."""
    free, _ = torch.cuda.mem_get_info()
    occupied = torch.empty(max(0, free - 2 * 10**9), dtype=torch.uint8, device="cuda")
    start = time.monotonic()
    done = train(["--data.shards", NOISE, "--batch", 2048, "--dry_run"], check=False, timeout=55)
    lines = done.stderr.strip().splitlines()
    seconds = time.monotonic() - start
    record(
        "exit code, lines of stderr", f"{done.returncode}, {len(lines)}; {seconds:.0f} s; {len(occupied):,} B occupied"
    )
    expect("message", last_line(done.stderr), len(lines) == 1 and "Try --micro_batch" in done.stderr)


def gpus() -> None:
    """What two or more GPUs add, over NCCL (--dry: two processes on the CPU, over gloo)."""
    count = 2 if DRY else torch.cuda.device_count()
    if count < 2:
        raise Skipped("needs two GPUs")
    processes = 1 << (count.bit_length() - 1)  # a divisor of the batch and of the lanes
    images = BATCH * (10 if DRY else 28)
    with tempfile.TemporaryDirectory(dir=WORK) as folder:

        def launch(name: str, length: int = images, *more: object, on: int = processes, **env: str) -> Path:
            fixed = ["--tf32", "false", "--report.every_images", BATCH]
            train(digits_run(Path(folder) / name, length, *fixed, *more), processes=on, env=env)
            return Path(folder) / name

        record("processes", processes)
        many = launch("many")
        record("losses of one and of all processes differ by", differences(launch("one", on=1), many))
        launch("resumed", images // 2)
        found = compare(many, launch("resumed"))
        expect("resumed, against uninterrupted", found, found.startswith("equal"))
        if DRY:
            record("P2P off, NVLS", "skipped: needs CUDA")
        else:
            record("P2P off, against on", compare(many, launch("no-p2p", NCCL_P2P_DISABLE="1")))
            twice = [launch(f"nvls{i}", images, "--deterministic", "false", NCCL_NVLS_ENABLE="1") for i in "ab"]
            record("NVLS on (deterministic false), twice", compare(*twice))
            done = train(digits_run(Path(folder) / "debug", BATCH), processes=processes, env={"NCCL_DEBUG": "INFO"})
            used = sorted({line.strip() for line in re.findall(r"NCCL INFO (.*NVLS.*)", done.stdout + done.stderr)})
            record("NCCL about NVLS", [line[:120] for line in used[:4]] or "nothing")
        lost_process(Path(folder) / "killed", processes, signal.SIGKILL)
        if not DRY:  # tests/test_kills.py does it on CPUs
            lost_process(Path(folder) / "hung", processes, signal.SIGSTOP)


def lost_process(run_dir: Path, processes: int, number: signal.Signals) -> None:
    """Kill or stop the last process; what the others say, and how soon the launcher ends."""
    timeout = 10
    words = [*digits_run(run_dir, 10**9), "--checkpoint.every_epochs", 1]
    process = start_train(words, processes=processes, env={"DISTGAN_TIMEOUT_SECONDS": str(timeout)})
    wait_for(lambda: (run_dir / "metrics.jsonl").exists(), process)
    pid = max(children(process.pid))
    start = time.monotonic()
    os.kill(pid, number)
    wait_for(lambda: False, process, timeout + 15)
    if number == signal.SIGSTOP and Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGCONT)  # so that it receives the launcher's SIGTERM
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    print(output[-6000:])
    line = re.search(r"process \d+: process [\d, ]+ is unreachable.*", output)
    said = line[0][:250] if line else last_line(output)
    name = {signal.SIGKILL: "killed", signal.SIGSTOP: f"hung, time-out {timeout} s"}[number]
    expect(f"a process {name}", f"{said}; {time.monotonic() - start:.0f} s", process.returncode != 0)


SECTIONS = {
    "environment": environment,
    "tests": tests,
    **{f"resume_{name}": lambda name=name: resume(name) for name in RESUMED},
    "same": same,
    **{f"share_{name}": lambda name=name: share(name) for name in ("no", "bf16", "fp16")},
    "nccl": nccl,
    "out_of_memory": out_of_memory,
    "gpus": gpus,
}
