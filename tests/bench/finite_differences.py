"""What sigma does to r2_fd of a trained D in float32, bf16 and fp16: its value, and its gradient for D's weights.

    .venv/bin/python tests/bench/finite_differences.py RUN/checkpoints/IMAGES [--images 16] [--repeats 16]

On images of the checkpoint's EMA; means over repeats. First table: `value` is the penalty over |grad D|^2 / 2, `cosine`
that of its gradient with the one in float32 for the same noise; half precision is autocast on a CPU. Second table: the
cosine of its gradient, from one draw of the noise for each image of a minibatch, with that of r2.
"""

import argparse
import copy
import statistics
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from distgan import models
from distgan.gan.finite_difference import DInputs, FiniteDifference, output_and_change, squared_slope
from distgan.gan.penalties import squared_gradient
from distgan.generators.loading import load_generator
from distgan.runs.checkpoint import load_weights

SIGMAS = (0.003, 0.01, 0.03, 0.1, 0.3)
MINIBATCHES = (16, 64, 256)
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
SCALE = 2.0**6
"""Of the loss, as a GradScaler has it."""


def autocast(network: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy that computes in half precision, as Accelerate does it."""
    network = copy.deepcopy(network)
    if dtype is not None:
        network.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype)(network.forward))
    return network


def penalty_and_gradient(D: nn.Module, images: Tensor, sigma: float, repeat: int) -> tuple[float, Tensor]:
    keys = torch.arange(len(images)) + 1000 * repeat
    inputs = DInputs(images, None, None, keys)
    _, change = output_and_change(lambda inputs: D(inputs.images), inputs, FiniteDifference(sigma))
    penalty = squared_slope(change).mean() / 2
    gradients = torch.autograd.grad(penalty * SCALE, list(D.parameters()), materialize_grads=True)
    return penalty.item(), torch.cat([gradient.flatten() for gradient in gradients]) / SCALE


def exact_penalty_and_gradient(D: nn.Module, images: Tensor) -> tuple[float, Tensor]:
    """Those of r2, with a second derivative."""
    images = images.detach().requires_grad_(True)
    penalty = squared_gradient(D(images), images).mean() / 2
    gradients = torch.autograd.grad(penalty, list(D.parameters()), materialize_grads=True)
    return penalty.item(), torch.cat([gradient.flatten() for gradient in gradients])


def mean_cosine(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    return statistics.fmean(float(cosine_similarity(a, b, dim=0)) for a, b in pairs)


def compare_precisions(D: nn.Module, images: Tensor, repeats: int) -> None:
    """Print the first table."""
    exact, _ = exact_penalty_and_gradient(D, images)
    print(f"|grad D|^2 / 2: {exact:.4f}\n\n| sigma | precision | value | cosine |\n|---|---|---|---|")
    for sigma in SIGMAS:
        float32 = [penalty_and_gradient(D, images, sigma, repeat) for repeat in range(repeats)]
        for name, dtype in PRECISIONS.items():
            network = autocast(D, dtype)
            found = [penalty_and_gradient(network, images, sigma, repeat) for repeat in range(repeats)]
            value = statistics.fmean(penalty for penalty, _ in found) / exact
            cosine = mean_cosine((a, b) for (_, a), (_, b) in zip(found, float32, strict=True))
            print(f"| {sigma} | {name} | {value:.2f} | {cosine:.2f} |", flush=True)


def compare_minibatches(D: nn.Module, images: Tensor, repeats: int) -> None:
    """Print the second table; a minibatch has the first images."""
    print(
        "\n| images | " + " | ".join(f"sigma {sigma}" for sigma in SIGMAS) + " |\n" + "|---" * (1 + len(SIGMAS)) + "|"
    )
    for count in MINIBATCHES:
        _, exact = exact_penalty_and_gradient(D, images[:count])
        cosines = []
        for sigma in SIGMAS:
            found = [penalty_and_gradient(D, images[:count], sigma, repeat)[1] for repeat in range(repeats)]
            cosines.append(mean_cosine((gradient, exact) for gradient in found))
        print(f"| {count} | " + " | ".join(f"{cosine:.2f}" for cosine in cosines) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=16)
    args = parser.parse_args()
    G = load_generator(args.checkpoint / "ema.safetensors")
    tensors, metadata = load_weights(args.checkpoint / "discriminator.safetensors")
    model = metadata.config.model
    _, D = models.build(model.name, G.spec, z_dim=G.z_dim, options=model.options, seed=0)
    D.load_state_dict(tensors)
    images = G.sample(max(args.images, *MINIBATCHES))
    compare_precisions(D, images[: args.images], args.repeats)
    compare_minibatches(D, images, args.repeats)


if __name__ == "__main__":
    main()
