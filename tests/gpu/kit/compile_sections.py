"""Sections `warm_compile`, which fills the compiler's cache, and `equal`: each mode computes what an eager run does."""

import multiprocessing
import os
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from cases import COMPILED_DCGAN, COMPILED_R3GAN, MODES, Case
from common import (
    BATCH,
    DRY,
    WORK,
    differences_by_line,
    digits_run,
    expect,
    last_line,
    newest_checkpoint,
    record,
    train,
)
from safetensors.torch import load_file
from speed_sections import timed

WORKERS = 1 if DRY else max(1, min(len(COMPILED_DCGAN) + len(COMPILED_R3GAN), len(os.sched_getaffinity(0)) // 3))
"""Processes that compile at once: each keeps a core busy with tracing, and compiles kernels in others."""


def warm_compile() -> None:
    """Compile what is timed later, while other sections test; the code goes to TORCHINDUCTOR_CACHE_DIR.

    Nothing measured here chooses kernels, which the load would distort: runs are deterministic, and the compiler then
    does not compare kernels by time. The times are those of a busy machine.
    """
    cases = [*COMPILED_DCGAN[:1], *COMPILED_R3GAN[:1], *COMPILED_DCGAN[1:], *COMPILED_R3GAN[1:]]
    cases = [case for case in cases if not case.skipped("compiled")]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, mp_context=spawn, max_tasks_per_child=1) as pool:
        started = {pool.submit(compile_case, case): case for case in cases}
        for future in as_completed(started):
            name = f"{started[future].name}, first iteration"
            error = future.exception()
            if error is None:
                record(name, f"{future.result():.0f} s, compiled")
            else:
                expect(name, f"{type(error).__name__}: {last_line(str(error))}", False)


def compile_case(case: Case) -> float:
    """Seconds of the first iteration, in a process of its own."""
    seconds = timed(case.build("compiled")).first_seconds
    case.marker.touch()
    return seconds


ITERATIONS = 20
SMOOTH = [f"--{each}.{word}" for each in ("g_optimizer", "d_optimizer") for word in ("lr=5e-4", "eps=1e-3")]
"""An epsilon as large as gradients are: with a small one Adam makes a step of each gradient that is nothing but rounding,
and float32 in another order of sums differs from itself as much as bf16 does from it."""
LEAST = {"weights": 1e-5, "losses": 1e-4}
"""What counts as equal in any case. A learning rate that is 1 % off makes 4e-3 and 3e-2 (dry, on a CPU)."""
TIMES = 10
"""How many times the difference that another memory layout makes is within tolerance."""


def equal() -> None:
    """Runs in float32 in each mode against an eager one: weights and losses after 20 iterations.

    Another order of sums rounds differently. How much of it is no fault is measured: by a run that differs from the
    eager one in its memory layout alone.
    """
    modes = {name: words for name, words in MODES.items() if not (DRY and "--graph=true" in words)}
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        for name, words in {**modes, "layout": ["--channels_last=false"]}.items():
            fixed = [*SMOOTH, "--tf32=false", "--report.every_images", BATCH, "--checkpoint.every_epochs", 1000]
            train([*digits_run(Path(folder) / name, ITERATIONS * BATCH), *fixed, *words], timeout=180)
        reference = Path(folder) / "eager"
        layout = run_differences(reference, Path(folder) / "layout")
        record("another memory layout, against eager", describe(layout))
        for name in modes:
            if name == "eager":
                continue
            found = run_differences(reference, Path(folder) / name)
            limits = {key: max(LEAST[key], TIMES * layout[key]) for key in layout}
            ok = all(found[key] <= limits[key] for key in found)
            expect(f"{name}, against eager", f"{describe(found)}; tolerance {describe(limits)}", ok)
        for name in set(MODES) - set(modes):
            record(f"{name}, against eager", "skipped: needs CUDA")


def run_differences(a: Path, b: Path) -> dict[str, float]:
    """Of two runs: the distance of their weights relative to their norm, and the largest difference of a loss."""
    return {"weights": weight_difference(a, b), "losses": max(differences_by_line(a, b))}


def weight_difference(a: Path, b: Path) -> float:
    """The largest over the networks, the EMA of G included."""
    paths = [path for path in newest_checkpoint(a).glob("*.safetensors") if "optimizer" not in path.name]
    found = []
    for path in paths:
        first = load_file(path)
        second = load_file(newest_checkpoint(b) / path.name)
        distance = norm(first[name].double() - second[name].double() for name in first)
        found.append(distance / norm(tensor.double() for tensor in first.values()))
    return max(found)


def norm(tensors: Iterable[torch.Tensor]) -> float:
    return float(torch.stack([tensor.square().sum() for tensor in tensors]).sum().sqrt())


def describe(differences: dict[str, float]) -> str:
    return f"weights {differences['weights']:.1e} relative, losses {differences['losses']:.1e}"


SECTIONS = {"warm_compile": warm_compile, "equal": equal}
