"""Features of images by a pretrained vision transformer: DINOv2, from a local folder or its own file."""

import copy
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from msgspec import Meta, Struct
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.files import sha256_file
from distgan.frozen.dinov2_file import load_dinov2_file
from distgan.frozen.files import CONFIG, Source, check_weights, decode_config, find_folder, load_network
from distgan.sizes import Size

DINOV2 = Source("DINOv2", "transformers", "Dinov2Model", "model.safetensors", "align")
MEAN = (0.485, 0.456, 0.406)
"""Of ImageNet's images in [0, 1], red, green and blue."""
STD = (0.229, 0.224, 0.225)


class VisionConfig(Struct, frozen=True):
    """What is read of config.json; the defaults are those of Dinov2Config."""

    model_type: str
    hidden_size: Annotated[int, Meta(ge=1)] = 768
    patch_size: Annotated[int, Meta(ge=1)] = 14
    image_size: Annotated[int, Meta(ge=1)] = 224
    num_channels: int = 3


class FrozenNetwork(nn.Module):
    """A vision transformer as DINOv2 (Oquab et al. 2023, arXiv 2304.07193), in eval mode, which is not trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, config: VisionConfig, key: str, sha256: str) -> None:
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)
        self.config = config
        self.key = key
        """Of the configuration, that names it."""
        self.sha256 = sha256
        """Of the file of the weights."""
        self.features = config.hidden_size
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> "FrozenNetwork":
        """Stays in eval mode."""
        return super().train(False)

    def own_grid(self, grid: Size) -> Size:
        """Rows and columns of its patches: `grid`, or the next smaller of about its shape that it was trained on."""
        largest = self.config.image_size // self.config.patch_size
        shrink = min(1.0, largest / max(grid))
        return Size(max(1, round(grid.height * shrink)), max(1, round(grid.width * shrink)))

    @torch.no_grad()
    def forward(self, images: Tensor, grid: Size) -> Tensor:
        """float [N, 3, H, W] in [-1, 1] -> float32 [N, 1 + grid.height * grid.width, features].

        The class token, then the patches row by row, both after the final norm. Images are resized to whole patches of
        `own_grid`, bicubic and not antialiased, as GAT's code (arXiv 2509.24935) does, and the features of patches from
        there to `grid`. Positions are interpolated by the network.
        """
        own = self.own_grid(grid)
        size = own.height * self.config.patch_size, own.width * self.config.patch_size
        x = ((images.float() + 1) / 2 - self.mean) / self.std
        tokens = self.network(F.interpolate(x, size, mode="bicubic")).last_hidden_state.float()
        if own == grid:
            return tokens
        patches = tokens[:, 1:].transpose(1, 2).unflatten(2, (own.height, own.width))
        resized = F.interpolate(patches, (grid.height, grid.width), mode="bicubic").flatten(2).transpose(1, 2)
        return torch.cat([tokens[:, :1], resized], 1)

    def without_weights(self) -> "FrozenNetwork":
        """A copy whose weights are uninitialized, or fake under FakeTensorMode: for an estimate of its cost."""
        empty = {id(tensor): torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in self.buffers()}
        for weight in self.parameters():
            empty[id(weight)] = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=False)
        return copy.deepcopy(self, empty)


def load_dinov2(path: str | Path, key: str) -> FrozenNetwork:
    """DINOv2 in a folder with config.json and model.safetensors, float32 on the CPU.

    `path` may also be hf://OWNER/NAME[@REVISION], which is downloaded into the hub's cache unless it is there, or a
    file of the authors, dinov2_vit*14_pretrain.pth. Raises UsageError, which names `key`.
    """
    if Path(path).suffix == ".pth":
        network = load_dinov2_file(DINOV2, Path(path), key)
        sizes = network.config.hidden_size, network.config.patch_size, network.config.image_size
        return FrozenNetwork(network, VisionConfig("dinov2", *sizes), key, sha256_file(Path(path)))
    folder = find_folder(DINOV2, path, key)
    config = decode_config(DINOV2, folder, VisionConfig, key)
    if config.model_type != "dinov2" or config.num_channels != 3:
        found = f"{config.model_type} with {config.num_channels} channels"
        raise UsageError(f"{key}: {folder / CONFIG} is of a {found}; give a dinov2 of RGB images")
    check_weights(DINOV2, folder, key)
    network = load_network(DINOV2, folder, key).float()
    return FrozenNetwork(network, config, key, sha256_file(folder / DINOV2.weights))


NETWORKS = {"dinov2": load_dinov2}
"""(folder of the files or hf:// address, key for messages) -> FrozenNetwork, by the name in the configuration."""
