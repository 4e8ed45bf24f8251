"""The profile of a run: some of its iterations under torch.profiler, as a text and a Chrome trace in the run folder."""

import json
import os
import time
from collections.abc import Iterator

import torch.profiler
from torch.profiler import ProfilerActivity, record_function

from distgan.files import atomic_write
from distgan.training.loop import Trainer
from distgan.training.trace_summary import ITERATION, Summary, read_trace, summarize

WARMUP = 5
"""Iterations before the recorded ones: the first ones allocate memory, and choose and load kernels."""
ROWS = 10
"""Of the table."""
LONGEST_NAME = 120
"""Characters of a kernel's name in the table; templates of C++ have thousands."""
TEXT_NAME = "profile.txt"
TRACE_NAME = "profile-trace.json.gz"


class Profiler:
    """A context manager around each iteration of a run, which records some of them; on the main process.

    It records `count` iterations after a warm-up of 5, fewer if the run does not have as many left, and at least 1.
    Then it writes the profile, and the run goes on without it.
    """

    def __init__(self, trainer: Trainer, count: int) -> None:
        self.trainer = trainer
        self.count = count
        self.on_cuda = trainer.processes.device.type == "cuda"
        left = trainer.clock.iterations_left(trainer.state.images_seen)
        self.warmup = max(1, min(WARMUP, left - count))
        self.trained = 0
        """Iterations since the start of this process."""
        self.recording = False
        """Whether torch.profiler is on, in its warm-up too."""
        self.over = False
        """Whether nothing is left to record."""
        self.start_images = 0
        """Images seen before the first recorded iteration."""
        self.start_waited = 0.0
        """Seconds that the loop had waited for images by then."""
        if not self.on_cuda:  # Kineto reports a missing driver as an error
            os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.on_cuda else [])]
        schedule = torch.profiler.schedule(wait=0, warmup=1, active=count, repeat=1)
        self.recorder = torch.profiler.profile(activities=activities, schedule=schedule)
        self.annotation = record_function(ITERATION)

    @property
    def recorded(self) -> int:
        """Iterations that were recorded to their end."""
        return max(0, self.trained - self.warmup)

    def __enter__(self) -> None:
        if self.over:
            return
        if self.trained == self.warmup - 1:
            self.recorder.start()  # it records nothing yet, but takes what its own start costs
            self.recording = True
        if self.trained < self.warmup:
            return
        if self.trained == self.warmup:
            self.begin()
        self.recorder.step()
        self.annotation.__enter__()

    def begin(self) -> None:
        """Note where the first recorded iteration begins; no kernel of an earlier one runs into it."""
        if self.on_cuda:
            torch.cuda.synchronize(self.trainer.processes.device)
        self.start_images = self.trainer.state.images_seen
        self.start_waited = self.trainer.data.reader.waited_seconds

    def __exit__(self, *error: object) -> None:
        if self.over:
            return
        if self.trained >= self.warmup:
            self.annotation.__exit__(None, None, None)
        if error[0] is not None:
            return
        self.trained += 1
        if self.recorded == self.count:
            self.write()

    def finish(self) -> None:
        """Write what was recorded, if the run ended before all of it was."""
        if self.over:
            return
        print0 = self.trainer.terminal.print0
        print0(f"--profile {self.count}: the run ended after {self.recorded} recorded iterations")
        if self.recorded:
            self.write()
        else:
            self.stop()

    def close(self) -> None:
        """Record no more, after a failure: a process that ends while torch.profiler is on crashes."""
        # To stop waits for the device, and that may wait for a lost process: several processes end by os._exit.
        if self.trainer.processes.world_size == 1:
            self.stop()

    def stop(self) -> None:
        """Record no more; waits for the device."""
        self.over = True
        if self.recording:
            self.recording = False
            self.recorder.stop()

    def write(self) -> None:
        """Stop to record, and write the profile, in time that the rates of the log leave out."""
        start = time.monotonic()
        waited = self.trainer.data.reader.waited_seconds - self.start_waited
        self.stop()
        text_path = self.trainer.run_dir / TEXT_NAME
        trace_path = self.trainer.run_dir / TRACE_NAME
        partial = trace_path.with_name(f".{TRACE_NAME}")
        self.recorder.export_chrome_trace(str(partial))
        partial.replace(trace_path)
        summary = summarize(read_trace(trace_path), cuda=self.on_cuda)
        lines = [
            *self.describe_run(),
            "",
            *describe(summary, self.images_per_iteration, waited),
            "",
            *table_lines(summary),
        ]
        atomic_write(text_path, "\n".join([*lines, ""]).encode())
        self.trainer.terminal.print0(f"profile of {summary.iterations} iterations: {text_path}, {trace_path}")
        self.trainer.reporter.pause(time.monotonic() - start)

    @property
    def images_per_iteration(self) -> int:
        """Of all processes."""
        return self.trainer.clock.iteration_images

    def describe_run(self) -> Iterator[str]:
        """What was measured, and where."""
        config = self.trainer.config
        facts = json.loads((self.trainer.run_dir / "environment.json").read_text())
        precision = "float32" if config.precision == "no" else config.precision
        yield (
            f"{config.run_dir}: {self.recorded} iterations from {self.start_images:,} images on, "
            f"after {self.warmup} of warm-up"
        )
        yield f"{facts['device']}, torch {facts['libraries']['torch']}, {facts['threads']} CPU thread(s)"
        yield f"process 0 of {facts['processes']}, precision {precision}, batch {config.batch} over all processes"


def describe(summary: Summary, images: int, waited: float) -> Iterator[str]:
    """The lines above the table, of a run with `images` per iteration that `waited` so many seconds for them."""
    seconds = summary.ms * summary.iterations / 1e3
    device = summary.device
    yield f"iteration             {summary.ms:.2f} ms, {images / summary.ms * 1e3:,.0f} images/s while profiled"
    yield f"wait for data         {waited / seconds:.1%} of the time"
    yield f"between iterations    {summary.between_share:.1%} of the time (log, grids, checkpoints, evaluations)"
    if device is None:
        yield "idle device           not measured on a CPU, nor kernel launches and host waits"
    elif not device.kernels:
        yield "idle device           not measured: no kernel was recorded; may this process use CUPTI?"
    else:
        yield f"idle device           {device.idle_share:.1%} of the time no kernel ran"
        yield f"kernels               {device.kernels:,.1f} per iteration, by {device.launches:,.1f} launches"
        yield f"host waits            {device.host_waits:,.1f} per iteration"
    backend = "gloo" if device is None else "NCCL"
    if summary.collectives:
        yield f"collectives ({backend})    {summary.collectives:,.1f} per iteration, {summary.collectives_ms:.2f} ms"
    else:
        yield f"collectives ({backend})    none"


def table_lines(summary: Summary) -> Iterator[str]:
    """The table of the dearest kernels or operators."""
    what = "operator, by its own time" if summary.device is None else "kernel or copy"
    yield f" share   ms/iteration   calls/iteration   {what}"
    for row in summary.rows[:ROWS]:
        name = row.name if len(row.name) <= LONGEST_NAME else f"{row.name[: LONGEST_NAME - 3]}..."
        yield f"{row.share:6.1%}   {row.ms:12.3f}   {row.calls:15.1f}   {name}"
