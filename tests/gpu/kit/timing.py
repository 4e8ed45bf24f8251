"""How iterations are timed: in stretches that alternate between two sides, and what the host and the device need."""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
from common import DEVICE, DRY, synchronize
from torch.profiler import ProfilerActivity

ROUNDS = 1 if DRY else 3
STRETCH = 0.0 if DRY else 0.2
"""Seconds of a stretch, about."""
WARM_UP = 1 if DRY else 8
PROFILED = 3
"""Iterations in a profile."""


class Timed:
    """Iterations to time. `prepare` sets torch's switches (TF32, deterministic kernels) as they need them."""

    def __init__(self, iterations: Iterator[None], images: int, prepare: Callable[[], None]) -> None:
        self.iterations = iterations
        self.images = images
        self.prepare = prepare
        self.first_seconds = self.seconds(1)
        """Of the first iteration, which compiles and captures, where these are on."""
        self.seconds(WARM_UP)
        self.length = max(1, int(STRETCH / self.seconds(1)))

    def seconds(self, count: int) -> float:
        """Of `count` iterations, until the device has ended them."""
        self.prepare()
        synchronize()
        start = time.perf_counter()
        for _ in range(count):
            next(self.iterations)
        synchronize()
        return time.perf_counter() - start

    def rate(self) -> float:
        """Images per second in one stretch."""
        return self.length * self.images / self.seconds(self.length)

    def host_seconds(self) -> float:
        """What the host needs to start one iteration: the device has nothing to do, so that no queue is full."""
        self.prepare()
        found = []
        for _ in range(5):
            synchronize()
            start = time.perf_counter()
            next(self.iterations)
            found.append(time.perf_counter() - start)
        synchronize()
        return statistics.median(found)

    def device_seconds(self) -> float:
        """What the device works on one iteration, without the gaps in which it waits for the host."""
        from distgan.training.trace_summary import union_length

        self.prepare()
        with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            self.seconds(PROFILED)
        ranges = [event.time_range for event in profiler.events() or [] if str(event.device_type).endswith("CUDA")]
        return union_length((each.start, each.end) for each in ranges) * 1e-6 / PROFILED


def alternate(*sides: Timed) -> list[list[float]]:
    """Images per second of each side in each round; the sides take turns, so that a slow moment meets all of them."""
    rounds = [[side.rate() for side in sides] for _ in range(ROUNDS)]
    return [list(rates) for rates in zip(*rounds, strict=True)]


def limit(timed: Timed) -> str:
    """An iteration's time on the host and on the device, and which of them is the limit."""
    if DRY:
        return "host and device: skipped, needs CUDA"
    host = timed.host_seconds()
    device = timed.device_seconds()
    limited = "host" if host > device else "device"
    return f"host {host * 1e3:.2f} ms, device {device * 1e3:.2f} ms an iteration: the {limited} is the limit"


def release() -> None:
    """Free what the last run held; the compiler keeps few variants of a function, and each run is one."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
