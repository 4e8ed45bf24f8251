"""What decoding the latents of a new dataset gives, against the images that they were made of."""

import math
from typing import NamedTuple

import numpy as np
import torch

from distgan.dataset_tool.encoder import Encoder
from distgan.dataset_tool.parts import shard_name
from distgan.errors import RunError
from distgan.gan.latents import sample_posterior
from distgan.pixels import to_stored

CHECKED = 64
"""Images that are decoded."""


class Error(NamedTuple):
    """Of images that were decoded from the written means of their latents."""

    images: int
    psnr: float
    """Peak signal-to-noise ratio, in dB: 10 log10(255^2 / mean squared error), of pixels of 8 bits."""
    mean_absolute: float
    """In steps of 8 bits."""


def measure_error(encoder: Encoder, shards: list[int]) -> Error:
    """Decode images spread over `shards` from the means of their latents as written. Raises RunError for NaN."""
    ids = np.concatenate([np.arange(encoder.starts[shard], encoder.starts[shard + 1]) for shard in shards])
    ids = ids[np.linspace(0, len(ids) - 1, min(CHECKED, len(ids))).astype(int)]
    pixels = encoder.spec.pixels
    squared = 0.0
    absolute = 0.0
    for chunk in np.split(ids, range(encoder.batch, len(ids), encoder.batch)):
        images = encoder.to_rgb(encoder.reader.read(chunk).images)
        moments = torch.from_numpy(np.stack([read_written(encoder, int(id)) for id in chunk])).to(encoder.device)
        for encoding in range(moments.shape[1]):
            decoded = encoder.vae.decode(sample_posterior(moments[:, encoding : encoding + 1], encoder.spec))
            if not decoded.isfinite().all():
                raise RunError(f"{encoder.writer.dest}: the VAE decodes its latents to NaN or Inf; give another one")
            expected = images.flip(3) if encoding else images
            steps = to_stored(decoded, pixels).double() - to_stored(expected, pixels).double()
            squared += float(steps.square().mean((1, 2, 3)).sum()) / moments.shape[1]
            absolute += float(steps.abs().mean((1, 2, 3)).sum()) / moments.shape[1]
    psnr = 10 * math.log10(255**2 * len(ids) / squared) if squared else math.inf
    return Error(len(ids), psnr, absolute / len(ids))


def read_written(encoder: Encoder, id: int) -> np.ndarray:
    """The moments of a sample, float16 [encodings, 2C, h, w], from the shard that was written."""
    shard = int(np.searchsorted(encoder.starts, id, side="right")) - 1
    _, columns = encoder.writer.read_info(shard)
    offset = int(columns["offset"][id - encoder.starts[shard]])
    shape = encoder.spec.stored_shape
    path = encoder.writer.dest / shard_name(shard)
    return np.fromfile(path, "<f2", math.prod(shape), offset=offset).reshape(shape)
