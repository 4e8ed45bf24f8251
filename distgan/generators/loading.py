"""Loading a trained generator: from one .safetensors file, or from a run folder."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distgan import models
from distgan.errors import UsageError
from distgan.frozen.vae import open_decoder
from distgan.gan.truncation import check_truncation
from distgan.generators.pretrained import PretrainedGenerator
from distgan.hub import is_address
from distgan.runs.checkpoint import load_weights
from distgan.runs.schema import ModelMetadata
from distgan.runs.weights import MODEL, find_folder
from distgan.samples import SampleSpec


def load_generator(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    vae: str | Path | None = None,
    truncation_psi: float = 1.0,
) -> PretrainedGenerator:
    """The generator in a .safetensors file, in the best checkpoint of a run folder, or at hf://OWNER/NAME[@REVISION].

    Of a run without evaluations, the newest complete checkpoint. `vae` is the folder of the autoencoder that decodes
    latents, by default the one that is kept by its hash. `truncation_psi` truncates w (`distgan.gan.truncation`). Of
    weights of another project, their source and licence are printed. Raises UsageError.
    """
    file, note = find_weights(Path(path))
    weights, metadata = load_weights(file)
    try:
        spec = metadata.spec
    except ValueError as error:
        raise UsageError(f"{file}: its metadata does not say what images it makes ({error})") from None
    G = build_network(file, metadata.config.model, spec, weights)
    check_truncation(G, truncation_psi, "truncation_psi")
    about: dict[str, Any] = {"z_dim": metadata.config.model.latent, "classes": metadata.classes}
    if metadata.provenance:
        print(f"{file}: {metadata.provenance}", file=sys.stderr)
    decoder = open_decoder(spec, vae, "cpu", "vae")
    generator = PretrainedGenerator(
        G, spec=spec, **about, path=file, note=note, decoder=decoder, truncation_psi=truncation_psi
    )
    try:
        return generator.to(device)
    except RuntimeError as error:
        raise UsageError(f"device: {device} cannot be used: {str(error).splitlines()[0]}") from None


def build_network(file: Path, model: ModelMetadata, spec: SampleSpec, weights: Mapping[str, Tensor]) -> nn.Module:
    """G with the weights of `file`, on the CPU. Raises UsageError for metadata or weights of something else."""
    arguments: dict[str, Any] = {"z_dim": model.latent, "options": model.options, "seed": 0}
    try:
        with torch.device("meta"):  # without memory: the metadata may name a network that no machine can hold
            G, _ = models.build(model.name, spec, **arguments)
    except UsageError:
        raise
    except Exception as error:  # an architecture documents no exceptions for options that it cannot take
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{file}: its metadata does not describe a {model.name} network ({reason})") from None
    if shapes(G.state_dict()) != shapes(weights):
        raise UsageError(f"{file} does not hold a generator; give generator.safetensors or ema.safetensors")
    G, _ = models.build(model.name, spec, **arguments)
    G.load_state_dict(weights)
    return G


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def find_weights(path: Path, newest: bool = False) -> tuple[Path, str]:
    """The file to load, and a note: `path` itself, or the EMA of G, else G, in a run's best or newest checkpoint.

    Of a folder that `distgan publish` wrote, or of one on the hub, its model.safetensors.
    """
    if not path.is_dir() and not is_address(path):
        return path, ""
    folder, note = find_folder(path, newest)
    for name in ("ema.safetensors", "generator.safetensors", MODEL):
        if (folder / name).is_file():
            return folder / name, note
    raise UsageError(f"{path} holds no checkpoint")
