"""How long an evaluation will take, from a chunk of each kind that is timed before it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from distgan.data.stream import Reader
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.features import extract
from distgan.evaluation.image_set import ImageSet, check_comparable
from distgan.evaluation.inputs import chunk_size, from_stored, round_to_stored
from distgan.evaluation.shares import enough
from distgan.gan.outputs import images_of
from distgan.samples import SampleSpec

LONG_MINUTES = 10.0
"""From there on the estimate says what makes an evaluation shorter."""
SHOWN_SECONDS = 60.0
"""On a GPU a shorter one is not announced."""
PROBE = 32
"""Images that are timed on a CPU, where the time grows with their number; on a GPU a whole chunk is."""


@dataclass(frozen=True)
class Estimate:
    """What an evaluation is expected to take."""

    seconds: float
    generated: int
    real: int
    """Real images that are compared with."""
    to_measure: int
    """Those whose statistics are not cached, and that are read first."""
    processes: int
    on_cpu: bool

    def line(self, prefix: str = "--") -> str | None:
        """One line of text, or None of a short evaluation on a GPU; `prefix` is that of the options."""
        if not self.on_cpu and self.seconds < SHOWN_SECONDS:
            return None
        cached = "statistics cached" if not self.to_measure else f"{self.to_measure:,} to read first"
        where = f"{self.processes} process{'es' if self.processes > 1 else ''}"
        counts = f"{self.generated:,} generated, {self.real:,} real images ({cached})"
        text = f"about {about(self.seconds)} on {where}: {counts}"
        if self.seconds < 60 * LONG_MINUTES:
            return text
        gpu = " or a GPU" if self.on_cpu else ""
        return f"{text}; shorter with fewer {prefix}samples, another {prefix}extractor, more processes{gpu}"


def estimate(evaluator: Evaluator, G: nn.Module, *, z_dim: int, spec: SampleSpec | None) -> Estimate:
    """Of an evaluation of G; on all processes. The arguments are those of the evaluator's call.

    The state of random generators is as before.
    """
    made = [] if evaluator.check_bins(spec) == "classifier" else evaluator.bins
    generated = evaluator.samples + sum(evaluator.shares.samples_of(each) for each in made)
    return time_chunks(evaluator, generated, lambda count: generate(evaluator, G, count, z_dim, spec))


def estimate_set(evaluator: Evaluator, images: ImageSet) -> Estimate:
    """Of an evaluation of a set of images; on all processes. Raises UsageError for one that cannot be compared."""
    check_comparable(evaluator.extractor, images, evaluator.dataset.spec)
    dataset = images.stored.dataset
    reader = Reader(dataset, skip_bad=images.stored.skip_bad)
    ids = images.stored.ids
    return time_chunks(evaluator, images.count, lambda count: measure(evaluator, reader, ids[:count]))


def time_chunks(evaluator: Evaluator, generated: int, probe: Callable[[int], None]) -> Estimate:
    """Time `probe(count)` of generated images, and real ones whose statistics are not cached, after a warm-up of each.

    The time is that of the main process while the others work as they will. What is left out: reading a cache, shards
    that are not on this machine yet, and the metrics themselves, seconds with the default ones.
    """
    processes = evaluator.processes
    to_measure = processes.run_on_main(lambda: count_uncached(evaluator))
    on_cpu = processes.device.type == "cpu"
    size = chunk_size(evaluator.dataset.spec)
    count = min(size, PROBE) if on_cpu else size
    work = [(generated, lambda: probe(count))]
    if to_measure:
        ids = np.arange(min(count, evaluator.shares.total))
        reader = Reader(evaluator.dataset, skip_bad=evaluator.settings.skip_bad)
        work.append((to_measure, lambda: measure(evaluator, reader, ids)))
    seconds = 0.0
    for images, each in work:
        taken = processes.run_on_all(lambda each=each: seconds_of(each))
        turns = -(-images // (size * processes.world_size))
        seconds += min(turns * size, images) * taken / count
    split = evaluator.shares.whole().split
    found = Estimate(seconds, generated, split.others + split.shared, to_measure, processes.world_size, on_cpu)
    return processes.run_on_main(lambda: found)


def seconds_of(probe: Callable[[], object]) -> float:
    """Of the second call."""
    probe()
    start = time.perf_counter()
    probe()
    return time.perf_counter() - start


@torch.no_grad()
def generate(evaluator: Evaluator, G: nn.Module, count: int, z_dim: int, spec: SampleSpec | None) -> None:
    """Make and measure images as an evaluation does, up to where features are on the CPU."""
    device = evaluator.processes.device
    training = G.training
    G.eval()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            images = images_of(G(*evaluator.inputs(z_dim, spec, None)(0, count)))
    finally:
        G.train(training)
    spec = evaluator.dataset.spec
    extract(evaluator.extractor, from_stored(round_to_stored(images, spec), spec))[0].cpu()


@torch.no_grad()
def measure(evaluator: Evaluator, reader: Reader, ids: np.ndarray) -> None:
    """Read and measure images of a dataset, up to where features are on the CPU."""
    stored = torch.from_numpy(reader.read(ids).images).to(evaluator.processes.device)
    extract(evaluator.extractor, from_stored(stored, reader.shards.spec))[0].cpu()


def count_uncached(evaluator: Evaluator) -> int:
    """Real images, of the dataset and of its bins, whose statistics are not cached."""
    populations = [] if evaluator.prepared else [evaluator.shares.whole()]
    for each in evaluator.bins:
        samples = evaluator.shares.samples_of(each)
        population = evaluator.shares.population(each, samples)
        populations += [population] if enough(samples, population) else []
    images = 0
    for population in populations:
        if not evaluator.real_images.cache(population).path.is_file():
            images += population.split.stand_ins + population.split.others
    return images


def about(seconds: float) -> str:
    """A length of time, to the precision of an estimate."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
