"""What a Chrome trace of torch.profiler says of the iterations in it: kernels or operators, idle time, collectives."""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ITERATION = "iteration"
"""The name of the annotation around an iteration."""
DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}
"""The categories of what a CUDA device does. Its other tracks repeat annotations and waits of the host."""
HOST = {"cpu_op", "user_annotation", "cuda_runtime", "cuda_driver"}
LAUNCH = re.compile(r"cu(da)?(Launch(?!HostFunc)|GraphLaunch)")
"""Calls that launch a kernel, or a captured graph of them."""
HOST_WAIT = re.compile(r"cu(da)?((Stream|Device|Event|Ctx)Synchronize|Memcpy(?!\w*Async)\w*)$")
"""Calls in which the host waits for the device."""


class Event(NamedTuple):
    """An event of a trace; times are in microseconds, on one clock."""

    category: str
    name: str
    start: float
    end: float
    thread: str = ""


class Row(NamedTuple):
    """A kernel or an operator."""

    name: str
    share: float
    """Of the time of all rows, in [0, 1]."""
    ms: float
    """Per iteration."""
    calls: float
    """Per iteration."""


class DeviceUse(NamedTuple):
    """How a CUDA device was used; the counts are per iteration."""

    kernels: float
    launches: float
    """Of kernels and of graphs, by the host."""
    host_waits: float
    idle_share: float
    """Of the time of the iterations, in [0, 1]: no kernel ran."""


class Summary(NamedTuple):
    """What was measured in the iterations of a trace."""

    iterations: int
    ms: float
    """Per iteration, from the start of the first to the end of the last, of its kernels too."""
    between_share: float
    """Of that time, in [0, 1]: between two iterations."""
    rows: list[Row]
    """Kernels and copies by device time, or on a CPU operators by their own time; the dearest first."""
    collectives: float
    """Per iteration."""
    collectives_ms: float
    """Per iteration, summed; those of gloo run beside the computation."""
    device: DeviceUse | None
    """None on a CPU."""


def read_trace(path: Path) -> list[Event]:
    """The events of a gzipped Chrome trace that `summarize` knows."""
    with gzip.open(path) as file:
        rows = json.load(file)["traceEvents"]
    return [
        Event(row["cat"], row["name"], row["ts"], row["ts"] + row["dur"], f"{row['pid']}/{row['tid']}")
        for row in rows
        if row.get("cat") in DEVICE | HOST and row["ph"] == "X"
    ]


def summarize(events: Sequence[Event], *, cuda: bool) -> Summary:
    """The numbers of a trace with at least one iteration in it.

    What began before the first iteration or after the last is left out: the profiler itself waits for the device.
    """
    iterations = [event for event in events if event.category == "user_annotation" and event.name == ITERATION]
    count = len(iterations)
    start = min(event.start for event in iterations)
    end = max(event.end for event in iterations)
    host = [event for event in events if event.category in HOST and start <= event.start < end]
    device = [event for event in events if event.category in DEVICE and event.start >= start]
    kernels = [event for event in device if event.category == "kernel"]
    if cuda:
        times = [(event.name, event.end - event.start) for event in device]
        collectives = [event for event in kernels if event.name.startswith("nccl")]
    else:
        times = self_times([event for event in host if event.category == "cpu_op"])
        collectives = [event for event in host if event.name.startswith("gloo:")]
    inside = sum(event.end - event.start for event in iterations)
    wall = max([end, *(event.end for event in device)]) - start
    return Summary(
        iterations=count,
        ms=wall / count / 1e3,
        between_share=(end - start - inside) / wall,
        rows=table(times, count),
        collectives=len(collectives) / count,
        collectives_ms=sum(event.end - event.start for event in collectives) / count / 1e3,
        device=use_of(kernels, host, count, wall) if cuda else None,
    )


def use_of(kernels: Sequence[Event], host: Iterable[Event], count: int, wall: float) -> DeviceUse:
    """How `kernels` used a device in `count` iterations that took `wall` microseconds."""
    calls = [event.name for event in host if event.category in ("cuda_runtime", "cuda_driver")]
    return DeviceUse(
        kernels=len(kernels) / count,
        launches=sum(LAUNCH.match(name) is not None for name in calls) / count,
        host_waits=sum(HOST_WAIT.match(name) is not None for name in calls) / count,
        idle_share=1 - union_length((event.start, event.end) for event in kernels) / wall,
    )


def union_length(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (start, end): kernels on several streams overlap."""
    length = 0.0
    covered = float("-inf")
    for start, end in sorted(intervals):
        length += max(0.0, end - max(start, covered))
        covered = max(covered, end)
    return length


def self_times(operators: Iterable[Event]) -> list[tuple[str, float]]:
    """The name of each operator and its microseconds without those of the operators that it called.

    An operator that calls another overload of itself is one.
    """
    times: list[tuple[str, float]] = []
    running: dict[str, list[tuple[float, int]]] = defaultdict(list)
    """The operators that contain the current one on its thread, from the outside: (end, index in `times`)."""
    for event in sorted(operators, key=lambda event: (event.start, -event.end)):
        callers = running[event.thread]
        while callers and callers[-1][0] <= event.start:
            callers.pop()
        duration = event.end - event.start
        if callers:
            caller = callers[-1][1]
            name, time = times[caller]
            if name == event.name:
                continue
            times[caller] = name, time - duration
        callers.append((event.end, len(times)))
        times.append((event.name, duration))
    return times


def table(times: Iterable[tuple[str, float]], iterations: int) -> list[Row]:
    """Rows by name from (name, microseconds) of each call, the dearest first."""
    totals: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for name, microseconds in times:
        totals[name] += microseconds
        calls[name] += 1
    everything = sum(totals.values()) or 1.0
    rows = [
        Row(name, total / everything, total / iterations / 1e3, calls[name] / iterations)
        for name, total in totals.items()
    ]
    return sorted(rows, key=lambda row: -row.ms)
