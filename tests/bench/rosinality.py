"""Outputs of rosinality/stylegan2-pytorch and of distgan with the weights that `distgan convert` made of its file.

python tests/bench/rosinality.py CHECKOUT, a folder with its model.py and op/; its kernels are not compiled.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.utils.cpp_extension
from torch import Tensor, nn

from distgan import models
from distgan.commands.convert import main
from distgan.gan.truncation import TruncatedGenerator
from distgan.models.stylegan2_layers import StyledConv
from distgan.runs.checkpoint import load_weights

Z_DIM = 512
PSI = 0.5


def perturbed(network: nn.Module) -> nn.Module:
    """Away from the initialization, where noise and biases are 0."""
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.eval().requires_grad_(False)


def outputs(network: nn.Module, kind: type, *arguments: Any, **options: Any) -> list[Tensor]:
    """Of each layer of a kind."""
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda *call: found.append(call[2]))
        for layer in network.modules()
        if isinstance(layer, kind)
    ]
    network(*arguments, **options)
    for hook in hooks:
        hook.remove()
    return found


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest, over the largest value."""
    return float((actual - expected).abs().max() / expected.abs().max())


def load(file: Path, dtype: torch.dtype) -> Any:
    weights, metadata = load_weights(file)
    model = metadata.config.model
    networks = models.build("stylegan2", metadata.spec, z_dim=model.latent, options=model.options, seed=0)
    network = networks[1] if file.stem == "discriminator" else networks[0]
    network.load_state_dict(weights)
    return network.to(dtype).eval()


def compare(reference: Any, size: int, multiplier: int, dtype: torch.dtype, folder: Path) -> str:
    """The differences at a size, in words."""
    theirs: Any = perturbed(reference.Generator(size, Z_DIM, 8, multiplier))
    their_d: Any = perturbed(reference.Discriminator(size, multiplier))
    mean = theirs.mean_latent(1000)
    keys = {"g_ema": theirs.state_dict(), "d": their_d.state_dict(), "latent_avg": mean}
    torch.save(keys, folder / "theirs.pt")
    out = folder / f"{size}-{multiplier}-{dtype}"
    assert main([str(folder / "theirs.pt"), str(out)]) == 0
    theirs, their_d, mean = theirs.to(dtype), their_d.to(dtype), mean.to(dtype)
    G, D = load(out / "ema.safetensors", dtype), load(out / "discriminator.safetensors", dtype)
    G.noise = "const"
    z = torch.randn(4, Z_DIM).to(dtype)
    truncated = theirs([z], randomize_noise=False, truncation=PSI, truncation_latent=mean)[0]
    pairs = zip(
        outputs(G, StyledConv, z),
        outputs(theirs, reference.StyledConv, [z], randomize_noise=False),
        strict=True,
    )
    found = {
        "images": difference(G(z)["images"], theirs([z], randomize_noise=False)[0]),
        "truncated": difference(TruncatedGenerator(G, PSI, Z_DIM)(z)["images"], truncated),
        "layers": max(difference(ours, other) for ours, other in pairs),
        "D": difference(D(truncated), their_d(truncated)[:, 0]),
    }
    return ", ".join(f"{name} {value:.1e}" for name, value in found.items())


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    torch.utils.cpp_extension.load = lambda *_, **__: None  # its kernels; on a CPU it takes plain operations
    import model as rosinality  # pyright: ignore[reportMissingImports]

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place, torch.no_grad():
        for size, multiplier in ((32, 2), (64, 2), (64, 1)):
            for dtype in (torch.float32, torch.float64):
                found = compare(rosinality, size, multiplier, dtype, Path(place))
                print(f"{size} px, width {multiplier / 2:g}, {dtype}: {found}", flush=True)
