"""Datasets by name."""

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from distgan.dataset_tool.sources.source import Source, from_arrays
from distgan.errors import UsageError
from distgan.files import cache_folder
from distgan.rng import rng


def digits(**_: Any) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels (Alpaydin & Kaynak 1998), upsampled to 32x32."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError("digits need scikit-learn, which is not installed; pip install 'distgan[digits]'") from None
    data: Any = load_digits()
    small = [Image.fromarray((image * (255 / 16)).round().astype(np.uint8)) for image in data.images]
    images = [np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in small]
    return from_arrays("digits", np.stack(images), data.target, [str(i) for i in range(10)])


def fashion_mnist(*, split: str, files: Path | None, **_: Any) -> Source:
    """70,000 garments of 28x28 pixels in 10 classes (Xiao et al. 2017), padded to 32x32."""
    debian = Path("/usr/share/datasets/fashion-mnist")
    classes = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
    images, labels = read_idx(files or (debian if debian.is_dir() else None), split, "FashionMNIST")
    return from_arrays("fashion-mnist", pad(images), labels, classes)


def mnist(*, split: str, files: Path | None, **_: Any) -> Source:
    """70,000 handwritten digits of 28x28 pixels (LeCun et al. 1998), padded to 32x32."""
    images, labels = read_idx(files, split, "MNIST")
    return from_arrays("mnist", pad(images), labels, [str(i) for i in range(10)])


def stacked_mnist(*, split: str, files: Path | None, samples: int, seed: int, **_: Any) -> Source:
    """Three MNIST digits as the three channels: 1,000 classes (Metz et al. 2017; Lin et al. 2018), 32x32."""
    images, digit_labels = read_idx(files, split, "MNIST")
    images = pad(images)
    triples = rng(seed, "stacked-mnist").integers(len(images), size=(samples, 3))
    labels = digit_labels[triples].astype(np.int64) @ [100, 10, 1]
    return Source(
        "stacked-mnist",
        [f"{i:06d}" for i in range(samples)],
        lambda i: np.stack([images[j] for j in triples[i]], axis=-1),
        labels,
        [f"{i:03d}" for i in range(1000)],
        size=32,
        channels=3,
    )


def cifar10(*, split: str, files: Path | None, **_: Any) -> Source:
    """60,000 colour images of 32x32 pixels in 10 classes (Krizhevsky 2009)."""
    data = torchvision_dataset("CIFAR10", split, files)
    return from_arrays("cifar10", data.data, np.array(data.targets), data.classes)


def pad(images: np.ndarray) -> np.ndarray:
    """[N, 28, 28] -> [N, 32, 32] with a black border, without resampling."""
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))


def read_idx(files: Path | None, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 28, 28] and labels [N] from the IDX files in `files`, or torchvision's download of dataset `name`."""
    if files is None:
        data = torchvision_dataset(name, split, None)
        return data.data.numpy(), data.targets.numpy()
    stem = "train" if split == "train" else "t10k"
    arrays = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = next((p for p in sorted(files.rglob(f"{stem}-{kind}-ubyte*")) if p.suffix in (".gz", "")), None)
        if path is None:
            raise UsageError(f"--source: no {stem}-{kind}-ubyte or .gz in {files}")
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            arrays.append(np.frombuffer(data, np.uint8, offset=header))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UsageError(f"{path}: {error}") from None
    images, labels = arrays
    if len(images) != len(labels) * 784:
        raise UsageError(f"{files}: {len(images)} bytes of images do not match {len(labels)} labels")
    return images.reshape(-1, 28, 28), labels


def torchvision_dataset(name: str, split: str, files: Path | None) -> Any:
    import torchvision.datasets  # imports torch

    root = files or cache_folder() / "torchvision"
    try:
        return getattr(torchvision.datasets, name)(str(root), train=split == "train", download=files is None)
    except (OSError, RuntimeError) as error:
        reason = f"not found in --source {files}" if files else "the download failed; give --source DIR"
        raise UsageError(f"{name}: {reason} ({' '.join(str(error).split())})") from None
