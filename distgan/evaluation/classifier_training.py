"""The training of a classifier of a dataset's own labels, for metrics that need no download."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import xxhash
from torch import Tensor
from torch.nn import functional as F

from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.errors import UsageError
from distgan.evaluation.classifier import Classifier, ClassifierInfo, is_stacked, unit_spec
from distgan.evaluation.inputs import chunk_size, from_stored
from distgan.rng import derive_seed, rng
from distgan.samples import SampleSpec

BATCH = 200
LR = 4e-3
WEIGHT_DECAY = 1e-2
SHIFT = 2
"""Images are moved by up to so many pixels in training."""
HELD_OUT = 10
"""One in so many different images is held out to measure the accuracy."""
MAX_PIXEL_BYTES = 1 << 30
"""Of the images that are kept in memory to train on."""


class Units(NamedTuple):
    """What a classifier is trained on: the images of a dataset, or the channels of StackedMNIST."""

    images: Tensor
    """[N, H, W, C] as they are stored."""
    labels: Tensor
    """int64 [N]"""
    classes: list[str]
    """Names by label."""
    spec: SampleSpec
    """Of one image."""

    def batch(self, ids: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images [N, C, H, W] as the network takes them, and labels [N], on the device."""
        return from_stored(self.images[ids].to(device), self.spec), self.labels[ids].to(device)


def load_units(dataset: ShardSet, seed: int) -> Units:
    """At most 1 GiB of images, drawn at random. Raises UsageError."""
    labels = dataset.columns["label"]
    if len(dataset.classes) < 2 or (labels < 0).any():
        lacks = "no classes" if dataset.spec.conditions else "no labels, or fewer than two classes"
        raise UsageError(
            f"train_extractor: the dataset has {lacks}; make it with labels, or use `--extractor pixels`: fd_pixels "
            "needs none"
        )
    bytes_per_image = math.prod(dataset.spec.shape) * np.dtype(dataset.spec.dtype).itemsize
    count = min(len(labels), MAX_PIXEL_BYTES // bytes_per_image)
    ids = np.sort(rng(seed, "classifier-images").permutation(len(labels))[:count])
    images = torch.from_numpy(Reader(dataset).read(ids).images)
    targets = torch.from_numpy(labels[ids].astype(np.int64))
    spec = unit_spec(dataset)
    if not is_stacked(dataset):
        return Units(images, targets, [one.name for one in dataset.classes], spec)
    channels = images.permute(0, 3, 1, 2).reshape(-1, spec.height, spec.width, 1)
    digits = torch.stack([targets // 100, targets // 10 % 10, targets % 10], dim=1)
    return Units(channels, digits.flatten(), [str(i) for i in range(10)], spec)


def held_out(images: Tensor) -> Tensor:
    """Which images [N, H, W, C] are not trained on, by the hash of their pixels: copies are on the same side."""
    channels_first = images.numpy().transpose(0, 3, 1, 2)
    return torch.tensor([xxhash.xxh3_64_intdigest(image.tobytes()) % HELD_OUT == 0 for image in channels_first])


def default_images(count: int) -> int:
    """Images to train on, repetitions counted: 8 epochs, but at least 60,000 and at most 400,000."""
    return min(max(8 * count, 60_000), 400_000)


def train_classifier(
    dataset: ShardSet,
    *,
    seed: int = 0,
    images: int | None = None,
    device: torch.device | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Classifier, ClassifierInfo]:
    """A classifier of the dataset's labels, in float32: the same on one machine for the same seed.

    AdamW and a one-cycle learning rate (Smith & Topin 2017, arXiv 1708.07120), on images shifted by up to two pixels.
    `progress` is called with the images done and their total. Raises UsageError.
    """
    units = load_units(dataset, seed)
    out = held_out(units.images)
    train_ids = torch.nonzero(~out)[:, 0].numpy()
    count = len(units.images)
    if not out.any() or not len(train_ids):
        raise UsageError(f"train_extractor: {count} images are too few to train on some and test on others")
    batch = chunk_size(units.spec, BATCH)
    steps = max(-(-(images or default_images(count)) // batch), 3)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "classifier"))
        network = Classifier(units.spec, len(units.classes)).to(device).to(memory_format=torch.channels_last)
        order = rng(seed, "classifier-order")
        fit(network, units, train_ids, batch, steps, order, lambda done: progress(done, steps * batch))
    network.eval().requires_grad_(False)
    info = ClassifierInfo(
        units.spec,
        units.classes,
        dataset.digest,
        accuracy=accuracy(network, units, torch.nonzero(out)[:, 0]),
        held_out=int(out.sum()),
        images=steps * batch,
        seed=seed,
    )
    return network, info


def fit(
    network: Classifier,
    units: Units,
    train_ids: np.ndarray,
    batch: int,
    steps: int,
    order: np.random.Generator,
    progress: Callable[[int], None],
) -> None:
    """Minimize cross-entropy on the images `train_ids`, in random order, epoch after epoch, for `steps` updates."""
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=steps)
    queue = np.empty(0, np.int64)
    for step in range(steps):
        while len(queue) < batch:
            queue = np.concatenate([queue, order.permutation(train_ids)])
        images, labels = units.batch(torch.from_numpy(queue[:batch]), device)
        queue = queue[batch:]
        loss = F.cross_entropy(network(shifted(images, order))[1], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress((step + 1) * batch)


def accuracy(network: Classifier, units: Units, ids: Tensor) -> float:
    """The share of the images `ids` whose class is right, in [0, 1]."""
    device = next(network.parameters()).device
    right = 0
    for part in ids.split(chunk_size(units.spec, 500)):
        images, labels = units.batch(part, device)
        right += int((network(images)[1].argmax(1) == labels).sum())
    return right / len(ids)


def shifted(images: Tensor, generator: np.random.Generator) -> Tensor:
    """The images moved by up to two pixels in each direction, all by the same; the border is repeated."""
    y, x = generator.integers(0, 2 * SHIFT + 1, size=2).tolist()
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="replicate")
    return padded[:, :, y : y + images.shape[2], x : x + images.shape[3]]
