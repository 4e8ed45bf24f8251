"""Generated images: made and measured chunk by chunk, each process its share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from distgan.distributed.processes import Distributed
from distgan.evaluation.card import ImageSum
from distgan.evaluation.chunks import run_chunks
from distgan.evaluation.extractor import Extractor
from distgan.evaluation.features import extract
from distgan.evaluation.inputs import chunk_size, from_generator, image_sums
from distgan.evaluation.progress import ProgressBar
from distgan.evaluation.statistics import Accumulator, Statistics
from distgan.gan.outputs import images_of
from distgan.pixels import to_stored
from distgan.samples import SampleSpec


class Generated(NamedTuple):
    """Of the images of all processes."""

    statistics: Statistics
    image_sum: ImageSum | None
    """With an extractor that sums images."""


@dataclass(frozen=True)
class GeneratedStatistics:
    """Measures images of a generator; called on all processes."""

    processes: Distributed
    extractor: Extractor
    spec: SampleSpec
    """Of the stored images that generated ones are rounded to."""
    keep_logits: bool
    """Whether a metric needs them."""
    log: Callable[[str], None] | None

    @torch.no_grad()
    def of(
        self,
        G: nn.Module,
        inputs: Callable[[int, int], tuple[Tensor, Tensor | None]],
        samples: int,
        stop: Callable[[], bool],
    ) -> Generated:
        """Of `samples` images of G, in evaluation mode. Raises Stopped.

        `inputs` maps the number of the first image of a chunk, and how many there are, to latents and labels.
        """
        accumulator = Accumulator(self.extractor.num_features)
        sums = Accumulator(1) if self.extractor.sums_images else None
        main = self.processes.is_main_process
        progress = ProgressBar("generated images", samples, main=main, log=self.log)
        size = chunk_size(self.spec)

        def work(chunk: int) -> None:
            first = chunk * size
            count = min(size, samples - first)
            images = images_of(G(*inputs(first, count)))
            features, logits = extract(self.extractor, from_generator(images, self.spec))
            positions = torch.arange(first, first + count)
            accumulator.add(positions, features, logits if self.keep_logits else None)
            if sums is not None:
                sums.add(positions, image_sums(to_stored(images, self.spec))[:, None], None)
            progress.update(first + size)

        training = G.training
        G.eval()
        try:
            run_chunks(self.processes, -(-samples // size), work, stop)
        finally:
            G.train(training)
        progress.close()
        return Generated(accumulator.reduce(self.processes), sums.reduce(self.processes).image_sum if sums else None)
