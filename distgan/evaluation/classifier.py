"""A small classifier of a dataset's own labels: its network, and its file."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
from torch import Tensor, nn

from distgan.data.shardset import ShardSet
from distgan.errors import UsageError, format_os_error
from distgan.evaluation.inputs import enters_as_uint8
from distgan.files import atomic_write
from distgan.samples import SampleSpec

VERSION = 2
"""Of the file; one of another version is refused. Files of square images of 8 bits are of version 1, as ever."""
VERSION_1 = 1
METADATA = "distgan_classifier"


@dataclass(frozen=True)
class ClassifierInfo:
    """What a classifier was trained on, as the metadata of its file."""

    spec: SampleSpec
    """Of the images that it takes, without labels; of StackedMNIST, of one channel."""
    classes: list[str]
    manifest: str
    """Hash of the dataset's manifest."""
    accuracy: float
    """On the held-out images, in [0, 1]."""
    held_out: int
    images: int
    """Images trained on, repetitions counted."""
    seed: int

    def to_metadata(self) -> dict[str, Any]:
        """As the file holds it."""
        keys = asdict(self)
        images = keys.pop("spec")
        if self.spec.height == self.spec.width and enters_as_uint8(self.spec):
            return {"version": VERSION_1, "size": self.spec.height, "channels": self.spec.channels} | keys
        return {"version": VERSION} | {name: images[name] for name in IMAGE_KEYS} | keys

    @classmethod
    def from_metadata(cls, keys: dict[str, Any]) -> "ClassifierInfo":
        """The inverse of `to_metadata`. Raises KeyError and ValueError."""
        rest = dict(keys)
        if rest.pop("version") == VERSION_1:
            size = rest.pop("size")
            images = {"height": size, "width": size, "channels": rest.pop("channels")}
        else:
            images = {name: rest.pop(name) for name in IMAGE_KEYS}
        return msgspec.convert({"spec": images} | rest, cls)


IMAGE_KEYS = ("height", "width", "channels", "dtype", "range")
"""Of the metadata of version 2, for those of SampleSpec."""


class Classifier(nn.Module):
    """Images [N, C, H, W] of `spec` -> features [N, 128] after a ReLU, and logits [N, classes]; H and W of 4 or more.

    Images are uint8, or float of the same values, where they are stored as 8 bits from 0 to 255, and otherwise float32
    in [-1, 1]: `distgan.evaluation.inputs`.
    """

    num_features = 128

    def __init__(self, spec: SampleSpec, num_classes: int) -> None:
        super().__init__()
        width = 16
        sides = [(side + 1) // 2 for side in (spec.height, spec.width)]
        layers: list[nn.Module] = [nn.Conv2d(spec.channels, width, 5, 2, 2), nn.ReLU()]
        while max(sides) > 4:
            wider = min(2 * width, 128)
            pool = tuple(2 if side > 4 else 1 for side in sides)
            layers += [nn.Conv2d(width, wider, 3, 1, 1), nn.BatchNorm2d(wider), nn.ReLU(), nn.MaxPool2d(pool)]
            width = wider
            sides = [side // step for side, step in zip(sides, pool, strict=True)]
        self.in_uint8 = enters_as_uint8(spec)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3))
        self.features = nn.Sequential(nn.Linear(width * sides[0] * sides[1], self.num_features), nn.ReLU())
        self.head = nn.Linear(self.num_features, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.float() / 127.5 - 1 if self.in_uint8 else images
        features = self.features(self.body(x))
        return features, self.head(features)

    def maps(self, images: Tensor) -> list[Tensor]:
        """The features after each convolution's ReLU, [N, F, h, w], of images float [N, C, H, W] in [-1, 1]."""
        maps = []
        x = images
        for layer in self.body:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                maps.append(x)
        return maps


def is_stacked(dataset: ShardSet) -> bool:
    """Whether a label is three digits, one a channel (StackedMNIST): the classifier then sees one channel at a time."""
    return dataset.spec.channels == 3 and [one.name for one in dataset.classes] == [f"{i:03d}" for i in range(1000)]


def unit_spec(dataset: ShardSet) -> SampleSpec:
    """What a classifier of the dataset's labels takes: its images without labels, or a channel of StackedMNIST."""
    images = dataset.spec.unconditional()
    return replace(images, channels=1) if is_stacked(dataset) else images


def save_classifier(network: Classifier, info: ClassifierInfo, path: Path) -> None:
    """Write the classifier as one .safetensors file, atomically. Raises OSError."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    # one entry: safetensors writes several in random order, and the sha256 of the file names the classifier
    metadata = {METADATA: json.dumps({"info": info.to_metadata(), "sha256": hash_tensors(tensors)})}
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
        version = metadata["info"]["version"]
        if version not in (VERSION_1, VERSION):
            raise UsageError(f"extractor: {path} is of version {version}, this is version {VERSION}; train it again")
        info = ClassifierInfo.from_metadata(metadata["info"])
        network = Classifier(info.spec, len(info.classes))
        network.load_state_dict(weights)
    except FileNotFoundError:
        raise UsageError(
            f"extractor: no such file: {path}; train it with `distgan evaluate --train_extractor DATASET --out {path}`"
        ) from None
    except OSError as error:
        raise UsageError(f"extractor: {path}: {format_os_error(error)}") from None
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        message = (str(error).splitlines() or [""])[0]
        raise UsageError(f"extractor: {path} is not a classifier of distgan ({message})") from None
    network.eval().requires_grad_(False)
    return network, info
