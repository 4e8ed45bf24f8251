"""The reports of a run: what is measured in a logging interval, reduced over processes and written."""

import sys
import time
from typing import Any

from distgan.config.keys import Config
from distgan.data.stream import ImageBatch
from distgan.distributed.processes import Distributed
from distgan.errors import RunError
from distgan.gan.parts import GAN, Scalars
from distgan.logs.log import RunLog, status_line
from distgan.logs.meters import Meters, Stopwatch, peak_memory
from distgan.training.due import Clock
from distgan.training.finite import LossScale, check_loss_scale
from distgan.training.state import TrainState


class Reporter:
    """Measures a logging interval, and reports it; on all processes, of which the main one writes."""

    def __init__(self, config: Config, processes: Distributed, clock: Clock, gan: GAN, log: RunLog) -> None:
        self.config = config
        self.processes = processes
        self.clock = clock
        self.gan = gan
        self.log = log
        self.meters = Meters(processes)
        self.stopwatch = Stopwatch(0)
        self.loss_scale = LossScale(processes.accelerator, gan)
        self.updates = 0
        """Of G and of D in this logging interval."""
        self.diversity: float | None = None
        """Spread of the grid of this logging interval relative to that of real images; on the main process."""

    def rewind(self, images_seen: int) -> int:
        """Start a logging interval at `images_seen`; what the log has after it will be written again.

        Returns the images seen at the last evaluation, 0 if there was none.
        """
        self.meters.reset()
        self.stopwatch = Stopwatch(images_seen)
        self.loss_scale.restart_interval()
        self.updates = 0
        self.diversity = None
        return self.processes.run_on_main(lambda: self.log.rewind(images_seen))

    def add_read(self, batch: ImageBatch, skipped: int) -> None:
        """Take in what was read, after `skipped` corrupt images. Raises RunError if `data.skip_bad` is exceeded."""
        digest = batch.digest() if self.config.report.digests else 0
        self.meters.add_read(wait_seconds=batch.wait_seconds, corrupt=batch.corrupt, digest=digest)
        corrupt = self.meters.corrupt
        limit = self.config.data.skip_bad
        if skipped + len(corrupt) > limit:
            raise RunError(f"more than data.skip_bad = {limit} corrupt images; last: {corrupt[-1]}")

    def add_iteration(self, scalars: Scalars, images_seen: int, updates: int) -> None:
        """Take in an iteration of so many updates that ended at `images_seen`; does not wait for the device."""
        self.meters.add(scalars)
        self.updates += updates
        self.log.terminal.update_bar(images_seen)

    def add_save(self, seconds: float) -> None:
        """Take in the time that a checkpoint blocked the loop."""
        self.meters.add_save(seconds)

    def add_diversity(self, diversity: float) -> None:
        """Take in a grid's spread relative to that of real images; on the main process."""
        self.diversity = diversity

    def pause(self, seconds: float) -> None:
        """Leave time that was not spent training out of the rates."""
        self.stopwatch.pause(seconds)

    def is_empty(self) -> bool:
        """Whether there was no iteration in this logging interval."""
        return self.meters.iterations == 0

    def due(self, images_seen: int) -> bool:
        """Whether a multiple of `report.every_images` was crossed."""
        every_images = self.config.report.every_images
        crossed = images_seen // every_images > self.stopwatch.last_images // every_images
        return crossed and not self.is_empty()

    def report(self, state: TrainState, scheduled: dict[str, float]) -> None:
        """Reduce the sums over processes, print the status line and write the metrics; waits for the device.

        Called on all processes. Raises RunError if `data.skip_bad` is exceeded over all of them, and NonFiniteError
        if gradients overflow at every loss scale.
        """
        record = self.reduce_counts(state) | scheduled
        means = self.meters.means()
        rate, overall = self.stopwatch.lap(state.images_seen)
        if self.processes.is_main_process:
            self.write(state.images_seen, means, rate, overall, record)
        self.meters.reset()
        self.updates = 0
        self.diversity = None
        check_loss_scale(record)
        limit = self.config.data.skip_bad
        if state.skipped > limit:
            raise RunError(f"more than data.skip_bad = {limit} corrupt images over all processes")

    def reduce_counts(self, state: TrainState) -> dict[str, Any]:
        """What a record has beside the step's scalars; the counts are those of all processes."""
        for line in self.meters.corrupt:
            print(f"distgan: skipped a corrupt image: {line}", file=sys.stderr, flush=True)
        state.skipped += self.processes.all_reduce_sum(len(self.meters.corrupt))
        record: dict[str, Any] = {"skipped": state.skipped, "save_seconds": self.meters.save_seconds}
        # all processes wait for the slowest one
        record["data_wait_seconds"] = max(self.processes.all_gather_object(self.meters.data_wait_seconds))
        record |= self.loss_scale.scalars(updates=self.updates)
        if self.config.report.digests:
            record["digest"] = self.processes.all_reduce_sum(self.meters.digest)
        if self.diversity is not None:
            record["diversity"] = self.diversity
        return record

    def write(
        self, images_seen: int, means: dict[str, float], rate: float, overall: float, rest: dict[str, Any]
    ) -> None:
        """Print the status line and log the record, with rates in images per second; on the main process."""
        epoch = self.clock.epoch(images_seen, self.config.batch)
        record = {"images": images_seen, "epoch": epoch, **means, "images_per_second": rate, **rest}
        record["memory_gb"] = peak_memory(self.processes.device) / 1e9
        record["g_lr"] = float(self.gan.g_optimizer.param_groups[0]["lr"])
        record["d_lr"] = float(self.gan.d_optimizer.param_groups[0]["lr"])
        record["time"] = round(time.time(), 3)
        eta = max(0, self.clock.total_images - images_seen) / max(overall, 1e-9)
        self.log.terminal.print0(status_line(record, means, epochs=self.clock.epochs, eta_seconds=eta))
        self.log.record(record)
