"""Style mixing: images some of whose layers take the w of one latent, and the others that of another.

Karras et al. 2019, "A style-based generator architecture" (arXiv 1812.04948), section 3.1 and figure 3.
"""

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from distgan.errors import UsageError
from distgan.generators.pretrained import PretrainedGenerator
from distgan.generators.sampling import Inputs
from distgan.generators.seeds import parse_seeds

STYLES = {"coarse": (0, 4), "middle": (4, 8), "fine": (8, None)}
"""The layers of the paper's styles, two for each resolution: of 4x4 and 8x8, of 16x16 and 32x32, of 64x64 and more."""


def parse_mix(text: str) -> tuple[list[int], list[int]]:
    """The seeds of A and of B in `0-3,10-15`, or `1+5+9,20`. Raises UsageError."""
    sources = text.split(",")
    if len(sources) != 2:
        raise UsageError(f"mix: {text!r} is not A,B; give a seed or a range for each, 0-3,10-15, or 1+5+9,20")
    a, b = (parse_seeds(source, "mix", "+") for source in sources)
    return a, b


def parse_layers(text: str, num_ws: int) -> range:
    """The layers of `coarse`, `middle`, `fine`, `0-3` or `5`, of a G with `num_ws` layers. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", text)
    if text in STYLES:
        first, end = STYLES[text]
        layers = range(first, min(end or num_ws, num_ws))
    elif match is not None:
        layers = range(int(match[1]), int(match[2] or match[1]) + 1)
    else:
        raise UsageError(f"mix_layers: {text!r} is none of {', '.join(STYLES)}, and no range such as 0-3")
    if not len(layers) or layers[-1] >= num_ws:
        raise UsageError(f"mix_layers: the generator has the layers 0 to {num_ws - 1}, and {text} is not among them")
    return layers


def check_mixing(G: PretrainedGenerator) -> int:
    """The number of layers with a w of their own. Raises UsageError, which names `mix`, for a G without."""
    if G.num_ws is None:
        raise UsageError(f"mix: the layers of {G.path} have no w of their own, as those of stylegan2 have")
    return G.num_ws


def mix(w_a: Tensor, w_b: Tensor, layers: Sequence[int], num_ws: int) -> Tensor:
    """w [A, w_dim] and [B, w_dim] -> [B, A, num_ws, w_dim]: w_a in `layers`, w_b in the others."""
    mixed = w_b[:, None, None].repeat(1, len(w_a), num_ws, 1)
    mixed[:, :, list(layers)] = w_a[None, :, None]
    return mixed


def mixing_inputs(w_a: Tensor, w_b: Tensor, layers: Sequence[int], num_ws: int) -> Inputs:
    """What the A images of w_a are made of, and then, for each of w_b, its own and its mixes with all of w_a."""
    own_a = w_a[:, None].expand(-1, num_ws, -1)
    own_b = w_b[:, None, None].expand(-1, 1, num_ws, -1)
    rows = torch.cat([own_b, mix(w_a, w_b, layers, num_ws)], 1)
    return Inputs(None, np.empty(0, np.int64), {}, w=torch.cat([own_a, rows.flatten(0, 1)]))
