"""The options of all commands that make images by a trained generator."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GeneratorOptions:
    """What is written, and how the generator is loaded."""

    out: str
    vae: str | None = None
    """Folder of the autoencoder that decodes what a generator of latents makes. Default: that of the run, or the one
    that is kept in ~/.cache/distgan/vae, by its hash."""
    device: str = "cpu"
    """Device of the generator, such as cuda."""

    @property
    def suffix(self) -> str:
        return Path(self.out).suffix.lower()
