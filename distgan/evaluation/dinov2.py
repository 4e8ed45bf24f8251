"""The extractor `dinov2`: the class token of DINOv2, as fd_dinov2 is defined."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distgan.data.shardset import ShardSet
from distgan.errors import UsageError
from distgan.evaluation.extractor import Extractor, check_8bit
from distgan.evaluation.resizing import resize_uint8
from distgan.frozen.vision import FrozenNetwork, load_dinov2

SIDE = 224
"""Of the images that it sees, in pixels."""
RESIZE = "224 bicubic as Pillow, rounded to 8 bits"
OFFSET = 0.1
"""Added to the rows and columns of positions when they are interpolated, as facebookresearch/dinov2 does."""
SIZES = {(384, 12): "ViT-S", (768, 12): "ViT-B", (1024, 24): "ViT-L", (1536, 40): "ViT-g"}
"""(features, layers) -> name."""


class DinoV2Features(nn.Module):
    """DINOv2 (Oquab et al. 2023, arXiv 2304.07193) as Stein et al. 2023 (arXiv 2306.04675) use it; no logits.

    What their code (layer6ai-labs/dgm-eval) computes: 8-bit RGB is resized to 224x224 by Pillow's bicubic filter, and
    rounded; then [0, 1] minus ImageNet's mean over its standard deviation; the class token after the final norm.
    Positions are interpolated as facebookresearch/dinov2 does, which transformers does not do: it has no offset.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: FrozenNetwork) -> None:
        super().__init__()
        self.network = network.network
        self.register_buffer("mean", network.mean, persistent=False)
        self.register_buffer("std", network.std, persistent=False)
        embeddings = self.network.embeddings
        # of the grid that it sees: transformers then has nothing to interpolate
        positions = interpolate_positions(embeddings.position_embeddings.detach(), SIDE // network.config.patch_size)
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        """uint8 [N, 1 or 3, H, W] -> features float32 [N, F]."""
        pixels = resize_uint8(images, SIDE).expand(-1, 3, -1, -1).float().div_(255).sub_(self.mean).div_(self.std)
        return self.network(pixels).last_hidden_state[:, 0], None


def interpolate_positions(positions: Tensor, side: int) -> Tensor:
    """Positions [1, 1 + N, F] of a square grid and the class token -> those of a grid of side x side."""
    own_side = round((positions.shape[1] - 1) ** 0.5)
    if own_side == side:
        return positions
    grid = positions[:, 1:].unflatten(1, (own_side, own_side)).permute(0, 3, 1, 2)
    scale = (side + OFFSET) / own_side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    assert grid.shape[2:] == (side, side)
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], 1)


def open_dinov2(dataset: ShardSet, cache: Path, *, weights: str | None = None) -> Extractor:
    """DINOv2, from a folder or a file. Raises UsageError."""
    check_8bit("dinov2", dataset)
    network, loaded = load_features(weights, "extractor_weights")
    architecture = describe(loaded)
    return Extractor(
        name="dinov2",
        sha256=loaded.sha256,
        resize=RESIZE,
        network=network,
        num_features=loaded.features,
        gives=("features",),
        any_size=True,
        architecture=architecture,
        variant=f"{architecture}, {RESIZE}",  # of weights alone the number of heads is not known
    )


def load_features(weights: str | None, key: str) -> tuple[DinoV2Features, FrozenNetwork]:
    """The network of the extractor, from what `load_dinov2` takes. Raises UsageError, which names `key`."""
    if weights is None:
        raise UsageError(
            f"{key}: the weights of dinov2 are missing; give dinov2_vitl14_pretrain.pth, a folder that transformers' "
            "save_pretrained wrote, or hf://facebook/dinov2-large"
        )
    network = load_dinov2(weights, key)
    patch = network.config.patch_size
    if SIDE % patch:
        raise UsageError(f"{key}: {weights} has patches of {patch} pixels, which do not divide {SIDE}; take a ViT-L/14")
    return DinoV2Features(network), network


def describe(network: FrozenNetwork) -> str:
    """Its architecture, for the card: features of different sizes are not comparable."""
    config = network.network.config
    size = SIZES.get((config.hidden_size, config.num_hidden_layers), "ViT")
    parts = f"{config.hidden_size} features, {config.num_hidden_layers} layers of {config.num_attention_heads} heads"
    return f"{size}/{config.patch_size}, {parts}"
