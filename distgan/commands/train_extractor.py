"""`distgan evaluate --train_extractor DATASET`: a classifier of the dataset's labels, as an extractor of features."""

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.errors import RunError, UsageError, format_os_error

if TYPE_CHECKING:
    from distgan.evaluation.progress import ProgressBar


class TrainingProgress:
    """The progress of a training, shown from its first call on, which tells the total."""

    progress: "ProgressBar | None" = None

    def __call__(self, done: int, total: int) -> None:
        from distgan.evaluation.progress import ProgressBar

        if self.progress is None:
            self.progress = ProgressBar("training the classifier", total)
        self.progress.update(done)

    def close(self) -> None:
        if self.progress is not None:
            self.progress.close()


def train_extractor(address: str, *, seed: int, images: int | None, cache: Path, out: Path | None) -> None:
    """Train a classifier of the dataset's labels and write it to `out`, by default to the cache.

    `images` to train it on, repetitions counted; default: 8 epochs, between 60,000 and 400,000.
    Raises UsageError and RunError.
    """
    import torch

    from distgan.data.dataset import open_dataset
    from distgan.evaluation.classifier import save_classifier
    from distgan.evaluation.classifier_training import train_classifier
    from distgan.evaluation.features import default_classifier
    from distgan.evaluation.originals import real_images_of

    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UsageError("train_extractor: it runs on one process; start it without accelerate launch")
    dataset = real_images_of(open_dataset(address), address).dataset
    out = out or default_classifier(dataset, cache)
    check_writable(out)  # before the training, not after it
    progress = TrainingProgress()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network, info = train_classifier(dataset, seed=seed, images=images, device=device, progress=progress)
    progress.close()
    try:
        save_classifier(network, info, out)
    except OSError as error:
        raise RunError(f"the classifier could not be written to {out}: {format_os_error(error)}") from None
    print(f"{out}: accuracy {info.accuracy:.2%} on {info.held_out:,} held-out images, {len(info.classes)} classes")


def check_writable(out: Path) -> None:
    """Raises UsageError for a file that cannot be written, or is no .safetensors."""
    if out.suffix != ".safetensors":
        raise UsageError(f"out: {out} must end in .safetensors")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out.parent):
            pass
    except OSError as error:
        raise UsageError(f"out: {out} cannot be written: {format_os_error(error)}") from None
