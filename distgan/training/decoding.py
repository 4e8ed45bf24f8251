"""What a run on latents says at its start: what decodes them, and what its images can be measured against."""

from collections.abc import Iterator

from distgan.config.keys import Config
from distgan.errors import UsageError
from distgan.frozen.vae import Autoencoder
from distgan.training.data import Data
from distgan.training.evaluation import real_images


def describe_decoding(config: Config, data: Data) -> Iterator[str]:
    """Lines on the autoencoder that decodes the samples of G and on the images that were encoded; none for pixels."""
    if not isinstance(data.decoder, Autoencoder):
        return
    yield f"latents are decoded to {data.spec.pixels} by the VAE {data.decoder.sha256[:12]} in {data.decoder.folder}"
    given = config.evaluate.data
    source = given or str((data.dataset.manifest.source or {}).get("name"))
    if not config.evaluate.every_epochs and "://" in source and (given or data.dataset.images is None):
        yield f"metrics will need the images of {source}"  # a run without evaluations waits for no server
        return
    try:
        yield f"metrics compare with the images of {real_images(config, data).address}"
    except UsageError as error:  # an evaluation during the run was refused already
        fix = "evaluate.data and `distgan evaluate --data` name the dataset of the images"
        yield f"no metrics can be computed: {error} ({fix})"
