"""What D sees of images: augmentations, alike for all stages of an image, then noise levels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from distgan.gan.augment import Pipeline
from distgan.noise import normal_noise

KEY_COLUMNS = 2
"""Uniform numbers that an image's noise is made of."""


class View:
    """The augmentations of a run, then the noise levels of its D, if it has any."""

    def __init__(self, augment: Pipeline, levels: Sequence[float]) -> None:
        self.augment = augment
        self.levels = levels
        self.columns = augment.columns + (KEY_COLUMNS if levels else 0)
        """The uniform numbers that an image needs."""

    def __call__(self, images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
        """Images [N, C, H, W] or stages [N, K, C, H, W] -> the same, or [N, levels, C, H, W].

        `u` [N, columns] in (0, 1) are the random numbers, `p` is the probability of each augmentation.
        """
        if self.augment.columns:
            images = self.augment(images, u[:, : self.augment.columns], p)
        if not self.levels:
            return images
        return noise_levels(images, noise_keys(u[:, self.augment.columns :]), self.levels)


def noise_keys(u: Tensor) -> Tensor:
    """int64 [N] of `u` [N, 2], float32 in (0, 1), of which the first 24 bits count."""
    high, low = ((u * 2**24).long()).unbind(1)
    return (high << 24) | low


def noise_levels(images: Tensor, keys: Tensor, levels: Sequence[float]) -> Tensor:
    """The images at each of the `levels` t_0 > ... > t_(K-1) of noise, [N, K, C, H, W].

    Level k is (1 - t_k) x_k plus noise of standard deviation t_k, where x_k is the k-th stage, or the image itself; the
    noise of a level is that of the next cleaner one, scaled like the image, plus noise of its own. The levels of GAT
    (arXiv 2509.24935), as in its code; `keys` [N] are int64.
    """
    stages = images if images.ndim == 5 else images.unsqueeze(1).expand(-1, len(levels), -1, -1, -1)
    assert stages.shape[1] == len(levels), "G has as many stages as D has noise levels"
    x = stages.to(torch.promote_types(stages.dtype, torch.float32))
    fresh = normal_noise(keys, stages.shape[1:]).to(x.dtype)
    noise = torch.zeros_like(x[:, 0])
    cleaner = 0.0
    noisy = []
    for k in reversed(range(len(levels))):  # from the cleanest
        t = levels[k]
        kept = (1 - t) / (1 - cleaner) if cleaner < 1 else 1.0  # at 1 nothing is left but noise
        noise = noise * kept + fresh[:, k] * math.sqrt(t**2 - (cleaner * kept) ** 2)
        noisy.append((1 - t) * x[:, k] + noise)
        cleaner = t
    return torch.stack(noisy[::-1], 1)
