"""Whether G copies the training set, at the evaluations of a run: what is compared, and with what."""

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.data.dataset import open_dataset
from distgan.distributed.processes import Distributed
from distgan.errors import UsageError
from distgan.evaluation.evaluator import Evaluator
from distgan.evaluation.generated import Inputs
from distgan.evaluation.memorization import LEAST_IMAGES, Memorization, MemorizationTest
from distgan.evaluation.nearest import NearestSearch
from distgan.evaluation.originals import RealImageSet, real_images_of
from distgan.samples import SampleSpec
from distgan.training.data import Data
from distgan.training.grids import fixed_inputs

OPTIONS = {"data": "evaluate.nearest", "data.shards": "evaluate.nearest", "held_out": "evaluate.held_out"}
"""What errors name -> the key."""


@dataclass(frozen=True)
class CopyingTest:
    """Compares `evaluate.nearest` images of G with the training images; called on all processes."""

    config: Config
    data: Data
    evaluator: Evaluator
    test: MemorizationTest

    def __call__(self, G: nn.Module, spec: SampleSpec, stop: Callable[[], bool]) -> Memorization:
        """Of G, which makes images of `spec`. Raises CorruptDataError and Stopped."""
        return self.test.of_generator(G, self.inputs(spec), self.config.evaluate.nearest, stop)

    def inputs(self, spec: SampleSpec) -> Inputs:
        """Latents and labels: those of the grids first, then those of evaluations from their first on."""
        config = self.config
        z_dim = config.model.latent
        count = config.samples.count
        of_grids = fixed_inputs(config.seed, count, z_dim, self.data.dataset, self.data.spec).slices(
            self.test.processes.device
        )

        def inputs(first: int, images: int) -> tuple[Tensor, Tensor | None]:
            here = max(min(count - first, images), 0)
            z, labels = of_grids(first, here)
            if here == images:
                return z, labels
            more_z, more_labels = self.evaluator.latents(first + here - count, images - here, z_dim, spec)
            z = torch.cat([z, more_z])
            return z, None if labels is None or more_labels is None else torch.cat([labels, more_labels])

        return inputs


def open_copying_test(
    config: Config, processes: Distributed, data: Data, evaluator: Evaluator | None
) -> CopyingTest | None:
    """The test that `evaluate.nearest` asks for, if any. Raises UsageError for anything that it lacks."""
    keys = config.evaluate
    if not keys.nearest:
        if keys.held_out is not None:
            raise UsageError("evaluate.held_out: nothing is compared with it; set evaluate.nearest, or leave it out")
        return None
    if evaluator is None:
        raise UsageError("evaluate.nearest: there are no evaluations; set evaluate.every_epochs")
    if keys.nearest < LEAST_IMAGES:
        raise UsageError(f"evaluate.nearest: {keys.nearest} images are too few; give {LEAST_IMAGES} or more")
    try:
        training = processes.run_on_all(lambda: training_images(config, data))
        held_out = processes.run_on_all(lambda: held_out_images(config))
        search = NearestSearch(
            processes,
            training.dataset,
            evaluator.extractor,
            flip=config.data.flip,
            skip_bad=config.data.skip_bad,
            log=lambda line: None,
        )
        test = MemorizationTest(search, held_out)
    except UsageError as error:
        name, _, text = str(error).partition(": ")
        raise UsageError(f"{OPTIONS.get(name, name)}: {text}") from None
    return CopyingTest(config, data, evaluator, test)


def training_images(config: Config, data: Data) -> RealImageSet:
    """The images that G is trained on; of latents, those that were encoded. Raises UsageError, which names `data`."""
    return real_images_of(data.dataset, config.data.shards, asdict(config.data))


def held_out_images(config: Config) -> RealImageSet | None:
    """Those that `evaluate.held_out` names, if any. Raises UsageError, which names `held_out`."""
    address = config.evaluate.held_out
    if address is None:
        return None
    keys = asdict(config.data)
    try:
        return real_images_of(open_dataset(address, keys), address, keys)
    except UsageError as error:
        raise UsageError(f"held_out: {str(error).partition(': ')[2]}") from None
