"""The options of `distgan nearest`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from distgan.config.types import NonNegativeFloat, NonNegativeInt, PositiveInt
from distgan.files import cache_folder


@dataclass(frozen=True)
class Options:
    """The options of `distgan nearest`; the docstrings are their help."""

    data: str | None = None
    """The training images: a dataset, or what `distgan shards make` reads. Default: those that the run was trained on;
    of a dataset of latents, the images that are kept beside them, or the dataset that they were encoded from."""
    generated: str | None = None
    """Images in place of those of a generator: a dataset, or what `distgan shards make` reads."""
    held_out: str | None = None
    """Images that were not trained on, to compare with, likewise. Default: training images, each against the others
    that are not equal to it pixel by pixel."""
    samples: PositiveInt | None = None
    """Generated images. Default: 64."""
    extractor: str = "classifier"
    """As of `distgan evaluate`: classifier, dinov2, efficientnet-lite0, inception, pixels, or the file of a
    classifier."""
    extractor_weights: str | None = None
    """As of `distgan evaluate`: weights of dinov2 or inception."""
    resize: Literal["clean", "tensorflow"] | None = None
    """As of `distgan evaluate`: how images reach the input size of inception."""
    flip: bool | None = None
    """Search the mirrored training images too. Default: if the run was trained with them (data.flip)."""
    rows: PositiveInt = 16
    """Rows of the sheet: the generated images that are the closest to a training image."""
    show: str | None = None
    """Channels of the images on the sheet, which count from 1: one, or three as red, green and blue, such as 3,2,1.
    Default: the first three, or the first of fewer."""
    truncation_psi: NonNegativeFloat = 1.0
    """Truncation of w, for G with a mapping network. 1: off."""
    vae: str | None = None
    """Folder of the autoencoder that decodes what a generator of latents makes. Default: that of the run, or the one
    that is kept in ~/.cache/distgan/vae, by its hash."""
    seed: NonNegativeInt = 0
    """Seed of the latents, and of the choice of held-out images."""
    skip_bad: NonNegativeInt = 0
    """Corrupt images of a dataset to replace by others; one more ends the search."""
    out: str | None = None
    """File of the sheet (.png); the card is written beside it (.json). Default: RUN/cards/nearest-IMAGES-EXTRACTOR.png,
    with what else is given in its name, or nearest.png."""
    cache_dir: str | None = None
    """Folder of extractors and converted datasets. Default: ~/.cache/distgan."""

    @property
    def cache(self) -> Path:
        return Path(self.cache_dir) if self.cache_dir else cache_folder()

    def sheet_file(self, run: Path | None, name: str) -> Path:
        """Where the sheet goes, of the images `name` of a run, if any."""
        if self.out is not None:
            return Path(self.out)
        return Path("nearest.png") if run is None else run / "cards" / f"{name}.png"

    def name(self, images: str, extractor: str, training: str, held_out: str | None) -> str:
        """A name of its own for each choice of images, extractor, datasets and seed.

        Sheets and cards of others are not overwritten. `images` are of a checkpoint or of a dataset; `training` and
        `held_out` are hashes of manifests, the latter None for training images.
        """
        given = [f"data{training[:8]}"] if self.data is not None else []
        given += [f"held{held_out[:8]}"] if held_out is not None else []
        given += [f"flip{self.flip}".lower()] if self.flip is not None else []
        given += [f"psi{self.truncation_psi:g}"] if self.truncation_psi != 1 else []
        given += [str(self.samples)] if self.samples is not None else []
        given += [f"seed{self.seed}"] if self.seed else []
        return "-".join(["nearest", images, extractor, *given])
