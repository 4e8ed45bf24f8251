"""What `shards make` reads: folders, class-folder trees, zips, and built-in datasets by name."""

import errno
import functools
import gzip
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from distgan import UsageError
from distgan.data.schema import Label
from distgan.dataset_tool.labels import number_labels, parse_labels
from distgan.images import PIL_FORMATS
from distgan.rng import rng

FORMATS = tuple(dict.fromkeys(PIL_FORMATS.values()))
MAX_ZIP_MEMBER = 1 << 28


@dataclass
class Source:
    """Images by index. `load` returns a PIL image, or uint8 [size, size, channels] to be stored unchanged."""

    name: str
    names: list[str]
    load: Callable[[int], Image.Image | np.ndarray]
    labels: np.ndarray | None = None
    """int64 [images]"""
    classes: list[str] = field(default_factory=list)
    size: int | None = None
    channels: int = 3
    has_paths: bool = False
    """Whether `names` are the paths of files, relative to the folder or zip."""
    fingerprint: list[Any] = field(default_factory=list)
    """Per file, what changes with its content: an interrupted `make` is resumed only if it is the same."""

    def __len__(self) -> int:
        return len(self.names)


def open_source(source: str, *, split: str, files: str | None, labels: str, samples: int, seed: int) -> Source:
    """Open SRC of `shards make`; the options are those of the command. Raises UsageError."""
    if source in BUILTIN:
        return BUILTIN[source](split=split, files=Path(files) if files else None, samples=samples, seed=seed)
    path = Path(source)
    if path.is_dir():
        return open_folder(path, labels)
    if path.suffix.lower() == ".zip" and path.is_file():
        return open_zip(path, labels)
    raise UsageError(f"{source} is not a folder, .zip or built-in dataset; choose from {', '.join(BUILTIN)}")


def open_folder(folder: Path, labels: str) -> Source:
    paths = sorted(find_images(folder))
    stats = [path.stat() if path.exists() else path.lstat() for path in paths]
    source = Source(
        "folder",
        [path.relative_to(folder).as_posix() for path in paths],
        lambda i: Image.open(paths[i], formats=FORMATS),
        has_paths=True,
        fingerprint=[(stat.st_size, stat.st_mtime_ns) for stat in stats],
    )
    return add_labels(source, labels, lambda name: (folder / name).read_bytes())


def open_zip(path: Path, labels: str) -> Source:
    # One for each process, since forked ones would share a file position; opening it reads the list of all members.
    archives = functools.cache(lambda pid: zipfile.ZipFile(path))
    try:
        archive = archives(os.getpid())
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path} is not a zip: {error}") from None
    visible = (m for m in archive.infolist() if not any(map(is_hidden, PurePosixPath(m.filename).parts)))
    members = sorted((m for m in visible if is_image(m.filename)), key=lambda m: m.filename)
    source = Source(
        "zip",
        [member.filename for member in members],
        lambda i: Image.open(io.BytesIO(read_zip_member(archives(os.getpid()), members[i])), formats=FORMATS),
        has_paths=True,
        fingerprint=[member.CRC for member in members],
    )
    return add_labels(source, labels, archive.read)


def escape_name(name: str) -> str:
    """A file name as one line of UTF-8: backslashes, line breaks and bytes that are not UTF-8 are escaped."""
    name = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return name.encode(errors="backslashreplace").decode()


def is_image(name: str) -> bool:
    return Path(name).suffix.lower() in PIL_FORMATS


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, such as thumbnails and what macOS adds to folders and zips."""
    return name.startswith(".") or name == "__MACOSX"


def find_images(folder: Path, parents: tuple[str, ...] = ()) -> Iterator[Path]:
    """The image files in a folder and its subfolders, symbolic links followed; hidden ones are skipped.

    Broken links are included, so that they are reported when they are read.
    """
    real = os.path.realpath(folder)
    if real in parents:  # a link to a folder that contains it
        return
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            continue
        if is_folder(entry):
            yield from find_images(Path(entry.path), (*parents, real))
        elif is_image(entry.name) and (entry.is_symlink() or entry.is_file()):
            yield Path(entry.path)


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself is broken
            return False
        raise


def read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > MAX_ZIP_MEMBER:
        raise ValueError(f"{member.file_size:,} bytes; images in a zip have at most {MAX_ZIP_MEMBER:,}")
    return archive.read(member)


def add_labels(source: Source, labels: str, read: Callable[[str], bytes]) -> Source:
    """Add labels: `auto` (dataset.json inside, else class folders, else none), `none`, or from the file `labels`.

    `read` returns a file of the source by name, or raises OSError or KeyError. Raises UsageError.
    """
    if not source.names:
        raise UsageError(f"there is no image in the source; images end in {', '.join(sorted(PIL_FORMATS))}")
    if labels == "none":
        return source
    if labels != "auto":
        path = Path(labels)
        if not path.is_file():
            raise UsageError(f"--labels: there is no file {labels}; give a file, auto or none")
        return assign_labels(source, parse_labels(path.suffix.lower(), path.read_bytes(), labels), labels)
    try:
        return assign_labels(source, parse_labels(".json", read("dataset.json"), "dataset.json"), "dataset.json")
    except (OSError, KeyError):
        pass
    tops = [PurePosixPath(name).parts[0] if "/" in name else None for name in source.names]
    folders = sorted({top for top in tops if top is not None})
    if None in tops or len(folders) < 2:
        if len(folders) > 1:
            stray = source.names[tops.index(None)]
            print(f"warning: no labels: {stray} is not in a class folder", file=sys.stderr)
        return source
    index = {name: i for i, name in enumerate(folders)}
    source.classes = [escape_name(folder) for folder in folders]
    source.labels = np.array([index[str(top)] for top in tops])
    return source


def assign_labels(source: Source, rows: dict[str, Label], where: str) -> Source:
    if not rows:
        return source
    missing = [name for name in source.names if name not in rows]
    if missing:
        raise UsageError(f"{where}: {len(missing)} images have no label, the first is {missing[0]}")
    try:
        source.labels, source.classes = number_labels([rows[name] for name in source.names])
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from None
    return source


def from_arrays(name: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Source:
    """uint8 [N, S, S] or [N, S, S, 3], stored unchanged; `labels` [N] index `classes`."""
    images = images[..., None] if images.ndim == 3 else images
    names = [f"{i:06d}" for i in range(len(images))]
    return Source(
        name, names, images.__getitem__, labels.astype(np.int64), list(classes), images.shape[1], images.shape[3]
    )


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
        raise UsageError(f"{files}: {len(found[0])} bytes of images do not match {len(labels)} labels")
    return found[0].reshape(-1, 28, 28), labels


def torchvision_dataset(name: str, split: str, files: Path | None) -> Any:
    import torchvision.datasets  # imports torch

    root = files or Path.home() / ".cache" / "distgan" / "torchvision"
    try:
        return getattr(torchvision.datasets, name)(str(root), train=split == "train", download=files is None)
    except (OSError, RuntimeError) as error:
        reason = f"not found in --source {files}" if files else "the download failed; give --source DIR"
        raise UsageError(f"{name}: {reason} ({' '.join(str(error).split())})") from None


BUILTIN: dict[str, Callable[..., Source]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "mnist": mnist,
    "stacked-mnist": stacked_mnist,
    "cifar10": cifar10,
}
