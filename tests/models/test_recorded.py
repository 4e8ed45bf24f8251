"""Networks for squares and classes are those of earlier versions: checkpoints load, runs of a seed stay the same."""

import hashlib
import math
from typing import Any

import pytest
import torch
from torch import nn

from distgan import models
from distgan.samples import SampleSpec

NETWORKS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "dcgan-28": ("dcgan", 28, {"width": 4}),
    "dcgan-256": ("dcgan", 256, {"width": 1, "norm": "group"}),
    "dcgan-spectral": ("dcgan", 32, {"width": 4, "d_norm": "spectral", "init": "he"}),
    "mlp": ("mlp", 5, {"width": 16}),
    "r3gan-8": ("r3gan", 8, {"widths": [8, 8], "group_width": 8}),
    "r3gan-64": ("r3gan", 64, {"widths": [16, 8, 8, 8, 8], "group_width": 8}),
    "sngan-32": ("sngan", 32, {"width": 2}),
    "sngan-64": ("sngan", 64, {"width": 2}),
    "sngan-128": ("sngan", 128, {"width": 1}),
}
"""By name: architecture, size, options."""

RECORDED: dict[tuple[str, int, int], tuple[str, float, float, float]] = {
    ("dcgan-28", 1, 0): ("81e8b7d3a97d8410", 22.0475, 6.2342, 0.0523243),
    ("dcgan-28", 3, 3): ("2025fe2b309ccd40", 22.493, 11.1151, 1.40423),
    ("dcgan-256", 1, 0): ("28ef08f1bc13c53e", 99.5128, 107.997, 0.153714),
    ("dcgan-256", 3, 3): ("3ef687fb0b156d51", 99.9644, 251.199, 0.0657749),
    ("dcgan-spectral", 1, 0): ("50c4f56baf686a09", 706.451, 721.627, 0.00129968),
    ("dcgan-spectral", 3, 3): ("209d1afe2598d5c6", 714.919, 1926.77, 0.430563),
    ("mlp", 1, 0): ("079ce008a88fc076", 246.505, 121.14, 0.939286),
    ("mlp", 3, 3): ("6045348518027a2a", 356.128, 476.759, 0.124141),
    ("r3gan-8", 1, 0): ("ff61b2409ec4120b", 403.857, 6.59418, 5.66479),
    ("r3gan-8", 3, 3): ("9d5934fb7cfd2ec4", 394.074, 38.1733, 0.137304),
    ("r3gan-64", 1, 0): ("32400af74ed73333", 763.948, 8021.44, 0.103308),
    ("r3gan-64", 3, 3): ("1e99b55007182258", 810.817, 4324.69, 0.0875796),
    ("sngan-32", 1, 0): ("15482038348adc02", 142.241, 437.051, 5234.15),
    ("sngan-32", 3, 3): ("5e3b6fb80500d8bc", 195.131, 677.635, 14.0601),
    ("sngan-64", 1, 0): ("47ac4d6416de1508", 481.237, 1258.09, 0.00387919),
    ("sngan-64", 3, 3): ("ef2bff4f6f0d9bf4", 673.287, 2407.08, 0.0788507),
    ("sngan-128", 1, 0): ("f1b7db893b9c49fb", 425.316, 7432.41, 0.564642),
    ("sngan-128", 3, 3): ("b339ab3d5820a150", 590.07, 11551.8, 1.56015),
}
"""By network, channels and classes at version fa97c80, on a CPU with torch 2.15: what `summarize` gives."""


def layout(network: nn.Module) -> str:
    """A digest of the names and shapes of weights and buffers, in their order."""
    lines = [f"{name} {list(value.shape)}" for name, value in network.state_dict().items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8]


def summarize(network: str, channels: int, classes: int) -> tuple[str, float, float, float]:
    """Digests of both layouts, and sums of the squares of all weights, of G's images, and of D's logits of ramps."""
    name, size, options = NETWORKS[network]
    G, D = models.build(name, SampleSpec(size, size, channels, classes), z_dim=8, options=options, seed=0)
    weights = math.fsum(float(p.detach().double().square().sum()) for p in [*G.parameters(), *D.parameters()])
    z = torch.linspace(-2, 2, 16).view(2, 8)
    images = torch.linspace(-1, 1, 2 * channels * size * size).view(2, channels, size, size)
    labels = torch.tensor([0, classes - 1]) if classes else None
    with torch.no_grad():
        fakes, logits = (float(values.double().square().sum()) for values in (G(z, labels), D(images, labels)))
    return layout(G) + layout(D), weights, fakes, logits


@pytest.mark.parametrize(("network", "channels", "classes"), RECORDED)
def test_networks_are_those_of_earlier_versions(network, channels, classes):
    layouts, *sums = summarize(network, channels, classes)
    expected_layouts, *expected = RECORDED[network, channels, classes]
    assert layouts == expected_layouts
    assert sums == pytest.approx(expected, rel=1e-4)
