"""What `shards make` reads: folders, class-folder trees, zips, and data sets by name."""

import csv
import gzip
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from distgan import UsageError
from distgan.data.shardset import CLASSES
from distgan.rng import rng

IMAGES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # Pillow starts Ghostscript for some of the others
LARGEST = 1 << 28


@dataclass
class Source:
    """Images by number. `load` returns a PIL image, or uint8 [size, size, channels] that is to be kept to the bit."""

    name: str
    names: list[str]
    load: Callable[[int], Image.Image | np.ndarray]
    labels: np.ndarray | None = None
    classes: list[str] = field(default_factory=list)
    size: int | None = None
    channels: int = 3
    stamps: list[Any] = field(default_factory=list)
    """What changes when a file changes; guards the continuation of an interrupted `make`."""

    def __len__(self) -> int:
        return len(self.names)


def open_source(source: str, *, split: str, files: str | None, labels: str, samples: int, seed: int) -> Source:
    """The source that SRC names. Raises UsageError."""
    if source in NAMED:
        return NAMED[source](split=split, files=Path(files) if files else None, samples=samples, seed=seed)
    path = Path(source)
    if path.is_dir():
        found = sorted(images_under(path))
        names = [p.relative_to(path).as_posix() for p in found]
        stats = [p.stat() if p.exists() else p.lstat() for p in found]
        made = Source(
            "folder",
            names,
            lambda i: Image.open(found[i], formats=FORMATS),
            stamps=[(s.st_size, s.st_mtime_ns) for s in stats],
        )
        return labelled(made, labels, path, lambda name: (path / name).read_bytes())
    if path.suffix.lower() == ".zip" and path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise UsageError(f"{source} is not a zip: {error}") from None
        infos = sorted(
            (i for i in archive.infolist() if Path(i.filename).suffix.lower() in IMAGES), key=lambda i: i.filename
        )
        made = Source(
            "zip",
            [i.filename for i in infos],
            lambda i: Image.open(io.BytesIO(zip_bytes(path, infos[i])), formats=FORMATS),
            stamps=[i.CRC for i in infos],
        )
        return labelled(made, labels, path.parent, archive.read)
    raise UsageError(f"{source} is no folder, no .zip and no data set; the data sets are {', '.join(NAMED)}")


def images_under(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The image files in a folder and in those under it, through links too.

    A link that leads nowhere is among them: reading it will name it.
    """
    real = os.path.realpath(folder)
    if real in above:  # a link to a folder that holds it
        return
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from images_under(Path(entry.path), (*above, real))
        elif Path(entry.name).suffix.lower() in IMAGES and (entry.is_file() or entry.is_symlink()):
            yield Path(entry.path)


def zip_bytes(path: Path, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > LARGEST:
        raise ValueError(f"{info.file_size:,} bytes; the largest image read from a zip has {LARGEST:,}")
    with zipfile.ZipFile(path) as archive:  # opened anew: each process reads for itself
        return archive.read(info)


def labelled(source: Source, labels: str, folder: Path, read: Callable[[str], bytes]) -> Source:
    """Attach labels: `auto` (dataset.json inside, else class folders, else none), `none`, or a file's."""
    if not source.names:
        raise UsageError(f"there is no image in the source; images end in {', '.join(sorted(IMAGES))}")
    if labels == "none":
        return source
    if labels != "auto":
        path = Path(labels)
        if not path.is_file():
            raise UsageError(f"--labels: there is no file {labels}; or auto, or none")
        return attach(source, label_rows(path.suffix.lower(), path.read_bytes(), labels), labels)
    try:
        return attach(source, label_rows(".json", read("dataset.json"), "dataset.json"), "dataset.json")
    except (OSError, KeyError):
        pass
    tops = [PurePosixPath(name).parts[0] if "/" in name else None for name in source.names]
    folders = sorted({top for top in tops if top is not None})
    if None in tops or len(folders) < 2:
        return source
    number = {name: i for i, name in enumerate(folders)}
    source.classes, source.labels = folders, np.array([number[str(top)] for top in tops])
    return source


def label_rows(kind: str, data: bytes, where: str) -> dict[str, Any]:
    """{file name: label} of a CSV (two columns), JSONL ({"file_name", "label"}) or NVlabs dataset.json."""
    try:
        text = data.decode()
        if kind == ".csv":
            rows = [row for row in csv.reader(io.StringIO(text)) if row]
            return {row[0]: row[1] for row in rows if row[:2] != ["file_name", "label"]}
        if kind == ".jsonl":
            objects = [json.loads(line) for line in text.splitlines() if line.strip()]
            return {row["file_name"]: row["label"] for row in objects}
        return dict(json.loads(text)["labels"] or {})
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{where}: not a list of file names and labels ({error!r})") from None


def attach(source: Source, rows: dict[str, Any], where: str) -> Source:
    if not rows:
        return source
    missing = [name for name in source.names if name not in rows]
    if missing:
        raise UsageError(f"{where}: no label for {len(missing)} images, the first is {missing[0]}")
    values = [rows[name] for name in source.names]
    if all(isinstance(value, int) or str(value).isdecimal() for value in values):
        numbers = [int(value) for value in values]
        odd = next((i for i, number in enumerate(numbers) if not 0 <= number < CLASSES), None)
        if odd is not None:
            raise UsageError(
                f"{where}: the label {numbers[odd]} of {source.names[odd]} is not from 0 to {CLASSES - 1:,}"
            )
        source.labels = np.array(numbers)
        source.classes = [str(i) for i in range(int(source.labels.max()) + 1)]
    else:
        source.classes = sorted({str(value) for value in values})
        number = {name: i for i, name in enumerate(source.classes)}
        source.labels = np.array([number[str(value)] for value in values])
    return source


def from_arrays(name: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Source:
    """Images [N, S, S] or [N, S, S, 3] that are kept to the bit."""
    images = images[..., None] if images.ndim == 3 else images
    names = [f"{i:06d}" for i in range(len(images))]
    return Source(
        name, names, images.__getitem__, labels.astype(np.int64), list(classes), images.shape[1], images.shape[3]
    )


def digits(**_: Any) -> Source:
    """1,797 handwritten digits of 8x8 pixels that scikit-learn ships (Alpaydin & Kaynak 1998), upsampled to 32x32."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError(
            "digits come with scikit-learn, which is not installed; pip install 'distgan[digits]'"
        ) from None
    data: Any = load_digits()
    small = [Image.fromarray((image * (255 / 16)).round().astype(np.uint8)) for image in data.images]
    images = [np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)) for image in small]
    return from_arrays("digits", np.stack(images), data.target, [str(i) for i in range(10)])


def fashion_mnist(*, split: str, files: Path | None, **_: Any) -> Source:
    """70,000 garments of 28x28 pixels in 10 classes (Xiao et al. 2017), padded to 32x32."""
    debian = Path("/usr/share/datasets/fashion-mnist")
    classes = ["T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"]
    images, labels = idx(files or (debian if debian.is_dir() else None), split, "FashionMNIST")
    return from_arrays("fashion-mnist", pad(images), labels, classes)


def mnist(*, split: str, files: Path | None, **_: Any) -> Source:
    """70,000 handwritten digits of 28x28 pixels (LeCun et al. 1998), padded to 32x32."""
    images, labels = idx(files, split, "MNIST")
    return from_arrays("mnist", pad(images), labels, [str(i) for i in range(10)])


def stacked_mnist(*, split: str, files: Path | None, samples: int, seed: int, **_: Any) -> Source:
    """Three MNIST digits as the three channels: 1,000 classes (Metz et al. 2017; Lin et al. 2018), 32x32."""
    images, digit = idx(files, split, "MNIST")
    images = pad(images)
    chosen = rng(seed, "stacked-mnist").integers(len(images), size=(samples, 3))
    labels = digit[chosen].astype(np.int64) @ [100, 10, 1]
    return Source(
        "stacked-mnist",
        [f"{i:06d}" for i in range(samples)],
        lambda i: np.stack([images[j] for j in chosen[i]], axis=-1),
        labels,
        [f"{i:03d}" for i in range(1000)],
        size=32,
        channels=3,
    )


def cifar10(*, split: str, files: Path | None, **_: Any) -> Source:
    """60,000 colour images of 32x32 pixels in 10 classes (Krizhevsky 2009)."""
    data = torchvision_set("CIFAR10", split, files)
    return from_arrays("cifar10", data.data, np.array(data.targets), data.classes)


def pad(images: np.ndarray) -> np.ndarray:
    """28x28 to 32x32 with a black border: no pixel is resampled."""
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))


def idx(files: Path | None, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 28, 28] and labels [N] from the four MNIST-like files in `files`, or torchvision's download."""
    if files is None:
        data = torchvision_set(name, split, None)
        return data.data.numpy(), data.targets.numpy()
    stem = "train" if split == "train" else "t10k"
    found = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = next((p for p in sorted(files.rglob(f"{stem}-{kind}-ubyte*")) if p.suffix in (".gz", "")), None)
        if path is None:
            raise UsageError(f"--source: no {stem}-{kind}-ubyte or .gz in {files}")
        try:
            data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            found.append(np.frombuffer(data, np.uint8, offset=header))
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise UsageError(f"{path}: {error}") from None
    labels = found[1]
    if len(found[0]) != len(labels) * 784:
        raise UsageError(f"{files}: {len(found[0])} bytes of images do not fit {len(labels)} labels")
    return found[0].reshape(-1, 28, 28), labels


def torchvision_set(name: str, split: str, files: Path | None) -> Any:
    import torchvision.datasets

    root = files or Path.home() / ".cache" / "distgan" / "torchvision"
    try:
        return getattr(torchvision.datasets, name)(str(root), train=split == "train", download=files is None)
    except (OSError, RuntimeError) as error:
        where = f"--source {files} does not hold it" if files else "it cannot be downloaded here; give --source DIR"
        raise UsageError(f"{name}: {where} ({' '.join(str(error).split())})") from None


NAMED: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "stacked-mnist": stacked_mnist,
    "cifar10": cifar10,
}
