"""What follows the blocks of transformers: G's patches, D's logits and D's features."""

import torch
from torch import Tensor, nn

from distgan.models.labels import embed_labels, init_embedding
from distgan.models.transformer import Modulation, RMSNorm, linear, mapping_layers, modulate
from distgan.samples import SampleSpec

EMBEDDING_STD = 0.02
"""Of the vectors of labels."""
PROJECTOR_WIDTH = 2048


class OutputHead(nn.Module):
    """Tokens [N, T, width] and w [N, width] -> patches [N, T, features]: Linear((1 + s) RMS(x) + b), s and b of w.

    b = 0 without `shift`.
    """

    def __init__(self, width: int, features: int, shift: bool) -> None:
        super().__init__()
        self.norm = RMSNorm(width, affine=False)
        self.modulation = Modulation(width, 2 if shift else 1)
        self.output = linear(width, features)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        scale, *shift = self.modulation(w)
        return self.output(modulate(self.norm(x), scale, shift[0] if shift else None))


class LogitHead(nn.Module):
    """Class tokens [N, K, width] and labels -> logits [N, K], in float32 under autocast.

    The product of Linear(RMS(x)) with the label's embedding of `embedding` features, which passes two equalized layers
    (a projection, Miyato & Koyama 2018, without their unconditional term); without labels a linear map to 1.
    """

    def __init__(self, spec: SampleSpec, width: int, embedding: int) -> None:
        super().__init__()
        self.norm = RMSNorm(width)
        self.embed = embed_labels(spec, embedding)
        self.output = linear(width, 1 if self.embed is None else embedding)
        self.map = nn.Identity() if self.embed is None else mapping_layers(embedding, embedding)
        if self.embed is not None:
            init_embedding(self.embed, EMBEDDING_STD)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            h = self.output(self.norm(x))  # [N, K, embedding or 1]
            return h.squeeze(2) if self.embed is None else (h * self.map(self.embed(labels))[:, None]).sum(2)


def projector(width: int, features: int) -> nn.Sequential:
    """Tokens [..., width] -> [..., features]: three linear layers with SiLU between (REPA, 2410.06940)."""
    hidden = PROJECTOR_WIDTH
    return nn.Sequential(linear(width, hidden), nn.SiLU(), linear(hidden, hidden), nn.SiLU(), linear(hidden, features))
