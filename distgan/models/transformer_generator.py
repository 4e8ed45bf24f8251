"""The generator of gat and cat: a transformer of position tokens, modulated by w, with several accumulated outputs."""

import torch
from torch import Tensor, nn

from distgan.models.equalized import unit_rms
from distgan.models.labels import embed_labels, init_embedding
from distgan.models.tokens import rope_table, sincos_table, unpatchify
from distgan.models.transformer import ModulatedBlock, apply_block, mapping_layers
from distgan.models.transformer_heads import EMBEDDING_STD, OutputHead
from distgan.models.transformer_options import TransformerSize
from distgan.samples import SampleSpec
from distgan.sizes import Size


class Generator(nn.Module):
    """z [N, z_dim] and labels -> {"images": [N, C, H, W], "stages": [N, K, C, H, W]}, linear, the last stage the image.

    GAT (Hyun et al. 2025, arXiv 2509.24935, its MIT code): the tokens are a table of positions at first. After each
    depth / K blocks an output head adds to the image so far, which is a stage. z and an embedding of the label of as
    many features, each over its root mean square, pass two equalized layers to w [N, width], in float32.
    """

    positions: Tensor
    rotation: Tensor

    def __init__(
        self,
        spec: SampleSpec,
        z_dim: int,
        size: TransformerSize,
        grid: Size,
        *,
        patch: int,
        stages: int,
        shift: bool,
        qk_norm: bool,
        checkpoint_blocks: int,
    ) -> None:
        super().__init__()
        self.width = size.width
        self.grid = grid
        self.patch = patch
        self.checkpoint_blocks = checkpoint_blocks
        """The first blocks, whose activations are computed again in backward."""
        self.stage_ends = [(k + 1) * size.depth // stages for k in range(stages)]
        """Blocks before each output head."""
        self.embed = embed_labels(spec, z_dim)
        if self.embed is not None:
            init_embedding(self.embed, EMBEDDING_STD)
        self.map = mapping_layers(z_dim if self.embed is None else 2 * z_dim, size.width)
        self.register_buffer("positions", sincos_table(grid, size.width), persistent=False)
        self.register_buffer("rotation", rope_table(grid, size.width // size.heads), persistent=False)
        blocks = [ModulatedBlock(size.width, size.heads, qk_norm, shift) for _ in range(size.depth)]
        self.blocks = nn.ModuleList(blocks)
        features = patch * patch * spec.channels
        self.heads = nn.ModuleList([OutputHead(size.width, features, shift) for _ in range(stages)])

    def mapping(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """w [N, width]; w_mean + psi (w - w_mean) is a truncated one."""
        with torch.autocast(z.device.type, enabled=False):
            z = unit_rms(z)
            if self.embed is not None:
                z = torch.cat([unit_rms(self.embed(labels)), z], 1)
            return self.map(z)

    def synthesis(self, w: Tensor) -> dict[str, Tensor]:
        """What G returns for w."""
        x = self.positions.expand(w.shape[0], -1, -1)
        image = w.new_zeros(())
        images = []
        for i, block in enumerate(self.blocks):
            x = apply_block(block, i < self.checkpoint_blocks, x, w, self.rotation)
            if i + 1 in self.stage_ends:
                patches = self.heads[len(images)](x, w).to(w.dtype)
                image = image + unpatchify(patches, self.grid, self.patch)
                images.append(image)
        return {"images": image, "stages": torch.stack(images, 1)}

    def forward(self, z: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return self.synthesis(self.mapping(z, labels))
