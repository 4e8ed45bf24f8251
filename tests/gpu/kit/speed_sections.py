"""The sections `speed` and `speed_r3gan`: iterations eager, captured and compiled, beside the textbook's loop."""

import functools
import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import torch
from cases import ARITHMETIC, BATCHES, COMPILED_DCGAN, MODES, R3GAN, Case, dcgan
from common import (
    DEVICE,
    DRY,
    SIZE,
    WIDTH,
    Stopwatch,
    build_run,
    last_line,
    peak_gb,
    record,
    repeat,
    run_loop,
    seconds_left,
)
from limit_sections import share_of_limit
from timing import Timed, alternate, limit, release
from torch import Tensor, nn

from distgan import models
from distgan.samples import SampleSpec


def textbook(batch: int, precision: str) -> Iterator[None]:
    """The loop of the DCGAN tutorial on images that are on the device; yields after each iteration."""
    G, D = models.build("dcgan", SampleSpec(SIZE, SIZE, 3), z_dim=100, options={"width": WIDTH}, seed=0)
    G, D = G.to(DEVICE), D.to(DEVICE)
    criterion, ones, zeros = nn.BCEWithLogitsLoss(), torch.ones(batch, device=DEVICE), torch.zeros(batch, device=DEVICE)
    g_optimizer, d_optimizer = (torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.5, 0.999)) for n in (G, D))
    real = torch.rand(batch, 3, SIZE, SIZE, device=DEVICE) * 2 - 1

    def forward(network: nn.Module, input: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=precision == "bf16"):
            return network(input).float()

    while True:
        D.zero_grad()
        output = forward(D, real)
        real_error = criterion(output, ones)
        real_error.backward()
        output.mean().item()
        fake = forward(G, torch.randn(batch, 100, device=DEVICE))
        output = forward(D, fake.detach())
        fake_error = criterion(output, zeros)
        fake_error.backward()
        output.mean().item()
        d_optimizer.step()
        G.zero_grad()
        g_error = criterion(forward(D, fake), ones)
        g_error.backward()
        g_optimizer.step()
        _ = (real_error + fake_error).item(), g_error.item()
        yield


def torch_defaults(tf32: bool) -> None:
    """The switches of torch as they are by default, but for TF32."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32


@functools.cache
def textbook_timed(batch: int, arithmetic: str) -> Timed:
    """The textbook's loop, warmed up; it has no loss scaling: bf16 stands for fp16."""
    precision = "bf16" if arithmetic in ("bf16", "fp16") else "no"
    prepare = functools.partial(torch_defaults, arithmetic != "float32")
    return Timed(textbook(batch, precision), batch, prepare)


def steps(trainer: Any) -> Iterator[None]:
    """Iterations of a run on one minibatch that stays on the device: all but reading images; yields after each."""
    trainer.begin_iterations()
    batches = next(trainer.minibatches.iterations(0, 1, on_read=lambda batch: None))
    while True:
        trainer.iterate(itertools.repeat(batches))
        yield


def timed(trainer: Any) -> Timed:
    from distgan.distributed.launch import set_determinism

    prepare = functools.partial(set_determinism, trainer.config)
    return Timed(steps(trainer), trainer.config.batch, prepare)


def data_only(trainer: Any) -> Iterator[None]:
    return (None for _ in trainer.minibatches.iterations(0, 10**9, on_read=lambda batch: None))


@functools.cache
def flops(case: Case) -> int | None:
    """Of an iteration; None where networks cannot run on tensors without data."""
    from distgan.training.cost import estimate_cost

    trainer = case.build("eager")
    try:
        return estimate_cost(trainer.config, trainer.data.spec, 1, trainer.data.network).flops
    except Exception as error:  # as for --dry_run, which says "unknown"
        print(f"{case.name}: {type(error).__name__}: {error}")
        return None


def measure(case: Case, mode: str, baseline: Timed | None = None) -> None:
    """Record a row: images/s, their ratio to `baseline`, what limits them, the share of the device's limit, memory."""
    if case.skipped(mode):
        return
    label = f"{case.name}, {mode}"
    work = flops(case)
    release()
    held = torch.cuda.memory_allocated() if DEVICE == "cuda" else 0
    try:
        ours = timed(case.build(mode))
        memory = peak_gb(held)
        sides = (ours,) if baseline is None else (ours, baseline)
        rates = alternate(*sides)
        rate = statistics.median(rates[0])
        ratio = "" if baseline is None else f", x{statistics.median(a / b for a, b in zip(*rates, strict=True)):.2f}"
        share = share_of_limit(case, work, rate)
        first = f"first iteration {ours.first_seconds:.1f} s"
        record(label, f"{rate:,.0f} img/s{ratio}; {limit(ours)}; {share}; {memory}; {first}")
        if "--compile=true" in MODES[mode]:
            case.marker.touch()
    except torch.OutOfMemoryError as error:
        record(label, f"does not fit: {last_line(str(error))}")


def speed() -> None:
    """DCGAN-64: the tutorial's loop, and ours in each mode beside it; what matters most comes first."""
    for batch, arithmetic in itertools.product(BATCHES, ARITHMETIC):
        case = dcgan(batch, arithmetic)
        if case.skipped("eager"):
            continue
        book = textbook_timed(batch, arithmetic)
        if arithmetic != "fp16":
            record(f"{case.name}, tutorial", f"{statistics.median(alternate(book)[0]):,.0f} img/s")
        measure(case, "eager", book)
        measure(case, "captured", book)
    # `both` before `compiled`: the sooner of the two to answer whether to compile
    for case, mode in itertools.product(COMPILED_DCGAN, ["compiled"] if DRY else ["both", "compiled"]):
        measure(case, mode, textbook_timed(case.batch, case.arithmetic))
    variants()


VARIANTS: dict[str, list[str]] = {
    "not channels-last": ["--channels_last=false"],
    "deterministic false": ["--deterministic=false"],
}
LOOPS: dict[str, list[str]] = {
    "TF32": ARITHMETIC["TF32"],
    "bf16": ARITHMETIC["bf16"],
    "bf16, captured": [*ARITHMETIC["bf16"], "--graph=true"],
}


def variants() -> None:
    """What switches change, in bf16; and whole runs, which read their images from disk."""
    for batch in BATCHES[:2]:
        for name, words in VARIANTS.items():
            if seconds_left() < 5:
                return record("the other rows", "skipped: no time left; --only speed")
            release()
            other = timed(build_run(*ARITHMETIC["bf16"], *words, batch=batch))
            record(f"{batch} bf16, eager, {name}", f"{statistics.median(alternate(other)[0]):,.0f} img/s")
        for name, words in LOOPS.items():
            label = f"{batch} {name}, with data from disk"
            if DRY and "--graph=true" in words:
                record(label, "skipped: needs CUDA")
                continue
            release()
            watch = Stopwatch(batch)
            run_loop(build_run(*words, batch=batch), watch)
            record(label, f"{watch.rate:,.0f} img/s")
        watch = Stopwatch(batch)
        repeat(data_only(build_run(batch=batch)), watch)
        record(f"{batch}: data alone, to the device", f"{watch.rate:,.0f} img/s")
    return None


def speed_r3gan() -> None:
    """R3GAN in bf16, with both kinds of penalties; what matters most comes first."""
    for case, mode in itertools.product(R3GAN, ("eager", "captured")):
        measure(case, mode)
    if DRY:
        return record("compiled", "skipped: speed has a compiled row")
    for case, mode in itertools.product(R3GAN[:3], ("both", "compiled")):
        measure(case, mode)


SECTIONS = {"speed": speed, "speed_r3gan": speed_r3gan}
