"""The section `limits`: how fast the device multiplies matrices and copies; and what share of that a run reaches."""

import functools
import json
import statistics
import time
from collections.abc import Callable

import torch
from cases import ARITHMETIC, Case
from common import DEVICE, DRY, WORK, record, synchronize

SIDE = 256 if DRY else 8192
"""Of the square matrices that are multiplied."""
COPIED = 10**6 if DRY else 10**9
"""Bytes that are copied."""
FILE = WORK / "limits.json"
DTYPES = {"float32": torch.float32, "TF32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def limits() -> None:
    """The rates of the device, against which the sections on speed compare what they reach."""
    rates = measure_rates()
    FILE.write_text(json.dumps(rates))
    for name in ARITHMETIC:
        record(f"product of two {SIDE}x{SIDE} matrices, {name}", f"{rates[name] / 1e12:.3g} TFLOP/s")
    record(f"copy of {COPIED / 1e9:g} GB, read and written", f"{rates['copy'] / 1e9:,.0f} GB/s")


def measure_rates() -> dict[str, float]:
    """FLOP/s of matrix products by arithmetic, and bytes per second of a copy, each read and written once."""
    rates = {}
    for name, dtype in DTYPES.items():
        a = torch.randn(SIDE, SIDE, device=DEVICE).to(dtype)
        torch.backends.cuda.matmul.allow_tf32 = name == "TF32"
        rates[name] = 2 * SIDE**3 / seconds(functools.partial(torch.matmul, a, a))
    source = torch.zeros(COPIED, dtype=torch.uint8, device=DEVICE)
    rates["copy"] = 2 * COPIED / seconds(functools.partial(torch.empty_like(source).copy_, source))
    return rates


def seconds(function: Callable[[], object]) -> float:
    """Of one call: the median of five rounds of ten calls."""
    count = 1 if DRY else 10
    found = []
    for _ in range(6):
        synchronize()
        start = time.perf_counter()
        for _ in range(count):
            function()
        synchronize()
        found.append((time.perf_counter() - start) / count)
    return statistics.median(found[1:])  # without the first round, in which libraries choose their kernels


@functools.cache
def rates_of_this_call() -> dict[str, float]:
    """What `limits` measured; measured now if it was not run."""
    return json.loads(FILE.read_text()) if FILE.exists() else measure_rates()


def share_of_limit(case: Case, flops: int | None, images_per_second: float) -> str:
    """The FLOP/s that a run reaches, of its convolutions and matrix products, and their share of the matrix rate."""
    if flops is None:
        return "FLOPs unknown"
    reached = flops * images_per_second / case.batch
    share = reached / rates_of_this_call()[case.arithmetic]
    return f"{reached / 1e12:.3g} TFLOP/s, {share:.1%} of the matrix rate in {case.arithmetic}"


SECTIONS = {"limits": limits}
