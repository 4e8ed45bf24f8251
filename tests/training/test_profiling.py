"""--profile: the files that a run writes, that it trains on as without, and the numbers of a trace of a GPU."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

import distgan.training.iteration
from distgan.training.profiling import Profiler, describe, table_lines
from distgan.training.trace_summary import Event, read_trace, self_times, summarize, union_length
from helpers import TINY, launch, train, weights


def numbers(run: Path, label: str) -> list[float]:
    """The numbers of the line of profile.txt that begins with `label`."""
    lines = [line for line in (run / "profile.txt").read_text().splitlines() if line.startswith(label)]
    return [float(number.replace(",", "")) for number in re.findall(r"[\d,]*\.?\d+", lines[0].removeprefix(label))]


def table(run: Path) -> dict[str, tuple[float, float, float]]:
    """The rows of the table of profile.txt: share in percent, ms and calls per iteration."""
    rows = re.findall(r"^ *([\d.]+)% +([\d.]+) +([\d.]+) +(\S.*)$", (run / "profile.txt").read_text(), re.MULTILINE)
    return {name: (float(share), float(ms), float(calls)) for share, ms, calls, name in rows}


def test_a_profiled_run_is_bit_identical_and_writes_both_files(trained, capsys):
    words = ["--images", 16 * 10]
    plain = trained(*words, name="plain")
    assert not (plain / "profile.txt").exists()
    run = trained(*words, "--profile", 3, name="profiled")
    assert weights(run) == weights(plain)
    text = (run / "profile.txt").read_text()
    assert f"{run}: 3 iterations from 80 images on, after 5 of warm-up" in text
    assert "process 0 of 1, precision float32, batch 16" in text
    ms, rate = numbers(run, "iteration ")
    assert rate == pytest.approx(16 / ms * 1e3, rel=0.005)  # both are rounded
    assert 0 <= numbers(run, "wait for data")[0] <= 100
    assert 0 <= numbers(run, "between iterations")[0] <= 100
    rows = table(run)
    assert len(rows) == 10 and any("convolution" in name for name in rows)
    assert all(calls == int(calls) > 0 for _, _, calls in rows.values())
    assert 0 < sum(own_ms for _, own_ms, _ in rows.values()) <= ms
    events = read_trace(run / "profile-trace.json.gz")
    assert sum(event.name == "iteration" for event in events) == 3
    assert f"profile of 3 iterations: {run}/profile.txt, {run}/profile-trace.json.gz\n" in capsys.readouterr().out


def test_the_operators_of_a_profile_are_those_of_torch(trained, monkeypatch):
    """Their own times are as the events of torch.profiler have them."""
    calls = Counter[str]()
    microseconds = Counter[str]()
    write = Profiler.write

    def write_and_average(self: Profiler) -> None:
        write(self)
        for event in self.recorder.events() or []:
            if not event.is_user_annotation:
                calls[event.name] += 1
                microseconds[event.name] += event.self_cpu_time_total

    monkeypatch.setattr(Profiler, "write", write_and_average)
    run = trained("--images", 16 * 10, "--profile", 2)
    rows = summarize(read_trace(run / "profile-trace.json.gz"), cuda=False).rows
    assert len(rows) > 30
    for row in rows[:20]:
        assert 0 < row.calls * 2 <= calls[row.name], row  # torch counts some calls of other overloads
        assert row.ms * 2e3 == pytest.approx(microseconds[row.name], rel=0.01, abs=5), row


def test_a_resumed_run_is_profiled_after_a_warm_up_of_its_own(trained):
    trained("--images", 64)
    run = trained("--images", 64 + 16 * 8, "--profile", 2)
    assert "2 iterations from 144 images on" in (run / "profile.txt").read_text()
    plain = trained("--images", 64, name="plain")
    trained("--images", 64 + 16 * 8, name="plain")
    assert weights(run) == weights(plain)


@pytest.mark.parametrize(("iterations", "recorded", "warmup"), [(7, 6, 1), (22, 20, 2), (2, 1, 1)])
def test_a_short_run_has_a_short_warm_up(trained, capsys, iterations, recorded, warmup):
    run = trained("--images", 16 * iterations, "--profile", 20)
    text = (run / "profile.txt").read_text()
    assert f"{recorded} iterations from {16 * warmup} images on, after {warmup} of warm-up" in text
    cut = f"--profile 20: the run ended after {recorded} recorded iterations"
    assert (cut in capsys.readouterr().out) == (recorded < 20)


@pytest.mark.parametrize("more", [0, 1])
def test_a_run_too_short_to_profile_says_so(trained, capsys, more):
    run = trained("--images", 32)
    trained("--images", 32 + 16 * more, "--profile", 3)
    assert "--profile 3: the run ended after 0 recorded iterations" in capsys.readouterr().out
    assert not list(run.glob("*profile*"))


def test_a_run_that_fails_while_it_is_profiled_stops_the_profiler(tiny, tmp_path, monkeypatch, capsys):
    """A process that ended with it on would crash, and hide the exit code."""
    step = distgan.training.iteration.train_step
    profiled: list[bool] = []

    def fail_at_the_fourth(*arguments):
        profiled.append(torch.autograd.profiler._is_profiler_enabled)
        if len(profiled) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return step(*arguments)

    monkeypatch.setattr(distgan.training.iteration, "train_step", fail_at_the_fourth)
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--images", 160, "--profile", 20]
    assert train(*words) == 1
    assert profiled == [False, True, True, True] and not torch.autograd.profiler._is_profiler_enabled
    assert "CUDA out of memory." in capsys.readouterr().err and not list((tmp_path / "run").glob("*profile*"))


@pytest.mark.slow
def test_the_main_process_of_two_records_collectives(tiny, tmp_path):
    words = ["--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--images", 16 * 8]
    assert launch(2, *words, "--profile", 3).stdout.count("profile of 3 iterations") == 1
    count, ms = numbers(tmp_path / "run", "collectives (gloo)")
    assert count >= 3 and ms > 0  # the gradients of D, those of G, and the flag of what is due
    assert "process 0 of 2" in (tmp_path / "run" / "profile.txt").read_text()


@pytest.mark.slow
def test_on_two_processes_a_profiled_run_is_bit_identical(tiny, tmp_path):
    for name, words in (("plain", []), ("profiled", ["--profile", 3])):
        folder = tmp_path / name
        launch(2, "--data.shards", tiny, "--run_dir", folder, *TINY, "--images", 16 * 12, *words)
    assert weights(tmp_path / "profiled") == weights(tmp_path / "plain")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--profile", "0"], "profile: expected an integer above 0, got 0"),
        (["--profile", "many"], "profile: expected an integer above 0, got many"),
        (["--profile", "3", "--dry_run"], "--profile: there is nothing to profile in a --dry_run; leave out one"),
    ],
)
def test_refused(tiny, tmp_path, capsys, words, message):
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, *words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"distgan: {message}") and printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("intervals", "length"),
    [
        ([], 0),
        ([(1, 3)], 2),
        ([(5, 7), (1, 3)], 4),
        ([(1, 3), (3, 4)], 3),
        ([(1, 9), (2, 3), (8, 10)], 9),
        ([(1, 4), (1, 4), (2, 6)], 5),
    ],
)
def test_union_length(intervals, length):
    assert union_length(intervals) == length


def test_an_operator_is_charged_for_its_own_time():
    operators = [
        Event("cpu_op", "outer", 0, 10, "a"),
        Event("cpu_op", "inner", 1, 5, "a"),
        Event("cpu_op", "inner", 1, 5, "a"),  # another overload
        Event("cpu_op", "innermost", 2, 3, "a"),
        Event("cpu_op", "inner", 5, 7, "a"),
        Event("cpu_op", "outer", 10, 12, "a"),
        Event("cpu_op", "elsewhere", 2, 4, "b"),
    ]
    times = [("outer", 4), ("inner", 3), ("elsewhere", 2), ("innermost", 1), ("inner", 2), ("outer", 2)]
    assert self_times(operators) == times


GPU = [
    Event("kernel", "gemm", 80, 95),  # of the iteration before
    Event("user_annotation", "iteration", 100, 300),
    Event("gpu_user_annotation", "iteration", 120, 600),
    Event("cuda_sync", "Stream Sync", 120, 600),
    Event("cuda_runtime", "cudaLaunchKernel", 110, 115),
    Event("kernel", "gemm", 120, 220),
    Event("cuda_driver", "cuLaunchKernelEx", 130, 135),
    Event("kernel", "void triton_fused(float*)", 200, 260),  # overlaps: another stream
    Event("cuda_runtime", "cudaMemcpyAsync", 140, 141),
    Event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 270, 290),
    Event("cuda_runtime", "cudaStreamSynchronize", 250, 290),
    Event("cuda_runtime", "cudaStreamWaitEvent", 292, 293),
    Event("cuda_runtime", "cudaMemcpy", 310, 315),  # between the two
    Event("user_annotation", "iteration", 320, 500),
    Event("cuda_runtime", "cudaGraphLaunch", 330, 340),
    Event("kernel", "gemm", 400, 500),
    Event("kernel", "ncclDevKernel_AllReduce_Sum_f32", 500, 600),  # ends after the host
    Event("user_annotation", "gloo:all_reduce", 330, 340),
    Event("cuda_runtime", "cudaDeviceSynchronize", 510, 600),  # the profiler's own
]
"""Two iterations of 250 us."""


def test_the_numbers_of_a_gpu():
    summary = summarize(GPU, cuda=True)
    assert (summary.iterations, summary.ms) == (2, 0.25)
    assert summary.between_share == pytest.approx(20 / 500)
    assert (summary.collectives, summary.collectives_ms) == (0.5, 0.05)
    assert summary.device is not None
    assert summary.device._asdict() == {
        "kernels": 2,
        "launches": 1.5,
        "host_waits": 1,
        "idle_share": pytest.approx(1 - (140 + 200) / 500),
    }
    names = ["gemm", "ncclDevKernel_AllReduce_Sum_f32", "void triton_fused(float*)", "Memcpy HtoD (Pinned -> Device)"]
    assert [row.name for row in summary.rows] == names
    assert summary.rows[0][1:] == (pytest.approx(200 / 380), pytest.approx(0.1), 1)


def test_the_lines_of_a_gpu():
    summary = summarize([*GPU, Event("kernel", "void " + "x" * 3000, 300, 301)], cuda=True)
    assert list(describe(summary, 64, waited=1e-4)) == [
        "iteration             0.25 ms, 256,000 images/s while profiled",
        "wait for data         20.0% of the time",
        "between iterations    4.0% of the time (log, grids, checkpoints, evaluations)",
        "idle device           31.8% of the time no kernel ran",
        "kernels               2.5 per iteration, by 1.5 launches",
        "host waits            1.0 per iteration",
        "collectives (NCCL)    0.5 per iteration, 0.05 ms",
    ]
    assert max(len(line) for line in table_lines(summary)) < 180


def test_a_gpu_that_records_no_kernels_is_not_called_idle():
    summary = summarize([event for event in GPU if event.category == "user_annotation"], cuda=True)
    text = "\n".join([*describe(summary, 64, waited=0.0), *table_lines(summary)])
    assert "no kernel was recorded" in text and "100" not in text


def test_what_a_trace_has_beside_events_is_left_out(tmp_path):
    step = {"ph": "X", "cat": "user_annotation", "name": "iteration", "ts": 5.5, "dur": 2, "pid": 1, "tid": "a"}
    rows = [step, {"ph": "M", "name": "process_name", "args": {}}, step | {"ph": "s"}, step | {"cat": "ac2g"}]
    with gzip.open(tmp_path / "trace.json.gz", "wt") as file:
        json.dump({"traceEvents": rows}, file)
    assert read_trace(tmp_path / "trace.json.gz") == [Event("user_annotation", "iteration", 5.5, 7.5, "1/a")]
