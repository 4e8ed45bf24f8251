"""The length of a run in images, from its configuration and the number of images of its dataset."""

from collections.abc import Mapping
from typing import Any

from distgan.config.keys import default_lanes


def run_length(config: Mapping[str, Any], samples: int | None) -> int | None:
    """Images at which a run with this config.yaml ends; None if it counts epochs of an unknown number of `samples`.

    An epoch has as many images as the lanes of the data order share evenly (`distgan.data.order.Lanes`).
    """
    images = config.get("images")
    epochs = config.get("epochs")
    if isinstance(images, int):
        return images
    if not isinstance(epochs, int) or not samples:
        return None
    data = config.get("data") or {}
    lanes = data.get("lanes") or default_lanes(config.get("batch") or 1, samples)
    return epochs * (samples // lanes) * lanes
