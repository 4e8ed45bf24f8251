"""The files of an AutoencoderKL of diffusers: its config.json and weights, in a folder or on the Hugging Face hub."""

import importlib
import re
import warnings
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta, Struct

from distgan.errors import UsageError

HUB = "hf://"
CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"


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
    try:
        config = msgspec.json.decode((folder / CONFIG).read_bytes(), type=VaeConfig)
    except OSError as error:
        fix = f"give a folder that diffusers' save_pretrained wrote, or {HUB}OWNER/NAME"
        raise UsageError(f"{key}: {folder / CONFIG}: {error.strerror}; {fix}") from None
    except msgspec.DecodeError as error:
        raise UsageError(f"{key}: {folder / CONFIG} is not that of an AutoencoderKL ({error})") from None
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


def check_weights(folder: Path, key: str) -> None:
    """Raises UsageError, which names `key`, unless the folder has weights as safetensors."""
    if (folder / WEIGHTS).exists():
        return
    fix = "give a folder that diffusers' save_pretrained wrote"
    if any(folder.glob("*.bin")):
        fix = "its .bin is a pickle, which can run code when it is read; convert it to safetensors"
    raise UsageError(f"{key}: {folder} has no {WEIGHTS}; {fix}")


def build_network(folder: Path, key: str) -> Any:
    """The AutoencoderKL in a folder, float32 on the CPU. Raises UsageError, which names `key`."""
    with warnings.catch_warnings():  # diffusers warns of packages that it does not need here
        warnings.simplefilter("ignore")
        try:
            diffusers: Any = importlib.import_module("diffusers")
        except ImportError as error:
            missing = f"{key} needs {error.name or 'diffusers'}, which is not installed"
            raise UsageError(f"{missing}; pip install 'distgan[latents]'") from None
        diffusers.utils.logging.set_verbosity_error()
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "torch_dtype": torch.float32}
        try:
            # by this door and not by load_state_dict: it renames the attention's weights in files of older versions
            network, info = diffusers.AutoencoderKL.from_pretrained(folder, output_loading_info=True, **options)
        except Exception as error:  # it documents none
            reason = " ".join(str(error).split())
            raise UsageError(f"{key}: {folder / WEIGHTS} cannot be read ({reason}); copy it once more") from None
    wrong = [*info["missing_keys"], *info["unexpected_keys"]]
    if wrong:
        raise UsageError(f"{key}: {folder / WEIGHTS} does not match {CONFIG} ({wrong[0]}); use both of one VAE")
    # else they stay mapped to the file: who overwrites it would change them, or end the process
    network.load_state_dict({name: tensor.clone() for name, tensor in network.state_dict().items()}, assign=True)
    return network


def download_vae(address: str, key: str) -> Path:
    """The folder in the hub's cache of hf://OWNER/NAME[@REVISION]; what is there is not downloaded again.

    Raises UsageError, which names `key`.
    """
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?/?", address)
    if match is None:
        raise UsageError(f"{key}: {address}: a VAE on the hub is {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION")
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError(f"{key}: {address} needs huggingface_hub; pip install 'distgan[latents]'") from None
    repository, revision = match.groups()
    try:
        folder = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=[CONFIG, WEIGHTS])
    except Exception as error:  # of the hub's client, of its HTTP client, of the disk
        reason = " ".join(str(error).split()).split("Request ID")[0].strip()
        raise UsageError(f"{key}: {address}: {type(error).__name__}: {reason}") from None
    return Path(folder)
