"""What the discriminators of gat and cat share: patches and class tokens, blocks, logits and features."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from distgan.models.transformer import Block, apply_block, linear
from distgan.models.transformer_heads import LogitHead, projector
from distgan.models.transformer_options import TransformerSize
from distgan.samples import SampleSpec
from distgan.sizes import Size

CLASS_TOKEN_STD = 0.02


class TokenDiscriminator(nn.Module):
    """The layers of a D that sees images of `channels` as patches, with `class_tokens` tokens in front of them."""

    positions: Tensor
    rotation: Tensor | None

    def __init__(
        self,
        spec: SampleSpec,
        size: TransformerSize,
        grid: Size,
        *,
        channels: int,
        class_tokens: int,
        noise_levels: tuple[float, ...],
        patch: int,
        stages: int,
        qk_norm: bool,
        embedding: int,
        features: int,
        checkpoint_blocks: int,
    ) -> None:
        super().__init__()
        self.width = size.width
        self.grid = grid
        """Rows and columns of the tokens of "features"."""
        self.patch = patch
        self.stages = stages
        self.noise_levels = noise_levels
        """Standard deviations of the noise on what D sees, which the training step adds; () for none."""
        self.checkpoint_blocks = checkpoint_blocks
        self.from_patches = linear(channels * patch * patch, size.width)
        self.class_tokens = nn.Parameter(torch.randn(class_tokens, 1, size.width) * CLASS_TOKEN_STD)
        self.blocks = nn.ModuleList([Block(size.width, size.heads, qk_norm) for _ in range(size.depth)])
        self.head = LogitHead(spec, size.width, embedding)
        self.projector = projector(size.width, features) if features else None

    @property
    def layers_from_image(self) -> list[nn.Module]:
        """The layer that makes tokens of patches, and the blocks in their order; without class tokens and tables."""
        return [self.from_patches, *self.blocks]

    def apply_blocks(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
        """Tokens [N, T, width] -> the same; with `lengths`, those of sequences that do not see each other."""
        for i, block in enumerate(self.blocks):
            x = apply_block(block, i < self.checkpoint_blocks, x, self.rotation, lengths)
        return x

    def output(self, logits: Tensor, tokens: Tensor) -> Tensor | dict[str, Tensor]:
        """What D returns: logits, and with a projector the features of the tokens [N, 1 + T, width] too."""
        return logits if self.projector is None else {"logits": logits, "features": self.projector(tokens)}
