"""The options of `distgan evaluate`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from distgan.config.types import NonNegativeFloat, NonNegativeInt, PositiveInt
from distgan.errors import UsageError
from distgan.files import cache_folder

if TYPE_CHECKING:
    from distgan.evaluation.settings import Settings


@dataclass(frozen=True)
class Options:
    """The options of `distgan evaluate`; the docstrings are their help."""

    data: str | None = None
    """The real images: a dataset, or what `distgan shards make` reads (a folder, class folders, a .zip, an .npz, ...),
    which is converted once into the cache. Default: the dataset that the generator was trained on; of a dataset of
    latents, the images that are kept beside them, or the dataset that they were encoded from."""
    generated: str | None = None
    """Images to evaluate in the place of a generator's: a dataset or another source, as of --data."""
    metrics: str = ""
    """Comma-separated: fid, kid, is, precision_recall, density_coverage, modes. Default: fid, precision_recall, and
    modes with a classifier of the dataset's labels. Scores are named fid, kid and is only with Inception features; with
    others they are fd_EXTRACTOR, kd_EXTRACTOR and is_EXTRACTOR."""
    extractor: str = "classifier"
    """classifier (of the dataset's labels; --train_extractor makes it), dinov2, efficientnet-lite0, inception, pixels
    (averages of an image's parts: for images of any kind, without labels), or the .safetensors file of a classifier."""
    extractor_weights: str | None = None
    """Weights of dinov2 (dinov2_vitl14_pretrain.pth, a folder of transformers' Dinov2Model, or hf://OWNER/NAME), or of
    inception (a .pth file). Default of inception: the file of --prefetch."""
    resize: Literal["clean", "tensorflow"] | None = None
    """How images reach the input size of inception: tensorflow, as FID is published, or clean, as clean-fid does.
    Default: tensorflow."""
    by: str | None = None
    """A condition that the generator takes, or class: the metrics of the images of each of its bins too. The class of
    an image is the one that it was made for, its label, or, where it has none, what the extractor classifier sees."""
    bins: PositiveInt | None = None
    """Bins of --by, with about as many images in each; one for each value of a condition with fewer values, and for
    each class. Default: 5."""
    balanced: bool = False
    """As many generated images of each class; False: at the frequencies of the dataset."""
    truncation_psi: NonNegativeFloat = 1.0
    """Truncation of w, for G with a mapping network: w_mean + psi (w - w_mean), with the mean of each label. 1: off."""
    vae: str | None = None
    """Folder of the autoencoder that decodes what a generator of latents makes. Default: that of the run, or the one
    that is kept in ~/.cache/distgan/vae, by its hash."""
    samples: PositiveInt | None = None
    """Generated images. Default: 26,000 for stacked-mnist, else as many as the dataset has, up to 50,000; all of
    --generated."""
    seed: NonNegativeInt = 0
    """Seed of the latents, of which --samples of --generated are taken, or of the classifier's training."""
    reference_images: PositiveInt | None = None
    """Real images to compare with, drawn at random. Default: all. Their statistics are cached."""
    skip_bad: NonNegativeInt = 0
    """Corrupt images of the dataset to replace by others; one more ends the evaluation."""
    out: str | None = None
    """File of the card (.json), or of the classifier (.safetensors). Default: RUN/cards/IMAGES-EXTRACTOR.json, with the
    weights, resize, metrics, --by, psi, balanced, counts, the hash of --data and the seed in its name if given, or the
    cache."""
    train_extractor: str | None = None
    """Dataset on whose labels to train a classifier, on one process."""
    train_images: PositiveInt | None = None
    """Images to train it on, repetitions counted. Default: 8 epochs, between 60,000 and 400,000."""
    cache_dir: str | None = None
    """Folder of extractors, statistics and converted datasets. Default: ~/.cache/distgan."""

    @property
    def out_file(self) -> Path | None:
        return Path(self.out) if self.out else None

    @property
    def card_file(self) -> Path | None:
        """Of the card, if it is named. Raises UsageError."""
        if self.out_file is not None and self.out_file.suffix != ".json":
            raise UsageError(f"out: {self.out} must end in .json")
        return self.out_file

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir else cache_folder()

    @property
    def metric_names(self) -> list[str]:
        return [name.strip() for name in self.metrics.split(",") if name.strip()]

    def settings(self, samples: int | None = None) -> "Settings":
        """Those of the Evaluator, for a set of so many generated images, or for a generator."""
        from distgan.evaluation.settings import Settings

        return Settings(
            extractor=self.extractor,
            extractor_weights=self.extractor_weights,
            resize=self.resize,
            metrics=self.metric_names,
            samples=samples if samples is not None else self.samples,
            seed=self.seed,
            reference_images=self.reference_images,
            skip_bad=self.skip_bad,
            cache=self.cache,
            by=self.by,
            bins=self.bins,
            balanced=self.balanced,
        )

    def check_generated(self) -> None:
        """Raises UsageError for options of a generator, of which a set of images has none."""
        given = {
            "truncation_psi": self.truncation_psi != 1,
            "balanced": self.balanced,
            "vae": self.vae is not None,
            "bins": self.bins is not None,
        }
        name = next((name for name, is_given in given.items() if is_given), None)
        if name is not None:
            raise UsageError(f"{name}: --generated has images, of which no generator is asked; leave it out")
        if self.data is None:
            raise UsageError("data: give the real images that --generated is compared with, as --data ADDRESS")

    def card_name(self, images: int | None, extractor: str, manifest: str) -> str:
        """A name of its own for each choice of weights, resize, metrics, bins, sampling, counts, seed and other data.

        Their cards do not overwrite each other. `manifest` is the hash of the dataset of the real images.
        """
        network = [file_word(Path(self.extractor_weights).stem)] if self.extractor_weights is not None else []
        network += [self.resize] if self.resize not in (None, "tensorflow") else []
        bins = ["by", file_word(self.by)] if self.by is not None else []
        bins += [str(self.bins)] if self.bins is not None else []
        seed = [f"seed{self.seed}"] if self.seed else []
        sampling = [f"psi{self.truncation_psi:g}"] if self.truncation_psi != 1 else []
        sampling += ["balanced"] * self.balanced
        data = [f"data{manifest[:8]}"] if self.data is not None else []
        counts = [f"n{self.samples}"] if self.samples is not None else []
        counts += [f"ref{self.reference_images}"] if self.reference_images is not None else []
        words = [str(images), extractor, *network, *self.metric_names, *bins, *sampling, *counts, *data, *seed]
        return "-".join(words) + ".json"


def file_word(text: str) -> str:
    """A text as a part of a file's name."""
    return re.sub(r"[^\w.]+", "_", text)
