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
EARLY = 10
"""Iterations in which rounding has not grown yet."""
RATE = 5e-4
OPTIMIZERS = ("g_optimizer", "d_optimizer")
SMOOTH = [f"--{each}.{word}" for each in OPTIMIZERS for word in (f"lr={RATE}", "eps=1e-3")]
"""An epsilon as large as gradients are: with a small one Adam makes a full step of a gradient that is only rounding."""
CONTROLS = {
    "another memory layout": ["--channels_last=false"],
    "a learning rate 1e-6 higher": [f"--{each}.lr={RATE * (1 + 1e-6)!r}" for each in OPTIMIZERS],
    "a learning rate 1e-6 lower": [f"--{each}.lr={RATE * (1 - 1e-6)!r}" for each in OPTIMIZERS],
}
"""Eager runs with a disturbance of the size of rounding. Several: rounding grows a hundredfold where it turns the sign
of an activation at the kink of a ReLU, and a single control may happen to meet none."""
LEAST = {"early losses": 1e-5, "losses": 1e-4, "weights": 1e-5}
"""What counts as equal in any case."""
TIMES = 3
"""How many times the largest difference of a control is within tolerance."""


def equal() -> None:
    """Runs in float32 in each mode against an eager one: losses of 10 and of 20 iterations, weights after 20.

    How much of a difference is no fault is measured, by controls. The early losses are the sharp test; what differs
    after 20 iterations shows faults that come late.
    """
    modes = {name: words for name, words in MODES.items() if not (DRY and "--graph=true" in words)}
    with tempfile.TemporaryDirectory(dir=WORK) as folder:
        for name, words in (modes | CONTROLS).items():
            fixed = [*SMOOTH, "--tf32=false", "--report.every_images", BATCH, "--checkpoint.every_epochs", 1000]
            train([*digits_run(Path(folder) / name, ITERATIONS * BATCH), *fixed, *words], timeout=180)
        found = {name: run_differences(Path(folder) / "eager", Path(folder) / name) for name in modes | CONTROLS}
    for name in CONTROLS:
        record(f"{name}, against eager", describe(found[name]))
    limits = {key: max(least, *(TIMES * found[name][key] for name in CONTROLS)) for key, least in LEAST.items()}
    record("tolerance", describe(limits))
    for name in MODES:
        if name not in modes:
            record(f"{name}, against eager", "skipped: needs CUDA")
        elif name != "eager":
            ok = all(found[name][key] <= limits[key] for key in limits)
            expect(f"{name}, against eager", describe(found[name]), ok)


def run_differences(a: Path, b: Path) -> dict[str, float]:
    """Of two runs: the largest difference of a loss, early and in all; the relative distance of weights."""
    losses = differences_by_line(a, b)
    return {"early losses": max(losses[:EARLY]), "losses": max(losses), "weights": weight_difference(a, b)}


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
    return ", ".join(f"{name} {value:.1e}" for name, value in differences.items())


SECTIONS = {"warm_compile": warm_compile, "equal": equal}
