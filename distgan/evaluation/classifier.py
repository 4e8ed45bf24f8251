"""A small classifier of a dataset's own labels: its features and classes are the metrics that need no download."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import xxhash
from torch import Tensor, nn
from torch.nn import functional as F

from distgan.data.shardset import ShardSet
from distgan.data.stream import Reader
from distgan.errors import UsageError, format_os_error
from distgan.files import atomic_write
from distgan.rng import derive_seed, rng

VERSION = 1
"""Of the architecture and its input; a file of another version is refused."""
METADATA = "distgan_classifier"
BATCH = 200
LR = 4e-3
WEIGHT_DECAY = 1e-2
SHIFT = 2
"""Images are moved by up to so many pixels in training."""
HELD_OUT = 10
"""One in so many different images is held out to measure the accuracy."""
MAX_PIXEL_BYTES = 1 << 30
"""Of the images that are kept in memory to train on."""


@dataclass(frozen=True)
class ClassifierInfo:
    """What a classifier was trained on, as the metadata of its file."""

    version: int
    size: int
    channels: int
    classes: list[str]
    manifest: str
    """Hash of the dataset's manifest."""
    accuracy: float
    """On the held-out images, in [0, 1]."""
    held_out: int
    images: int
    """Images trained on, repetitions counted."""
    seed: int


class Classifier(nn.Module):
    """uint8 [N, C, S, S] -> features [N, 128] after a ReLU, and logits [N, classes]; S of 4 or more."""

    num_features = 128

    def __init__(self, *, size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        width = 16
        side = (size + 1) // 2
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 5, 2, 2), nn.ReLU()]
        while side > 4:
            wider = min(2 * width, 128)
            layers += [nn.Conv2d(width, wider, 3, 1, 1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(2)]
            width = wider
            side //= 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3))
        self.features = nn.Sequential(nn.Linear(width * side * side, self.num_features), nn.ReLU())
        self.head = nn.Linear(self.num_features, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(self.body(images.float() / 127.5 - 1))
        return features, self.head(features)


def is_stacked(dataset: ShardSet) -> bool:
    """Whether a label is three digits, one a channel (StackedMNIST): the classifier then sees one channel at a time."""
    return dataset.spec.channels == 3 and [one.name for one in dataset.classes] == [f"{i:03d}" for i in range(1000)]


def load_units(dataset: ShardSet, seed: int) -> tuple[Tensor, Tensor, list[str]]:
    """What the classifier is trained on: images uint8 [N, C, S, S], labels [N], and the names of the classes.

    Of StackedMNIST these are the channels. At most 1 GiB of images, drawn at random. Raises UsageError.
    """
    labels = dataset.columns["label"]
    if len(dataset.classes) < 2 or (labels < 0).any():
        raise UsageError("train_extractor: the dataset has no labels, or fewer than two classes; make it with labels")
    bytes_per_image = dataset.spec.height**2 * dataset.spec.channels
    count = min(len(labels), MAX_PIXEL_BYTES // bytes_per_image)
    ids = np.sort(rng(seed, "classifier-images").permutation(len(labels))[:count])
    batch = Reader(dataset).read(ids)
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2)
    targets = torch.from_numpy(batch.labels)
    if not is_stacked(dataset):
        return images, targets, [one.name for one in dataset.classes]
    digits = torch.stack([targets // 100, targets // 10 % 10, targets % 10], dim=1)
    return images.reshape(-1, 1, *dataset.spec.shape[1:]), digits.flatten(), [str(i) for i in range(10)]


def held_out(images: Tensor) -> Tensor:
    """Which images [N] are not trained on, by the hash of their pixels: copies of an image are on the same side."""
    return torch.tensor([xxhash.xxh3_64_intdigest(image.tobytes()) % HELD_OUT == 0 for image in images.numpy()])


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
    inputs, targets, classes = load_units(dataset, seed)
    out = held_out(inputs)
    train_ids = torch.nonzero(~out)[:, 0].numpy()
    if not out.any() or not len(train_ids):
        raise UsageError(f"train_extractor: {len(inputs)} images are too few to train on some and test on others")
    steps = max(-(-(images or default_images(len(inputs))) // BATCH), 3)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "classifier"))
        network = Classifier(size=dataset.spec.height, channels=inputs.shape[1], num_classes=len(classes)).to(device)
        network = network.to(memory_format=torch.channels_last)
        order = rng(seed, "classifier-order")
        fit(network, inputs, targets, train_ids, steps, order, lambda done: progress(done, steps * BATCH))
    network.eval().requires_grad_(False)
    parts = zip(inputs[out].split(500), targets[out].split(500), strict=True)
    right = [network(x.to(device))[1].argmax(1).cpu() == y for x, y in parts]
    info = ClassifierInfo(
        VERSION,
        dataset.spec.height,
        inputs.shape[1],
        classes,
        dataset.digest,
        accuracy=float(torch.cat(right).double().mean()),
        held_out=int(out.sum()),
        images=steps * BATCH,
        seed=seed,
    )
    return network, info


def fit(
    network: Classifier,
    inputs: Tensor,
    targets: Tensor,
    train_ids: np.ndarray,
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
        while len(queue) < BATCH:
            queue = np.concatenate([queue, order.permutation(train_ids)])
        ids = torch.from_numpy(queue[:BATCH])
        queue = queue[BATCH:]
        loss = F.cross_entropy(network(shifted(inputs[ids].to(device), order))[1], targets[ids].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress((step + 1) * BATCH)


def shifted(images: Tensor, generator: np.random.Generator) -> Tensor:
    """The images moved by up to two pixels in each direction, all by the same; the border is repeated."""
    y, x = generator.integers(0, 2 * SHIFT + 1, size=2).tolist()
    padded = F.pad(images.float(), (SHIFT,) * 4, mode="replicate")
    return padded[:, :, y : y + images.shape[2], x : x + images.shape[3]]


def save_classifier(network: Classifier, info: ClassifierInfo, path: Path) -> None:
    """Write the classifier as one .safetensors file, atomically. Raises OSError."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    # one entry: safetensors writes several in random order, and the sha256 of the file names the classifier
    metadata = {METADATA: json.dumps({"info": asdict(info), "sha256": hash_tensors(tensors)})}
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, safetensors.torch.save(tensors, metadata))


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """The sha256 of the bytes of tensors in host memory, by name."""
    hashes = hashlib.sha256()
    for name in sorted(tensors):
        hashes.update(tensors[name].numpy().tobytes())
    return hashes.hexdigest()


def load_classifier(path: Path) -> tuple[Classifier, ClassifierInfo]:
    """Raises UsageError if the file is missing or corrupt, is no classifier, or is of another version."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        if hash_tensors(weights) != metadata["sha256"]:
            raise UsageError(f"extractor: the sha256 of the weights in {path} does not match; train it again")
        if metadata["info"]["version"] != VERSION:
            raise UsageError(
                f"extractor: {path} is of version {metadata['info']['version']}, this is version {VERSION}; train it "
                "again"
            )
        info = ClassifierInfo(**metadata["info"])
        network = Classifier(size=info.size, channels=info.channels, num_classes=len(info.classes))
        network.load_state_dict(weights)
    except FileNotFoundError:
        raise UsageError(
            f"extractor: no such file: {path}; train it with `distgan evaluate --train_extractor DATASET --out {path}`"
        ) from None
    except OSError as error:
        raise UsageError(f"extractor: {path}: {format_os_error(error)}") from None
    except (safetensors.SafetensorError, KeyError, TypeError, json.JSONDecodeError, RuntimeError) as error:
        message = (str(error).splitlines() or [""])[0]
        raise UsageError(f"extractor: {path} is not a classifier of distgan ({message})") from None
    network.eval().requires_grad_(False)
    return network, info
