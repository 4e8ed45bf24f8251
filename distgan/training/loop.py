"""The training loop: what is due before an iteration, the iteration, and what follows NaN or Inf."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from distgan.config.keys import Config
from distgan.data.stream import ImageBatch
from distgan.distributed.processes import Distributed
from distgan.evaluation.evaluator import Evaluator
from distgan.gan.image_generator import ImageGenerator
from distgan.gan.parts import GAN, Batches, GPenalties, Penalties
from distgan.gan.truncation import truncate
from distgan.logs.alarms import Alarms, spread
from distgan.logs.log import RunLog, Terminal
from distgan.logs.trackers import start_trackers
from distgan.page.build import write_page
from distgan.runs.checkpoint import Checkpoints, load
from distgan.runs.ema_snapshots import EMASnapshots
from distgan.training.batches import minibatches_of
from distgan.training.build import build_ema, build_power_emas
from distgan.training.captured import CapturedIteration
from distgan.training.compiled import check_gradients
from distgan.training.copying import CopyingTest
from distgan.training.data import Data
from distgan.training.due import REQUESTED_ELSEWHERE, Actions, Clock, CollapseError, Flag
from distgan.training.evaluation import Evaluations
from distgan.training.finite import FiniteCheck, NonFiniteError, checksum
from distgan.training.grids import LEAST_IMAGES, first_images, fixed_samples, grid_name, to_grid
from distgan.training.iteration import Iteration
from distgan.training.reporter import Reporter
from distgan.training.scheduled import ScheduledValues
from distgan.training.state import TrainState, copy_tensors, copy_weights, load_tensors
from distgan.training.stop import StopRequest
from distgan.training.warm_start import WarmStart


class Trainer:
    """A run in progress, on one of its processes: its components, its state, and where both go."""

    def __init__(
        self,
        config: Config,
        processes: Distributed,
        data: Data,
        gan: GAN,
        *,
        terminal: Terminal,
        checkpoints: Checkpoints,
        stop: StopRequest,
        evaluator: Evaluator | None = None,
        copying: CopyingTest | None = None,
        start: WarmStart | None = None,
    ) -> None:
        self.config = config
        self.processes = processes
        self.data = data
        self.gan = gan
        self.terminal = terminal
        self.checkpoints = checkpoints
        self.stop = stop
        self.run_dir = Path(config.run_dir)
        self.state = TrainState()
        self.clock = Clock.of(config, data.order.epoch_images)
        self.ema = processes.run_on_all(lambda: build_ema(config, gan, start))
        self.power_emas = build_power_emas(config, gan)
        self.snapshots = EMASnapshots(self.run_dir)
        self.init_from = {} if start is None else start.sha256
        """The sha256 of the files that the run began with, by network."""
        self.origins = [] if start is None else start.origins
        """The provenance of these, where they are weights of other projects."""
        self.scheduled = ScheduledValues(config, gan, processes.device, self.ema, self.power_emas)
        self.minibatches = minibatches_of(config, processes, data, gan)
        alarms = Alarms(list(config.penalties), absolute=gan.loss.boundary is not None)
        self.log = RunLog(self.run_dir, processes.accelerator, terminal, alarms)
        self.reporter = Reporter(config, processes, self.clock, gan, self.log)
        self.evaluations = Evaluations(config, processes, self.clock, self.log, checkpoints, evaluator, copying)
        self.began_at = 0
        """Images seen where the loop began."""
        self.saved_at = 0
        """Images seen at the last checkpoint."""
        self.profiler: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        """Around each iteration; records some of them, with --profile."""

    def image_generator(self, truncation_psi: float = 1.0) -> ImageGenerator:
        """What makes images: the EMA of G, or G if the run has none, truncated in w, and the decoder of its samples."""
        G = self.ema.module if self.ema else self.gan.raw_G
        return ImageGenerator(truncate(G, truncation_psi, self.config.model.latent), self.data.decoder)

    def start(self) -> None:
        """Begin to log at the state that was restored, if any. Raises UsageError on all processes."""
        images_seen = self.state.images_seen
        self.processes.run_on_main(lambda: self.snapshots.remove_after(images_seen))
        if self.config.report.trackers:
            accelerator = self.processes.accelerator
            self.processes.run_on_main(lambda: start_trackers(accelerator, self.config, images_seen))
        self.terminal.start_bar(images_seen, self.clock.total_images)
        self.evaluations.rewind(self.reporter.rewind(images_seen))

    def restore(self, path: Path) -> None:
        """Load a checkpoint, on every process. Raises UsageError if its networks are not those of the configuration."""
        files, saved = load(path)
        load_tensors(self.gan, self.ema, files, path, self.power_emas)
        scaler = self.processes.accelerator.scaler
        if scaler is not None and saved.scaler:
            scaler.load_state_dict(saved.scaler)
        self.scheduled.load_state(saved.augment_p, saved.augment_sign, saved.g_penalty_means)
        self.state = TrainState(saved.images, saved.skipped, saved.rollbacks)
        self.init_from = saved.init_from
        self.origins = saved.origins

    def train(self) -> str | None:
        """Train to the end, or to a stop; returns the reason of a stop.

        After NaN or Inf the run resumes from the newest checkpoint, up to `guard.rollbacks` times. Raises
        NonFiniteError, CollapseError and RunError.
        """
        while True:
            try:
                return self.loop()
            except CollapseError:
                self.write_page()  # with the alarms
                raise
            except NonFiniteError as error:
                self.rollback(error)

    def loop(self) -> str | None:
        """Each turn does what is due, then trains one iteration: start, resume and end are no special cases."""
        self.begin_iterations()
        self.began_at = self.state.images_seen
        self.saved_at = self.state.images_seen
        count = self.clock.iterations_left(self.state.images_seen)
        batches = self.minibatches.iterations(
            self.state.images_seen, count, on_read=self.record_read, rollbacks=self.state.rollbacks
        )
        while True:
            # agree with the other processes on what is due
            due = self.actions_due()
            # once in a while: save a grid of generated images
            if due.sample:
                self.save_grid()
            # once in a while: log the metrics; a logging interval never spans a checkpoint
            if due.log:
                self.reporter.report(self.state, self.scheduled.logged(self.state.images_seen))
                self.check_in_sync()
            # after each grid: write the page of the run
            if due.sample:
                self.write_page()
            # once in a while, and at the end: save a snapshot of the averages by power functions
            if due.snapshot:
                self.save_snapshot()
            # once in a while, at the end and at a stop: save a checkpoint
            if due.save:
                self.save()
            # once in a while, and at the end: metrics of generated images
            if due.evaluate and not self.evaluate():
                return self.stop.reason or REQUESTED_ELSEWHERE
            # stop at the end of the run, or when asked to
            if due.done:
                at_end = self.state.images_seen >= self.clock.total_images
                return None if at_end else self.stop.reason or REQUESTED_ELSEWHERE
            # update D, then G
            with self.profiler:
                self.iterate(batches)

    def begin_iterations(self) -> None:
        """Prepare what iterations share; those that were captured before a rollback hold tensors that it replaced."""
        self.finite_check = FiniteCheck(self.gan.raw_G, self.gan.raw_D)
        accelerator = self.processes.accelerator
        iteration = Iteration(
            self.gan, self.ema, self.scheduled, self.finite_check, accelerator, power_emas=self.power_emas
        )
        self.iteration = CapturedIteration(iteration) if self.config.graph else iteration

    def actions_due(self) -> Actions:
        """What is due now. Raises NonFiniteError on all processes if one found NaN or Inf; nothing is saved then."""
        images_seen = self.state.images_seen
        at_end = images_seen >= self.clock.total_images
        flag = self.processes.delayed_all_reduce_max(self.own_flag())
        done = at_end or flag == Flag.STOP
        evaluate = self.evaluations.due(images_seen) and (at_end or flag != Flag.STOP)  # the resumed run does it first
        checkpoint_due = self.clock.crossed(self.config.checkpoint.every_epochs, images_seen)
        save = images_seen > self.saved_at and (done or evaluate or checkpoint_due)
        snapshot = self.snapshot_due(images_seen)
        if save or snapshot:  # check what would be saved now, not an iteration later
            self.finite_check.check_weights(images_seen)
            own = Flag.NON_FINITE if self.finite_check.fault else Flag.GO_ON
            flag = max(flag, *self.processes.all_gather_object(own))
        self.raise_for(flag)
        grid_due = self.clock.crossed(self.config.samples.every_epochs, images_seen)
        return Actions(
            log=self.reporter.due(images_seen) or ((done or save) and not self.reporter.is_empty()),
            sample=images_seen > self.began_at and (done or grid_due),
            snapshot=snapshot,
            save=save,
            evaluate=evaluate,
            done=done,
        )

    def snapshot_due(self, images_seen: int) -> bool:
        """Whether this is the place of a snapshot; that of a restored checkpoint was written before it."""
        if not self.power_emas or images_seen <= self.began_at:
            return False
        at_end = images_seen >= self.clock.total_images
        return at_end or self.clock.crossed(self.config.ema.snapshot_epochs, images_seen)

    def own_flag(self) -> int:
        """What this process asks of all processes."""
        if self.finite_check.fault:
            return Flag.NON_FINITE
        if self.config.guard.stop_on_collapse and self.log.alarms.collapsed:
            return Flag.COLLAPSED
        return Flag.STOP if self.stop.requested() else Flag.GO_ON

    def raise_for(self, flag: int) -> None:
        """Raises NonFiniteError or CollapseError, on all processes, if the flag of all of them says so."""
        if flag == Flag.NON_FINITE:
            faults = self.processes.all_gather_object(self.finite_check.fault)
            raise NonFiniteError(next(fault for fault in faults if fault is not None))
        if flag == Flag.COLLAPSED:
            raise CollapseError(self.processes.run_on_main(self.describe_collapse))

    def iterate(self, batches: Iterator[Batches]) -> None:
        """One iteration: update D, then G, then the averages, an adaptive probability of augmentation and the clock."""
        images_seen = self.state.images_seen
        # set what changes with the images seen
        self.scheduled.set(images_seen)
        minibatches = next(batches)
        penalties = self.scheduled.penalties_due(images_seen)
        g_penalties = self.scheduled.g_penalties_due(images_seen)
        if self.config.compile and images_seen == self.began_at:
            self.check_compiled(minibatches, penalties, g_penalties)
        scalars, norms = self.iteration(minibatches, penalties, g_penalties)
        if self.config.adaptive_p:
            sign = self.processes.accelerator.reduce(scalars["d_sign"], "mean")
            assert isinstance(sign, Tensor)
            self.scheduled.adapt(sign, images_seen)
        self.state.images_seen += self.clock.iteration_images
        # keep the scalars, on the device, for the log and for the check for NaN and Inf
        self.reporter.add_iteration(scalars, self.state.images_seen, self.scheduled.updates(images_seen))
        self.finite_check.record(norms, scalars, self.state.images_seen)

    def check_compiled(self, minibatches: Batches, penalties: Penalties, g_penalties: GPenalties) -> None:
        """Compile, and compare the gradients with eager ones. Raises RunError if they differ."""
        start = time.monotonic()
        precision = self.config.precision
        error = self.processes.run_on_all(
            lambda: check_gradients(self.gan, minibatches, penalties, self.scheduled.p, precision, g_penalties)
        )
        seconds = time.monotonic() - start
        self.reporter.pause(seconds)
        self.terminal.print0(
            f"compiled in {seconds:.0f} s; gradients equal eager ones within {error:.1e} of their norms"
        )

    def record_read(self, batch: ImageBatch) -> None:
        """Take in a minibatch before D is updated on it. Raises RunError if `data.skip_bad` is exceeded."""
        self.reporter.add_read(batch, self.state.skipped)

    def save(self) -> None:
        """Copy the run's state to host memory on the main process, and hand it to the writer of checkpoints."""
        start = time.perf_counter()
        self.saved_at = self.state.images_seen
        if self.processes.is_main_process:
            scaler = self.processes.accelerator.scaler
            run = self.about()
            counters = {"skipped": self.state.skipped, "rollbacks": self.state.rollbacks, **self.scheduled.state()}
            counters["init_from_path"] = self.config.init_from
            counters["scaler"] = scaler.state_dict() if scaler is not None else None
            tensors = copy_tensors(self.gan, self.ema, self.power_emas)
            self.checkpoints.save(tensors, run | counters, self.weights_metadata())
            if self.config.checkpoint.wait:
                self.checkpoints.wait()
        self.reporter.add_save(time.perf_counter() - start)

    def about(self) -> dict[str, Any]:
        """What a checkpoint and each file of weights say of the run."""
        return {
            "images": self.state.images_seen,
            "config": self.config.fingerprint(),
            "manifest": self.data.dataset.digest,
            "networks": self.data.networks,
            "init_from": self.init_from,
            **({"origins": self.origins} if self.origins else {}),
        }

    def weights_metadata(self) -> dict[str, Any]:
        """What a generator is built from, and of which run it is."""
        return self.about() | self.data.metadata()

    def save_snapshot(self) -> None:
        """Copy the averages by power functions to host memory on the main process, and have them written."""
        start = time.perf_counter()
        if self.processes.is_main_process:
            averages = {average.width: copy_weights(average.module) for average in self.power_emas}
            metadata = self.weights_metadata()
            images_seen = self.state.images_seen
            self.checkpoints.write_before(lambda: self.snapshots.write(images_seen, averages, metadata))
        self.reporter.add_save(time.perf_counter() - start)

    def rollback(self, error: NonFiniteError) -> None:
        """Resume from the newest checkpoint after NaN or Inf. Raises NonFiniteError if the run may not, or cannot."""
        self.processes.drain_pending()
        self.processes.run_on_main(self.checkpoints.wait)
        newest = self.processes.run_on_main(self.checkpoints.newest)
        limit = self.config.guard.rollbacks
        if self.state.rollbacks >= limit or newest is None:
            raise NonFiniteError(f"{error}; {self.processes.run_on_main(self.checkpoints.describe_latest)}") from None
        rollbacks = self.state.rollbacks + 1
        self.terminal.print0(f"{error}; rollback {rollbacks} of {limit} to {newest}")
        self.restore(newest)
        self.processes.run_on_main(lambda: self.snapshots.remove_after(self.state.images_seen))
        self.state.rollbacks = rollbacks
        self.evaluations.rewind(self.reporter.rewind(self.state.images_seen))

    def evaluate(self) -> bool:
        """Evaluate the generator; returns whether it came to its end, which a stop prevents."""
        start = time.monotonic()
        done = self.evaluations.evaluate(
            self.image_generator(self.config.evaluate.truncation_psi),
            self.state.images_seen,
            spec=self.data.spec.pixels,
            ema=self.ema is not None,
            of_grids=self.image_generator(),
            stop=self.stop.requested,
        )
        self.reporter.pause(time.monotonic() - start)
        return done

    def describe_collapse(self) -> str:
        """What was seen, and the best checkpoint; called on the main process."""
        best = self.evaluations.describe_best() or "no checkpoint was evaluated (evaluate.every_epochs)"
        return f"guard.stop_on_collapse: the run collapsed (see the warnings above); {best}"

    def check_in_sync(self) -> None:
        """Raises RunError if the weights differ between processes."""
        if self.processes.world_size > 1:
            what = f"processes out of sync after {self.state.images_seen:,} images: the weights"
            self.processes.check_same_on_all_ranks(what, checksum([self.gan.raw_G, self.gan.raw_D]))

    def save_grid(self) -> None:
        """Generated images of fixed latents, as samples/fake-EPOCH.png; on the main process."""
        if not self.processes.is_main_process:
            return
        images_seen = self.state.images_seen
        images = fixed_samples(self.image_generator(), self.data, self.config, self.processes.device)
        picture = to_grid(images, self.config.samples.show)
        self.log.grid(grid_name(images_seen / self.clock.epoch_images), picture, images_seen)
        # the grid of an end or a stop between two others is not in the log: an uninterrupted run has none there
        if self.clock.crossed(self.config.samples.every_epochs, images_seen) and len(images) >= LEAST_IMAGES:
            real = first_images(self.data, len(images), self.processes.device)
            self.reporter.add_diversity(spread(images) / max(spread(real), 1e-6))

    def save_real_grid(self) -> None:
        """The first images that the main process trains on, as samples/real.png; on the main process."""
        images = first_images(self.data, self.config.samples.count, self.processes.device)
        self.log.grid("real", to_grid(images, self.config.samples.show), self.state.images_seen)

    def write_page(self) -> None:
        """Write report.html, on the main process."""
        if self.processes.is_main_process and self.config.report.page:
            write_page(self.run_dir)
