"""The truncation trick in w: less variety, often better images.

Karras et al. 2019, "A style-based generator architecture" (arXiv 1812.04948), appendix B; here with a mean for each
label.
"""

from typing import Any

import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.rng import rng

MEAN_OF = 1024
"""Latents z that a mean of w is taken over."""
MOST_MEANS = 10_000
"""Labels whose means are kept."""


class TruncatedGenerator(nn.Module):
    """G with w pulled towards its mean: z [N, z_dim] and labels -> G.synthesis(w_mean + psi (w - w_mean)).

    Noise inputs of G are those that it has for z.

    w is G.mapping(z, labels) [N, ...]. psi = 1 changes nothing, psi = 0 gives the same image for every z. Both networks
    run in the type of their weights: the autocast of a run is around G's own forward.

    w_mean of a label, a class or a row of conditions, is the mean of w over 1,024 latents z of a fixed seed, computed
    from the weights when the label is first met. It is no running mean of the training, as in StyleGAN, and as in GAT
    with a decay of 0.995 for each class: that one lags behind the weights, says nothing of the weights' EMA, is rough
    for rare classes, has no value for conditions, and would have to be averaged over processes and saved. A converted
    network may come with such a mean, in its buffer `w_mean`: then that is taken.
    """

    def __init__(self, G: nn.Module, psi: float, z_dim: int) -> None:
        """`G` has the methods mapping(z, labels) -> w and synthesis(w) -> output, and weights that do not change."""
        super().__init__()
        self.G: Any = G
        self.psi = psi
        z = torch.from_numpy(rng(0, "mean of w").standard_normal((MEAN_OF, z_dim), "float32"))
        self.register_buffer("z", z.to(next(G.parameters()).device), persistent=False)
        self.means: dict[tuple[float, ...], Tensor] = {}
        """Of w, [1, ...], by label; () without labels."""
        self.train(G.training)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Any:
        return synthesize(self.G, self.mapping(z, labels), noise_keys_of(self.G, z))

    def mapping(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """The truncated w."""
        w = self.G.mapping(z, labels)
        w_mean = self.w_mean(labels).to(w)
        return w_mean + self.psi * (w - w_mean)

    def w_mean(self, labels: Tensor | None) -> Tensor:
        """The mean of w of each label, [N, ...]; [1, ...] without labels; that of G where it has one."""
        if hasattr(self.G, "w_mean"):
            return self.G.w_mean
        if labels is None:
            return self.mean_of(None)
        distinct, place = torch.unique(labels, dim=0, return_inverse=True)
        return torch.cat([self.mean_of(label) for label in distinct])[place]

    @torch.no_grad()
    def mean_of(self, label: Tensor | None) -> Tensor:
        """The mean of w [1, ...] of a label, 0-dim or [label_width]."""
        key = () if label is None else tuple(label.flatten().tolist())
        if key not in self.means:
            labels = None if label is None else label.expand(MEAN_OF, *label.shape)
            if len(self.means) == MOST_MEANS:
                del self.means[next(iter(self.means))]
            self.means[key] = self.G.mapping(self.z, labels).mean(0, keepdim=True)
        return self.means[key]


def noise_keys_of(G: Any, z: Tensor) -> Tensor | None:
    """The keys [N] of G's noise inputs for z [N, ...]; None for a G without, and for one whose noise is constant."""
    return G.noise_keys(z) if hasattr(G, "noise_keys") else None


def synthesize(G: Any, w: Tensor, noise_keys: Tensor | None) -> Any:
    """What G makes of w [N, w_dim] or [N, num_ws, w_dim], with noise inputs by `noise_keys` [N], or constant ones."""
    return G.synthesis(w) if noise_keys is None else G.synthesis(w, noise_keys=noise_keys)


def truncate(G: nn.Module, psi: float, z_dim: int) -> nn.Module:
    """G truncated by psi; G itself for psi = 1."""
    return G if psi == 1 else TruncatedGenerator(G, psi, z_dim)


def check_truncation(G: nn.Module, psi: float, key: str) -> None:
    """Raises UsageError, which names `key`, for a psi other than 1 and a G without a mapping network."""
    if psi != 1 and not (hasattr(G, "mapping") and hasattr(G, "synthesis")):
        raise UsageError(
            f"{key}: G has no w to truncate, which takes a mapping network and a synthesis network (gat, cat, "
            "stylegan2); leave it at 1"
        )
