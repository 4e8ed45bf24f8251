"""`distgan evaluate RUN --follow`: each checkpoint of a run is evaluated as it appears, by processes beside the run."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distgan.commands.datasets import data_config, trained_on
from distgan.commands.evaluate import announce, readable_errors, write_card
from distgan.commands.evaluate_options import Options
from distgan.commands.image_sets import open_images
from distgan.config.keys import Config
from distgan.data.dataset import open_dataset
from distgan.distributed.processes import TIMEOUT_SECONDS, Distributed
from distgan.errors import DistganError, UsageError
from distgan.evaluation.card import Card
from distgan.evaluation.chunks import Stopped
from distgan.evaluation.estimate import estimate
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.originals import check_same_kind
from distgan.evaluation.scores import value_names
from distgan.generators.loading import load_generator
from distgan.generators.pretrained import PretrainedGenerator
from distgan.runs.cards import read_card
from distgan.runs.checkpoint import Checkpoints
from distgan.runs.length import run_length
from distgan.runs.watch import Ended, Found, Watch
from distgan.training.evaluation import mark_best
from distgan.training.stop import Requeue, StopRequest

STEP_SECONDS = 0.2
"""A waiting process looks for a signal so often."""


@dataclass(frozen=True)
class Pace:
    """How long a follower waits."""

    poll_seconds: float = 30.0
    """Between two looks at the run folder."""
    idle_minutes: float = 60.0
    """Until a run that writes nothing counts as ended."""

    def check(self) -> None:
        """Raises UsageError."""
        if self.poll_seconds > TIMEOUT_SECONDS / 2:
            raise UsageError(f"poll_seconds: at most {TIMEOUT_SECONDS / 2:g}, half the time-out of the processes")


def follow(run: Path, options: Options, pace: Pace) -> None:
    """Evaluate the checkpoints of a run, the newest first, until it is at its end; returns at SIGTERM and SIGINT too.

    Called on all processes. The run may not have begun. Raises UsageError and RunError.
    """
    pace.check()
    if run.suffix == ".safetensors" or run.is_file():
        raise UsageError(f"follow: {run} is a file; give a run folder")
    if options.out is not None:
        raise UsageError("out: with --follow the cards go to RUN/cards; leave it out")
    processes = Distributed(Config())
    follower = Follower(run, options, pace, processes)
    with readable_errors(processes):
        follower.follow()
    processes.shutdown()


class Follower:
    """The processes that evaluate the checkpoints of a run. The main process looks for them, all evaluate."""

    def __init__(self, run: Path, options: Options, pace: Pace, processes: Distributed) -> None:
        self.run = run
        self.options = options
        self.pace = pace
        self.processes = processes
        self.requeue = Requeue()
        """By which launch/train.sbatch starts a follower again after its time limit."""
        folders = [self.requeue.folder] if self.requeue.folder else []
        self.stop = StopRequest(folders, min(pace.poll_seconds, 2.0))
        self.watch = Watch(run, self.length, self.has_card, pace.idle_minutes * 60, self.say)
        self.evaluator: Evaluator | None = None
        """Made when the first checkpoint is there."""
        self.announced = False
        self.evaluated = 0
        """Checkpoints, on the main process."""
        self.samples: int | None = None
        """Images of the dataset that the run trains on."""
        self.said: set[str] = set()

    def follow(self) -> None:
        self.say_once(f"following {self.run}, looking for checkpoints every {self.pace.poll_seconds:g} s")
        while not self.stopped():
            found = self.processes.run_on_main(self.look)
            if isinstance(found, Ended):
                self.say(f"{found.reason}; checkpoints evaluated: {self.evaluated}")
                break
            if found is None:
                self.wait()
            else:
                self.evaluate(found)
        else:
            self.processes.run_on_main(self.say_stopped)
        self.stop.close()

    def say_stopped(self) -> None:
        reason = self.stop.reason or "requested on another process"
        self.say(f"stopped ({reason}); the same command goes on")
        self.requeue.stopped(max(Checkpoints(self.run / "checkpoints").all(), default=0), reason, self.run)

    def look(self) -> Found | Ended | None:
        """On the main process: what is next. Nothing before the first checkpoint is there."""
        if self.evaluator is None and not Checkpoints(self.run / "checkpoints").all():
            if not self.run.is_dir():
                self.say_once(f"{self.run} is not there yet: waiting for it")
            return self.watch.ended([])
        return self.watch.look()

    def stopped(self) -> bool:
        """Whether one of the processes was asked to stop; the same on all."""
        return bool(self.processes.all_reduce_max(int(self.stop.requested())))

    def wait(self) -> None:
        until = time.monotonic() + self.pace.poll_seconds
        while time.monotonic() < until and not self.stop.requested():
            time.sleep(min(STEP_SECONDS, self.pace.poll_seconds))

    def evaluate(self, found: Found) -> None:
        """Evaluate a checkpoint, and write its card; one that was deleted meanwhile is skipped."""
        if self.evaluator is None:
            self.evaluator = self.make_evaluator()
            if self.processes.run_on_main(lambda: self.has_card(found.images)):
                return  # by an earlier process: only now its cards can be told from others
        G = self.load(found)
        if G is None:
            return
        check_same_kind(G.spec, G.classes, self.evaluator.dataset, self.evaluator.path)
        if not self.announced:
            announce(self.evaluator, estimate(self.evaluator, G, z_dim=G.z_dim, spec=G.spec))
            self.announced = True
        psi = self.options.truncation_psi
        about: dict[str, Any] = {"images": found.images, "ema": found.file.stem == "ema", "file": str(found.file)}
        try:
            card = self.evaluator(G, z_dim=G.z_dim, spec=G.spec, truncation_psi=psi, stop=self.stop.requested, **about)
        except Stopped:
            return
        self.processes.run_on_main(lambda: self.keep(found.images, card))

    def load(self, found: Found) -> PretrainedGenerator | None:
        """The generator, on all processes; None if the run deleted its checkpoint meanwhile."""
        vae = self.options.vae or data_config(self.run).get("vae")
        psi = self.options.truncation_psi

        def load() -> PretrainedGenerator:
            return load_generator(found.file, self.processes.device, vae=vae, truncation_psi=psi)

        try:
            return self.processes.run_on_all(load)
        except DistganError:
            if self.processes.run_on_main(found.file.exists):
                raise
            return None  # the next look says so

    def make_evaluator(self) -> Evaluator:
        """On all processes. Raises UsageError."""
        keys = data_config(self.run)
        address = self.options.data or trained_on(self.run)
        real = open_images(address, self.processes, self.options.cache, "data", keys)
        return Evaluator(self.processes, real.dataset, self.options.settings(), path=real.address)

    def length(self) -> int | None:
        """Images at which the run ends, by its config.yaml of now; on the main process."""
        config = self.config()
        if config.get("images") is None and config.get("epochs") is not None and self.samples is None:
            try:
                self.samples = len(open_dataset(trained_on(self.run), data_config(self.run)).columns["label"])
            except (DistganError, OSError) as error:
                self.say_once(f"the length of the run in images is unknown ({error})")
        return run_length(config, self.samples)

    def config(self) -> dict[str, Any]:
        """config.yaml; {} if it is not there yet."""
        try:
            config = yaml.safe_load((self.run / "config.yaml").read_text())
        except (OSError, yaml.YAMLError):
            return {}
        return config if isinstance(config, dict) else {}

    def card_file(self, images: int) -> Path:
        assert self.evaluator is not None, "made before the first card"
        name = self.options.card_name(images, self.evaluator.extractor.name, self.evaluator.dataset.digest)
        return self.run / "cards" / name

    def card_at(self, images: int) -> dict[str, Any] | None:
        """The card that this command wrote for a checkpoint, if it measured as now."""
        if self.evaluator is None or not (path := self.card_file(images)).is_file():
            return None
        card = read_card(path)
        evaluator = self.evaluator
        now = [evaluator.extractor.sha256, evaluator.dataset.digest, evaluator.samples, evaluator.settings.seed]
        then = [card["extractor"]["sha256"], card["data"]["manifest"], card["counts"]["generated"], card["seed"]]
        split = evaluator.shares.whole().split
        same_reference = card["counts"]["reference"] == split.others + split.shared
        return card if now == then and same_reference else None

    def has_card(self, images: int) -> bool:
        return self.card_at(images) is not None

    def keep(self, images: int, card: Card) -> None:
        """Print and write a card, and mark the best checkpoint; on the main process. Raises RunError."""
        print(card.line(), flush=True)
        write_card(card, self.card_file(images))
        self.evaluated += 1
        self.mark_best()
        self.requeue.saved(images)

    def mark_best(self) -> None:
        """Keep the best checkpoint by the cards so far, for a run that evaluates nothing itself.

        The run reads RUN/best.json before it deletes a checkpoint. One that it is deleting now is lost all the same.
        """
        assert self.evaluator is not None, "made before the first card"
        keys = self.config().get("evaluate") or {}
        if keys.get("every_epochs"):
            return
        metric = keys.get("best")
        names = value_names(self.evaluator.metrics, self.evaluator.extractor.name)
        if metric is not None and metric not in names:
            self.say_once(
                f"no checkpoint is marked as the best: evaluate.best is {metric}, and cards have {', '.join(names)}"
            )
            return
        checkpoints = Checkpoints(self.run / "checkpoints")
        found = [(images, card) for images in checkpoints.all() if (card := self.card_at(images)) is not None]
        mark_best(checkpoints, found, metric)

    def say(self, line: str) -> None:
        if self.processes.is_main_process:
            print(line, flush=True)

    def say_once(self, line: str) -> None:
        if line not in self.said:
            self.said.add(line)
            self.say(line)
