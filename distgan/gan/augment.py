"""Augmentations of what D sees: DiffAugment's policies and an ADA pipe, twice differentiable, pure in (images, u, p).

All randomness comes from `u`, uniform numbers in (0, 1), one row an image. An image's result depends on its own row
only; a transformation that is not drawn leaves the image bitwise alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distgan.gan.warp import bilinear, pick, rotation, sources, translate


@dataclass(frozen=True)
class Augmentation:
    """A random transformation of images."""

    apply: Callable[[Tensor, Tensor, Tensor | float], Tensor]
    """(images [N, C, H, W] in [-1, 1], u [N, columns] in (0, 1), probability p) -> images, same shape and dtype.

    Three channels are RGB; of any other number each is changed by itself, all with the same random numbers. p is a
    number in [0, 1] or a tensor without dimensions on the images' device, never read by the host.
    """
    columns: int
    """The uniform numbers that an image needs."""
    geometric: bool = False
    """Whether it moves pixels and leaves their colours alone."""


class Pipeline:
    """Augmentations by name, one after the other, each with a factor in [0, 1] for the probability."""

    def __init__(self, entries: Sequence[tuple[str, float]]) -> None:
        self.parts = [(AUGMENTATIONS[name], factor) for name, factor in entries]
        self.columns = sum(part.columns for part, _ in self.parts)

    def __call__(self, images: Tensor, u: Tensor, p: Tensor | float, geometric: bool = False) -> Tensor:
        """As `Augmentation.apply`; of stages [N, K, C, H, W] all that belong to an image are changed alike.

        With `geometric` only those that move pixels are applied: to other images of the same samples.
        """
        if images.ndim == 5:
            n, k = images.shape[:2]
            return self(images.flatten(0, 1), u.repeat_interleave(k, 0), p, geometric).unflatten(0, (n, k))
        for (part, factor), own in zip(self.parts, u.split([part.columns for part, _ in self.parts], 1), strict=True):
            if part.geometric or not geometric:
                images = part.apply(images, own, p * factor)
        return images


# Distributions, as functions of uniform numbers. In float64: the same function of the same number differs in its last
# bits with its place in the batch and with the device; rounded to float32, hardly ever.


def uniform(u: Tensor, low: float, high: float) -> Tensor:
    """U(low, high), float64."""
    return low + (high - low) * u.double()


def integer(u: Tensor, low: int, high: int) -> Tensor:
    """Uniform over low, ..., high, both included, float64; u may have been rounded to 1."""
    return (low + (u.double() * (high - low + 1)).floor()).clamp(max=high)


def normal(u: Tensor) -> Tensor:
    """N(0, 1), float64; finite for u rounded to 0 or 1, too."""
    eps = torch.finfo(torch.float64).eps
    return torch.special.ndtri(u.double().clamp(eps, 1 - eps))


def working(images: Tensor) -> Tensor:
    """Images, or features of them, in the precision to compute in, float32 or better."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """[N] -> [N, 1, 1, 1], in the dtype of `images`."""
    return values.to(images.dtype).view(-1, 1, 1, 1)


def per_side(shares: Tensor, images: Tensor) -> Tensor:
    """Shares [N, 2] of the width and of the height -> pixels (right, down)."""
    return torch.stack([shares[:, 0] * images.shape[3], shares[:, 1] * images.shape[2]], dim=1)


def choose(chosen: Tensor, changed: Tensor, images: Tensor) -> Tensor:
    """`changed` for the `chosen` [N] images, else `images` bitwise, in the dtype and memory format of `images`."""
    return torch.where(chosen.logical_not().view(-1, 1, 1, 1), images, changed.to(images.dtype))


def cut(images: Tensor, chosen: Tensor, x: Tensor, y: Tensor, width: float, height: float) -> Tensor:
    """Fill a rectangle with 0 (grey) in the chosen images: its sides and its centre (x, y), [N], in pixels."""
    right = torch.arange(images.shape[3], device=images.device) + 0.5 - x[:, None, None]  # [N, 1, W]
    down = (torch.arange(images.shape[2], device=images.device) + 0.5)[:, None] - y[:, None, None]  # [N, H, 1]
    inside = (right.abs() < width / 2) & (down.abs() < height / 2) & chosen[:, None, None]
    return torch.where(inside.unsqueeze(1), 0, images)


# DiffAugment (Zhao et al. 2020, arXiv 2006.10738), with the ranges of its code; p = 1 is the paper's.


def color(images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
    """Brightness + U(-0.5, 0.5), saturation times U(0, 2), then contrast times U(0.5, 1.5), about the image's mean.

    Images that are not RGB: contrast about the mean of each channel, and no saturation.
    """
    is_rgb = images.shape[1] == 3
    x = working(images)
    x = x + per_image(uniform(u[:, 1], -0.5, 0.5), x)
    if is_rgb:
        grey = x.mean(1, keepdim=True)
        x = grey + (x - grey) * per_image(uniform(u[:, 2], 0, 2), x)
    mean = x.mean((1, 2, 3) if is_rgb else (2, 3), keepdim=True)
    x = mean + (x - mean) * per_image(uniform(u[:, 3], 0.5, 1.5), x)
    return choose(u[:, 0] < p, x, images)


def mixed_color(images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
    """`color` of images of any number of channels as if they were RGB: all are mixed, and have one mean.

    For latents, as GAT (arXiv 2509.24935) has it: about the means of the image before brightness is added.
    """
    x = working(images)
    grey = x.mean(1, keepdim=True)
    mean = x.mean((1, 2, 3), keepdim=True)
    changed = x + per_image(uniform(u[:, 1], -0.5, 0.5), x)
    changed = grey + (changed - grey) * per_image(uniform(u[:, 2], 0, 2), x)
    changed = mean + (changed - mean) * per_image(uniform(u[:, 3], 0.5, 1.5), x)
    return choose(u[:, 0] < p, changed, images)


def flip(images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
    """Horizontal flip."""
    return choose(u[:, 0] < p, images.flip(3), images)


def translation(images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
    """Translation by whole pixels, up to 1/8 of each side, every offset alike; zeros come in."""
    down, right = ((side + 4) // 8 for side in images.shape[2:])
    offset = torch.stack([integer(u[:, 1], -right, right), integer(u[:, 2], -down, down)], dim=1)
    return choose(u[:, 0] < p, translate(images, offset), images)


def cutout(images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
    """A rectangle of half of each side, its centre anywhere in the image, filled with 0."""
    height, width = ((side + 1) // 2 for side in images.shape[2:])
    # An even side is centred between two pixels, an odd one on a pixel.
    x = integer(u[:, 1], 0, images.shape[3] - width % 2) + (width % 2) / 2
    y = integer(u[:, 2], 0, images.shape[2] - height % 2) + (height % 2) / 2
    return cut(images, u[:, 0] < p, x, y, width, height)


# ADA's pipe (Karras et al. 2020, arXiv 2006.06676, Appendix B). Each transformation is drawn with probability p: of its
# uniform numbers the first says whether, the others say how. The paper's order is that of these functions. Its
# image-space filters and its noise are left out.


def ada_blit(images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
    """Horizontal flip (0 or 1), turns by 90 degrees (0 to 3), translation by whole pixels, U(-1/8, 1/8) of each side.

    Images that are not square are turned by 0 or 180 degrees. A flip of 0 and a turn of 0 count as drawn: with p = 1
    half of the images are flipped. Exact: no pixel is interpolated. The places that a translation uncovers are filled
    by reflection.
    """
    height, width = images.shape[2:]
    quarters = integer(u[:, 3], 0, 3) if height == width else 2 * integer(u[:, 3], 0, 1)
    flip = torch.where(u[:, 0] < p, integer(u[:, 1], 0, 1), 0)
    turns = torch.where(u[:, 2] < p, quarters, 0)
    shares = uniform(u[:, 5:7], -0.125, 0.125)
    offset = torch.where(u[:, 4:5] < p, per_side(shares, images).round(), 0)
    mirror = torch.stack([1 - 2 * flip, torch.ones_like(flip)], dim=1)
    matrix = mirror.unsqueeze(2) * rotation(turns * (math.pi / 2)).round()  # first turned back, then mirrored back
    y, x = sources(matrix, offset, height, width)
    return choose(moves(matrix, offset), pick(images, y.long(), x.long()), images)


def ada_geometry(images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
    """Scale, rotation, stretch, rotation, fractional translation: one affine map, one resampling, outside reflected.

    Scale lognormal(0, (0.2 ln 2)^2); stretch s along x and 1/s along y with s alike; each rotation U(-pi, pi) with
    probability 1 - sqrt(1 - p), so that one or both are drawn with p; translation N(0, 0.125^2) of each side. Angles
    and scales are those of pixels, whatever the shape of the image.

    Differs from the paper, which upsamples by a wavelet filter before the resampling and low-passes after it: here the
    weights are bilinear and nothing filters, so that images come out smoother where they are turned or enlarged, and
    aliased where they are shrunk. What `ada_blit` does is a step of its own here, in the paper a part of the same map:
    what a translation there moves out of the image is lost, and one back brings in reflected border pixels.
    """
    p_rotation = 1 - (1 - p) ** 0.5
    scale = torch.exp2(0.2 * torch.where(u[:, 0] < p, normal(u[:, 1]), 0))
    before = torch.where(u[:, 2] < p_rotation, uniform(u[:, 3], -math.pi, math.pi), 0)
    stretch = torch.exp2(0.2 * torch.where(u[:, 4] < p, normal(u[:, 5]), 0))
    after = torch.where(u[:, 6] < p_rotation, uniform(u[:, 7], -math.pi, math.pi), 0)
    offset = torch.where(u[:, 8:9] < p, per_side(0.125 * normal(u[:, 9:11]), images), 0)
    # The inverse: what came last is undone first.
    undo_scales = torch.stack([1 / (scale * stretch), stretch / scale], dim=1)
    left, right = rotation(before), undo_scales.unsqueeze(2) * rotation(after)
    matrix = (left.unsqueeze(3) * right.unsqueeze(1)).sum(2)  # their product, whatever precision matmul is set to
    x = working(images)
    resampled = bilinear(x, *sources(matrix.to(x.dtype), offset.to(x.dtype), *images.shape[2:]))
    return choose(moves(matrix, offset), resampled, images)


def moves(matrix: Tensor, offset: Tensor) -> Tensor:
    """[N]: whether an affine map, of `matrix` [N, 2, 2] and `offset` [N, 2], is not the identity."""
    return (matrix != torch.eye(2, device=matrix.device)).flatten(1).any(1) | (offset != 0).any(1)


def ada_color(images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
    """Brightness, contrast, luma flip, hue rotation, saturation: one matrix on the colours of an image.

    Brightness + N(0, 0.2^2); contrast lognormal(0, (0.5 ln 2)^2); luma flip 0 or 1; hue rotation U(-pi, pi); saturation
    lognormal(0, (ln 2)^2). Images that are not RGB: brightness, contrast (about 0) and flip of each channel. That is
    what the matrix does to grey, which has no hue and no saturation.
    """
    drawn = u[:, 0::2] < p
    u_value = u[:, 1::2]
    brightness = torch.where(drawn[:, 0], 0.2 * normal(u_value[:, 0]), 0)
    contrast = torch.exp2(0.5 * torch.where(drawn[:, 1], normal(u_value[:, 1]), 0))
    flip = torch.where(drawn[:, 2], integer(u_value[:, 2], 0, 1), 0)
    angle = torch.where(drawn[:, 3], uniform(u_value[:, 3], -math.pi, math.pi), 0)
    saturation = torch.exp2(torch.where(drawn[:, 4], normal(u_value[:, 4]), 0))
    x = working(images)
    x = x + per_image(brightness, x)
    luma_gain, chroma_gain = contrast * (1 - 2 * flip), contrast * saturation
    if images.shape[1] == 3:
        x = transform_colors(x, color_matrix(luma_gain, chroma_gain, angle).to(x.dtype))
    else:
        x = x * per_image(luma_gain, x)
    return choose(drawn.any(1), x, images)


def color_matrix(luma_gain: Tensor, chroma_gain: Tensor, angle: Tensor) -> Tensor:
    """Colour matrices [N, 3, 3]: gains along and across the luma axis v = (1, 1, 1) / sqrt(3), a rotation about it.

    The paper's 4x4 matrices after brightness (which is first) have no translation; contrast, luma flip, hue and
    saturation all have v as their axis, hence commute, and their product is this sum.
    """
    identity = torch.eye(3, device=angle.device, dtype=angle.dtype)
    luma = torch.full_like(identity, 1 / 3)  # v v^T
    cross = (identity.roll(1, 0) - identity.roll(1, 1)) / math.sqrt(3)  # the matrix of x -> v x x (cross product)
    gain, cos, sin = (v.view(-1, 1, 1) for v in (chroma_gain, torch.cos(angle), torch.sin(angle)))
    return luma_gain.view(-1, 1, 1) * luma + gain * (cos * (identity - luma) + sin * cross)


def transform_colors(images: Tensor, matrix: Tensor) -> Tensor:
    """`matrix` [N, 3, 3] times the colour of each pixel of images [N, 3, H, W]."""
    red, green, blue = (matrix[:, :, k, None, None] * images[:, k : k + 1] for k in range(3))
    return red + green + blue


def ada_cutout(images: Tensor, u: Tensor, p: Tensor | float) -> Tensor:
    """A rectangle of half of each side, its centre U(0, 1) of each side, filled with 0."""
    height, width = images.shape[2:]
    return cut(images, u[:, 0] < p, uniform(u[:, 1], 0, width), uniform(u[:, 2], 0, height), width / 2, height / 2)


AUGMENTATIONS: dict[str, Augmentation] = {
    "color": Augmentation(color, 4),
    "mixed_color": Augmentation(mixed_color, 4),
    "translation": Augmentation(translation, 3, geometric=True),
    "cutout": Augmentation(cutout, 3),
    "flip": Augmentation(flip, 1, geometric=True),
    "ada_blit": Augmentation(ada_blit, 7, geometric=True),
    "ada_geometry": Augmentation(ada_geometry, 11, geometric=True),
    "ada_color": Augmentation(ada_color, 10),
    "ada_cutout": Augmentation(ada_cutout, 3),
}
