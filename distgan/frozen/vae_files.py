"""The files of an AutoencoderKL of diffusers: its config.json and weights."""

from pathlib import Path
from typing import Annotated, Any

import torch
from msgspec import Meta, Struct

from distgan.errors import UsageError
from distgan.frozen.files import CONFIG, Source, decode_config, load_network

WEIGHTS = "diffusion_pytorch_model.safetensors"
VAE = Source("VAE", "diffusers", "AutoencoderKL", WEIGHTS, "latents")


class VaeConfig(Struct, frozen=True, rename={"class_name": "_class_name"}):
    """What is read of config.json; the defaults are those of AutoencoderKL."""

    class_name: str
    block_out_channels: Annotated[list[int], Meta(min_length=1, max_length=8)]
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: Annotated[int, Meta(ge=1, le=32)] = 4
    scaling_factor: Annotated[float, Meta(gt=0)] = 0.18215
    shift_factor: float | None = None
    latents_mean: list[float] | None = None


def read_config(folder: Path, key: str) -> VaeConfig:
    """config.json of an AutoencoderKL of RGB images. Raises UsageError, which names `key`."""
    config = decode_config(VAE, folder, VaeConfig, key)
    fault = None
    if config.class_name != "AutoencoderKL":
        fault = f"is of a {config.class_name}; give an AutoencoderKL"
    elif (config.in_channels, config.out_channels) != (3, 3):
        fault = f"has {config.in_channels} channels in and {config.out_channels} out; give one of RGB images"
    elif config.latents_mean is not None:
        fault = "has a mean of its latents per channel; give one with scaling_factor and shift_factor alone"
    if fault:
        raise UsageError(f"{key}: {folder / CONFIG} {fault}")
    return config


def build_network(folder: Path, key: str) -> Any:
    """The AutoencoderKL in a folder, float32 on the CPU. Raises UsageError, which names `key`."""
    return load_network(VAE, folder, key, torch_dtype=torch.float32)
