"""Sections that run in this process: host waits, memory, BatchNorm, the profile."""

import collections
import contextlib
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from common import (
    BATCH,
    DEVICE,
    DRY,
    NOISE,
    OUT,
    PRECISIONS,
    ROOT,
    WIDTH,
    Stopwatch,
    build_run,
    expect,
    last_line,
    nvidia_smi,
    peak_gb,
    record,
    repeat,
    run_loop,
    synchronize,
    train,
)
from speed_sections import steps
from torch import Tensor, nn
from torch.profiler import ProfilerActivity

from distgan.distributed.batchnorm import GlobalBatchNorm2d, convert

WATCHED = (3, 5) if DRY else (10, 60)
"""The iterations in which no wait of the host is allowed; the first ones build what is cached."""


def waits_cases(precision: str) -> dict[str, list[object]]:
    """What runs without a wait of the host, and its words. A CPU captures nothing."""
    cases: dict[str, list[object]] = {
        "": [],
        ", micro-batches": ["--micro_batch", 8],
        ", labels, flips": ["--data.labels=true", "--data.flip=true"],
    }
    if not DRY:
        cases[", captured"] = ["--graph=true"]
        cases[", captured, micro-batches"] = ["--graph=true", "--micro_batch", 8]
    if not DRY and precision == "bf16":
        cases[", compiled and captured"] = ["--compile=true", "--graph=true"]
    return cases


def host_waits() -> None:
    """50 iterations of train_loop under torch.cuda.set_sync_debug_mode("error")."""

    def set_mode(mode: str) -> None:
        if DEVICE == "cuda":
            torch.cuda.set_sync_debug_mode(mode)

    for precision in PRECISIONS:
        for name, words in waits_cases(precision).items():
            run = build_run("--precision", precision, *words, batch=16)
            seen = 0

            def visit(i: int) -> bool:
                nonlocal seen
                seen = i
                set_mode("error" if WATCHED[0] <= i < WATCHED[1] else "default")
                return i == WATCHED[1]

            try:
                run_loop(run, visit)
                found = f"{WATCHED[1] - WATCHED[0]} iterations without a wait"
                record(precision + name, "skipped: needs CUDA" if DRY else found)
            except RuntimeError as error:
                set_mode("default")
                traceback.print_exc()
                package = str(ROOT / "distgan")
                frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(package)]
                at = f"{frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno}" if frames else "outside of distgan"
                expect(precision + name, f"waits in iteration {seen}, {at}: {str(error).splitlines()[0][:150]}", False)
            finally:
                set_mode("default")


def memory() -> None:
    """Allocated and reserved memory after iterations, what --dry_run says, what nvidia-smi says."""
    if DRY:
        record("memory of the GPU", "skipped: needs CUDA")
    else:
        for batch in (64, 1024):
            for precision in PRECISIONS:
                record(f"{batch} {precision}", peaks(batch, precision))
        record("nvidia-smi, memory used", nvidia_smi("memory.used"))
        torch.cuda.empty_cache()
    batch = 16 if DRY else 1024
    for precision in PRECISIONS[:1] if DRY else PRECISIONS:
        words = ["--data.shards", NOISE, "--batch", batch, "--dry_run", "--precision", precision]
        done = train([*words, "--model.options.width", WIDTH], timeout=50)
        found = re.search(r"peak memory per process: (.*);", done.stdout)
        expect(f"--dry_run, {batch} {precision}", found[1] if found else last_line(done.stdout), found is not None)


def peaks(batch: int, precision: str) -> str:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    allocated: list[str] = []

    def visit(i: int) -> bool:
        synchronize()
        allocated.append(f"{torch.cuda.max_memory_allocated() / 1e9:.3f}")
        return i == 3

    run_loop(build_run("--precision", precision, batch=batch), visit)
    free, total = torch.cuda.mem_get_info()
    text = f"peak allocated before and after iterations 1 to 3: {' '.join(allocated)} GB; "
    reserved = torch.cuda.max_memory_reserved() / 1e9
    return text + f"reserved {reserved:.2f}, used on the device {(total - free) / 1e9:.2f}"


@contextlib.contextmanager
def world_of_one() -> Iterator[None]:
    """A process group of this process alone, over NCCL (--dry: gloo): the collectives run, and change nothing."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo" if DRY else "nccl", init_method=f"file://{folder}/store", rank=0, world_size=1)
        try:
            yield
        finally:
            dist.destroy_process_group()


def formulae(x: Tensor, dy: Tensor, weight: Tensor, bias: Tensor, eps: float) -> dict[str, Tensor]:
    """BatchNorm (Ioffe & Szegedy 2015, Algorithm 1) and its gradients, in float64."""
    x, dy, weight, bias = (tensor.double() for tensor in (x, dy, weight, bias))
    dims, shape = (0, 2, 3), (1, -1, 1, 1)
    mean = x.mean(dims)
    variance = (x - mean.view(shape)).square().mean(dims)
    invstd = (variance + eps).rsqrt().view(shape)
    normalized = (x - mean.view(shape)) * invstd
    d_weight, d_bias, count = (dy * normalized).sum(dims), dy.sum(dims), x.numel() // x.shape[1]
    dx = weight.view(shape) * invstd * (dy - (d_bias.view(shape) + normalized * d_weight.view(shape)) / count)
    return {
        "output": normalized * weight.view(shape) + bias.view(shape),
        "dx": dx,
        "dweight": d_weight,
        "dbias": d_bias,
        "running mean": 0.1 * mean,
        "running variance": 0.9 + 0.1 * variance * count / (count - 1),
    }


def forward_backward(norm: nn.BatchNorm2d, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_(True)
    norm.zero_grad()
    output = norm(x)
    output.backward(dy)
    assert x.grad is not None and norm.weight.grad is not None and norm.bias.grad is not None
    assert norm.running_mean is not None and norm.running_var is not None
    gradients = {"dx": x.grad, "dweight": norm.weight.grad, "dbias": norm.bias.grad}
    statistics = {"running mean": norm.running_mean, "running variance": norm.running_var}
    return {"output": output.detach(), **gradients, **statistics}


def batchnorm() -> None:
    """GlobalBatchNorm2d against the formulae in float64 and nn.BatchNorm2d: results, time, launches, memory."""
    dtypes = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}
    limits = {"float32": 2e-5, "bf16": 0.02, "float16": 0.003}
    shapes = [(4, 8, 4, 4)] if DRY else [(64, 512, 4, 4), (64, 64, 32, 32), (1024, 64, 32, 32)]
    generator = torch.Generator(DEVICE).manual_seed(0)
    with world_of_one():
        for shape in shapes:
            for name, dtype in list(dtypes.items())[: 2 if DRY else 3]:
                for layout in (torch.channels_last, torch.contiguous_format):
                    x, dy = (torch.randn(shape, device=DEVICE, generator=generator) for _ in range(2))
                    x, dy = (t.mul(2).add(1).to(dtype).contiguous(memory_format=layout) for t in (x, dy))
                    norms = [kind(shape[1]).to(DEVICE) for kind in (GlobalBatchNorm2d, nn.BatchNorm2d)]
                    for norm in norms:
                        nn.init.uniform_(norm.weight, generator=generator.manual_seed(1))
                        nn.init.uniform_(norm.bias, generator=generator.manual_seed(2))
                    expected = formulae(x, dy, norms[0].weight.detach(), norms[0].bias.detach(), norms[0].eps)
                    ours, torchs = (forward_backward(norm, x, dy) for norm in norms)
                    label = (
                        f"{'x'.join(map(str, shape))} {name}{'' if layout is torch.channels_last else ' contiguous'}"
                    )
                    errors = {
                        key: (error(ours[key], value), error(torchs[key], value)) for key, value in expected.items()
                    }
                    worst = max(errors, key=lambda key: errors[key][0])
                    text = f"largest error {errors[worst][0]:.1e} ({worst}); nn.BatchNorm2d {errors[worst][1]:.1e}"
                    same_strides = ours["dx"].stride() == torchs["dx"].stride()
                    limit = max(limits[name], 4 * errors[worst][1])  # sums over 10^6 values round in torch's too
                    expect(label, text, errors[worst][0] < limit and same_strides)
                    record(f"{label}: ours", cost(norms[0], x, dy))
                    record(f"{label}: nn.BatchNorm2d", cost(norms[1], x, dy))
        iterations_with_batchnorm()


def error(value: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((value.double() - expected).abs().max() / expected.abs().max())


def cost(norm: nn.BatchNorm2d, x: Tensor, dy: Tensor) -> str:
    """Time, kernel launches and peak memory of a forward and a backward."""
    count = 2 if DRY else 100
    for _ in range(2):
        forward_backward(norm, x, dy)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
    synchronize()
    start = time.perf_counter()
    for _ in range(count):
        forward_backward(norm, x, dy)
    synchronize()
    text = f"{(time.perf_counter() - start) / count * 1e6:,.0f} us"
    if DEVICE == "cpu":
        return text
    peak = (torch.cuda.max_memory_allocated() - before) / x.nbytes
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        forward_backward(norm, x, dy)
        synchronize()
    launches = sum(is_launch(event.name) for event in profiler.events() or [])
    return f"{text}, {launches} launches, peak memory {peak:.2f} times the input"


def iterations_with_batchnorm() -> None:
    """A whole iteration with nn.BatchNorm2d and with GlobalBatchNorm2d."""
    for batch in (BATCH,) if DRY else (64, 1024):
        for precision in PRECISIONS[:2]:
            for name in ("nn.BatchNorm2d", "GlobalBatchNorm2d"):
                run, watch = build_run("--precision", precision, batch=batch), Stopwatch(batch)
                if name == "GlobalBatchNorm2d":
                    convert(run.gan.raw_G)
                    convert(run.gan.raw_D)
                if DEVICE == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                repeat(steps(run), watch)
                record(f"iteration, {batch} {precision}, {name}", f"{watch.rate:,.0f} img/s, {peak_gb()}")


def is_launch(name: str) -> bool:
    return re.match(r"cu(da)?Launch", name) is not None


def profile() -> None:
    """Of whole iterations: kernels by time, launches, host waits, pageable copies."""
    activities = [ProfilerActivity.CPU, *([] if DRY else [ProfilerActivity.CUDA])]
    tables, length = [], 1 if DRY else 20
    for batch, words in ((BATCH, []),) if DRY else ((64, ["--data.labels", "true"]), (1024, [])):
        for precision in PRECISIONS[:2]:
            profiler, times = torch.profiler.profile(activities=activities), [0.0]

            def visit(i: int) -> bool:
                if i == length:
                    synchronize()
                    profiler.start()  # noqa: B023
                    times[0] = time.perf_counter()  # noqa: B023
                elif i == 2 * length:
                    synchronize()
                    times.append(time.perf_counter())  # noqa: B023
                    profiler.stop()  # noqa: B023
                return i == 2 * length

            run_loop(build_run("--precision", precision, *words, batch=batch), visit)
            table = profiler.key_averages().table(sort_by=f"self_{'cpu' if DRY else 'device'}_time_total", row_limit=30)
            tables.append(f"batch {batch}, precision {precision} {' '.join(words)}\n{table}")
            counts: collections.Counter[str] = collections.Counter()
            busy = 0.0
            for event in profiler.events() or []:
                if str(event.device_type).endswith("CUDA"):
                    busy += event.time_range.elapsed_us()
                    if "Memcpy" in event.name:
                        counts[f"{event.name}"] += 1
                elif is_launch(event.name):
                    counts["kernel launches"] += 1
                elif re.match(r"cu(da)?(Stream|Event|Device)Sync", event.name):
                    counts[f"host wait {event.name}"] += 1
                elif re.match(r"cu(da)?(HostAlloc|Malloc|EventQuery)", event.name):
                    counts[event.name] += 1
            seconds, name = times[1] - times[0], f"{batch} {precision}"
            used = f"GPU busy {busy / seconds / 1e4:.0f} %" if not DRY else "GPU: skipped, needs CUDA"
            record(name, f"{seconds / length * 1e3:.2f} ms per iteration (profiled), {used}")
            for key, count in counts.most_common(12):
                record(f"{name}: {key}", f"{count / length:.2f} per iteration")
    (OUT / "profile.txt").write_text("\n\n".join(tables))


SECTIONS: dict[str, Callable[[], object]] = {
    function.__name__: function for function in (host_waits, memory, batchnorm, profile)
}
