"""How long an evaluation will take, from a chunk of each kind that is timed before it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from distgan.data.stream import Reader
from distgan.evaluation.evaluator import Evaluator, enough
from distgan.evaluation.features import extract
from distgan.evaluation.inputs import chunk_size, from_generator, from_stored
from distgan.evaluation.reference import Population
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
    """Time a chunk of generated images, and of real ones whose statistics are not cached; on all processes.

    After a chunk that warms up. The time is that of the main process while the others work as they will. What is left
    out: reading a cache, shards that are not on this machine yet, and the metrics themselves, seconds with the default
    ones. The arguments are those of the evaluator's call. The state of random generators is as before.
    """
    processes = evaluator.processes
    generated = evaluator.samples + sum(evaluator.share(each)[0] for each in evaluator.bins)
    to_measure = processes.run_on_main(lambda: count_uncached(evaluator))
    on_cpu = processes.device.type == "cpu"
    size = chunk_size(evaluator.dataset.spec)
    count = min(size, PROBE) if on_cpu else size
    work = [(generated, lambda: generate(evaluator, G, count, z_dim, spec))]
    if to_measure:
        ids = np.arange(min(count, evaluator.total))
        reader = Reader(evaluator.dataset, skip_bad=evaluator.real_images.skip_bad)
        work.append((to_measure, lambda: measure(evaluator, reader, ids)))
    seconds = 0.0
    for images, probe in work:
        taken = processes.run_on_all(lambda probe=probe: seconds_of(probe))
        turns = -(-images // (size * processes.world_size))
        seconds += min(turns * size, images) * taken / count
    reference = evaluator.split.others + evaluator.split.shared
    found = Estimate(seconds, generated, reference, to_measure, processes.world_size, on_cpu)
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
    extract(evaluator.extractor, from_generator(images, evaluator.dataset.spec))[0].cpu()


@torch.no_grad()
def measure(evaluator: Evaluator, reader: Reader, ids: np.ndarray) -> None:
    """Read and measure real images, up to where features are on the CPU."""
    stored = torch.from_numpy(reader.read(ids).images).to(evaluator.processes.device)
    extract(evaluator.extractor, from_stored(stored, evaluator.dataset.spec))[0].cpu()


def count_uncached(evaluator: Evaluator) -> int:
    """Real images, of the dataset and of its bins, whose statistics are not cached."""
    populations = [] if evaluator.prepared else [Population(np.arange(evaluator.total), evaluator.split)]
    shares = [evaluator.share(each) for each in evaluator.bins]
    populations += [population for samples, population in shares if enough(samples, population)]
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
