"""DINOv2's own files, dinov2_vit*14_pretrain.pth, as the network of transformers."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor

from distgan.errors import UsageError
from distgan.frozen.files import Source, import_package
from distgan.frozen.state_dict import read_state_dict

FIX = "give dinov2_vitl14_pretrain.pth, or a folder that transformers' save_pretrained wrote"
HEAD = 64
"""Features of an attention head, in all sizes of DINOv2."""
OUTSIDE = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
}
"""Names of DinoVisionTransformer in facebookresearch/dinov2 -> of Dinov2Model in a file; without .weight and .bias."""
IN_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attn.proj": "attention.output.dense",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.w12": "mlp.weights_in",
    "mlp.w3": "mlp.weights_out",
}
"""The same within blocks.K -> encoder.layer.K; attn.qkv is three weights there."""


def load_dinov2_file(source: Source, file: Path, key: str) -> Any:
    """The network in a file of facebookresearch/dinov2, float32 on the CPU, whose sizes are those of its weights.

    Raises UsageError, which names `key`.
    """
    weights = read_state_dict(file, key, FIX)
    if "register_tokens" in weights:
        raise UsageError(f"{key}: {file} is of a DINOv2 with registers; give one without, e.g. {FIX.split()[1]}")
    try:
        sizes = sizes_of(weights)
        renamed = {new: tensor for name, each in weights.items() for new, tensor in rename(name, each).items()}
    except (KeyError, ValueError, IndexError) as error:
        raise UsageError(f"{key}: {file} is not of a DINOv2 ({error}); {FIX}") from None
    with warnings.catch_warnings():  # packages warn of others that they do not need here
        warnings.simplefilter("ignore")
        package = import_package(source, key)
        try:
            # by this door, which renames weights to what its version calls them
            network, info = getattr(package, source.network).from_pretrained(
                None, config=package.Dinov2Config(**sizes), state_dict=renamed, output_loading_info=True
            )
        except Exception as error:  # it documents none
            raise UsageError(f"{key}: {file} is not of a DINOv2 ({' '.join(str(error).split())}); {FIX}") from None
    wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if wrong:
        raise UsageError(f"{key}: {file} is not of a DINOv2 ({wrong[0]}); {FIX}")
    return network.float()


def sizes_of(weights: dict[str, Tensor]) -> dict[str, Any]:
    """The keys of Dinov2Config, from the shapes of the weights. Raises KeyError and ValueError."""
    features = weights["cls_token"].shape[2]
    if features % HEAD:
        raise ValueError(f"{features} features are not heads of {HEAD}")
    patch = weights["patch_embed.proj.weight"].shape[2]
    blocks = {int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "hidden_size": features,
        "num_attention_heads": features // HEAD,
        "num_hidden_layers": len(blocks),
        "patch_size": patch,
        "image_size": math.isqrt(weights["pos_embed"].shape[1] - 1) * patch,
        "use_swiglu_ffn": "blocks.0.mlp.w12.weight" in weights,
    }


def rename(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """What a weight is called in a file of Dinov2Model. Raises KeyError."""
    match = re.fullmatch(r"(?:blocks\.(\d+)\.)?(.+?)(\.weight|\.bias)?", name)
    assert match is not None, "any name matches"
    block, part, kind = match[1], match[2], match[3] or ""
    if block is None:
        return {OUTSIDE[part] + kind: tensor}
    place = f"encoder.layer.{block}"
    if part == "attn.qkv":
        names = [f"{place}.attention.attention.{each}{kind}" for each in ("query", "key", "value")]
        return dict(zip(names, tensor.chunk(3), strict=True))
    return {f"{place}.{IN_BLOCK[part]}{kind}": tensor}
