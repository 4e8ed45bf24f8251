"""Projection: the latents whose images come closest to given ones, by optimization.

Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN" (arXiv 1912.04958), appendix D:
in w, or in w+, with one w for each layer (Abdal et al. 2019, arXiv 1904.03189); and in z, for any generator.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distgan.errors import RunError, UsageError
from distgan.generators.distance import Distance
from distgan.generators.pretrained import PretrainedGenerator
from distgan.generators.projection_parts import learning_rate, statistics_of_w, to_shell
from distgan.noise import finalize, normal_noise
from distgan.rng import derive_seed, rng

Space = Literal["z", "w", "w+"]
NOISE = 0.05
"""Deviation of the noise on w at the start, over that of w; it falls as the square of the time left."""
NOISE_RAMP = 0.75
"""Part of the steps after which there is no noise."""
CHECK_EVERY = 50
"""Steps after which the distance is shown and checked, which waits for the device."""


class Plan(NamedTuple):
    """How to search."""

    space: Space
    steps: int
    lr: float
    seed: int
    snapshots: Sequence[int] = ()
    """Numbers of steps, from 0 on, after which the latents are kept."""


class Projection(NamedTuple):
    """Latents found for N images, on the CPU."""

    latents: Tensor
    """z [N, z_dim], w [N, w_dim] or [N, num_ws, w_dim]."""
    path: Tensor
    """The latents after each of the snapshots, [snapshots, N, ...]."""
    distances: Tensor
    """float32 [N, steps + 1]: at the start, then as optimized (with the noise on w), and last that of the result."""


def default_space(G: PretrainedGenerator) -> Space:
    """w, where there is a mapping network, else z."""
    return "w" if G.has_mapping else "z"


def check_space(G: PretrainedGenerator, space: Space) -> None:
    """Raises UsageError, which names `space`, for one that G does not have."""
    has = ["z"] + ["w"] * G.has_mapping + ["w+"] * (G.has_mapping and G.num_ws is not None)
    if space not in has:
        raise UsageError(f"space: {G.path} has no {space}; choose from {', '.join(has)}")


def project(
    G: PretrainedGenerator,
    images: Tensor,
    labels: Tensor | None,
    distance: Distance,
    plan: Plan,
    *,
    first: int = 0,
    restarts: int = 1,
) -> Projection:
    """The latents of images [N, C, H, W] in [-1, 1] with the `labels` of G, the best of some restarts for each image.

    Adam with the paper's learning rate and noise, both in units of the deviation of w. The first search begins at the
    mean of w of the label, the others at random. In z all begin at random, without noise, and the norm stays in the
    shell that holds 95 % of Gaussian vectors. The images are searched for together and independently: image i draws its
    numbers as number first + i. The same seed gives the same result. Raises RunError for NaN and Inf.
    """
    device = next(G.parameters()).device
    images = images.to(device)
    labels = None if labels is None else labels.to(device)
    best: Projection | None = None
    for restart in range(restarts):
        found = search(G, images, labels, distance, plan, (first, restart))
        best = found if best is None else nearer(best, found)
    assert best is not None, "there is one restart at least"
    return best


def nearer(best: Projection, other: Projection) -> Projection:
    """Of each image the projection with the smaller last distance."""
    chosen = other.distances[:, -1] < best.distances[:, -1]

    def choose(a: Tensor, b: Tensor, axis: int) -> Tensor:
        shape = [len(chosen) if i == axis else 1 for i in range(a.ndim)]
        return torch.where(chosen.view(shape), b, a)

    axes = (0, 1, 0)
    return Projection(*(choose(a, b, axis) for a, b, axis in zip(best, other, axes, strict=True)))


def join(parts: Sequence[Projection]) -> Projection:
    """The projections of all images, in order."""
    latents, paths, distances = zip(*parts, strict=True)
    return Projection(torch.cat(latents), torch.cat(paths, 1), torch.cat(distances))


def search(
    G: PretrainedGenerator,
    images: Tensor,
    labels: Tensor | None,
    distance: Distance,
    plan: Plan,
    numbers: tuple[int, int],
) -> Projection:
    """One search for each image; `numbers` are those of the first image and of the restart."""
    center, scale = begin(G, labels, len(images), plan, numbers)
    keys = image_keys(plan.seed, numbers, len(images)).to(images.device)
    moved = torch.zeros_like(center, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=plan.lr)
    with torch.no_grad():
        goal = distance.features(images)

    def measure(steps: Tensor | float) -> Tensor:
        latents = center + scale * steps
        return distance.between(distance.features(make_images(G, plan.space, latents, labels)), goal)

    distances = []
    path = []
    progress = tqdm(range(plan.steps), unit=" steps", disable=None)
    for step in progress:
        noise = noise_at(step, plan, keys, center)
        now = measure(moved + noise)
        distances.append(now.detach() if step else measure(0.0).detach())
        if step in plan.snapshots:
            path.append(center + scale * moved.detach())
        if step % CHECK_EVERY == 0:
            progress.set_postfix(distance=f"{check_finite(now, step):.4g}")
        optimizer.param_groups[0]["lr"] = plan.lr * learning_rate(step, plan.steps)
        optimizer.zero_grad()
        now.sum().backward()
        optimizer.step()
        if plan.space == "z":
            to_shell(center, moved)
    latents = center + scale * moved.detach()
    with torch.no_grad():
        distances.append(measure(moved))
    check_finite(distances[-1], plan.steps)
    path += [latents] * (plan.steps in plan.snapshots)
    return Projection(latents.cpu(), torch.stack(path or [latents]).cpu(), torch.stack(distances, 1).cpu())


def make_images(G: PretrainedGenerator, space: Space, latents: Tensor, labels: Tensor | None) -> Tensor:
    """float32 images of z [N, z_dim] with their labels, or of w, with gradients."""
    return (G(latents, labels) if space == "z" else G.synthesis(latents)).float()


def begin(
    G: PretrainedGenerator, labels: Tensor | None, count: int, plan: Plan, numbers: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Where the search begins, [N, ...], and the root mean square deviation of a coordinate, [N, 1] or [N, 1, 1]."""
    first, restart = numbers
    device = next(G.parameters()).device
    drawn = [rng(plan.seed, "projection", restart, first + i).standard_normal(G.z_dim, "float32") for i in range(count)]
    z = torch.from_numpy(np.stack(drawn)).to(device)
    if plan.space == "z":
        moved = torch.zeros_like(z)
        to_shell(z, moved)
        return z + moved, z.new_ones(count, 1)
    mean, deviation = statistics_of_w(G, labels, count)
    with torch.no_grad():
        w = mean if restart == 0 else G.mapping(z, labels).float()
    if plan.space == "w":
        return w, deviation[:, None]
    assert G.num_ws is not None, "w+ needs layers with a w of their own"
    return w[:, None].repeat(1, G.num_ws, 1), deviation[:, None, None]


def image_keys(seed: int, numbers: tuple[int, int], count: int) -> Tensor:
    """Keys int64 [N] of the noise of each image."""
    first, restart = numbers
    return torch.tensor([derive_seed(seed, "noise on w", restart, first + i) for i in range(count)])


def noise_at(step: int, plan: Plan, keys: Tensor, like: Tensor) -> Tensor | float:
    """Noise on w in the shape of `like` [N, ..., w_dim], in units of its coordinates' deviation; none in z."""
    left = max(0.0, 1 - step / (NOISE_RAMP * plan.steps))
    if plan.space == "z" or not left:
        return 0.0
    deviation = NOISE * math.sqrt(like.shape[-1]) * left**2  # the paper's is relative to the norm of w
    return deviation * normal_noise(finalize(keys + step), like.shape[1:])


def check_finite(distances: Tensor, step: int) -> float:
    """Their mean. Raises RunError for NaN and Inf."""
    mean = distances.detach().mean().item()
    if not math.isfinite(mean):
        raise RunError(f"the distance is NaN or Inf after {step} steps; a lower --lr may help, or another --extractor")
    return mean
