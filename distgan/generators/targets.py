"""Images to project: files, folders and datasets, converted to what G makes as `shards make` converts them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distgan.data.dataset import open_dataset
from distgan.data.index_file import NUMBERS
from distgan.data.stream import Reader
from distgan.dataset_tool.convert import Options, prepare, reason
from distgan.dataset_tool.sources.encoded import open_image
from distgan.dataset_tool.sources.files import find_files
from distgan.dataset_tool.sources.source import is_image
from distgan.errors import UsageError
from distgan.evaluation.originals import real_images_of
from distgan.generators.pretrained import PretrainedGenerator
from distgan.pixels import normalize
from distgan.samples import SampleSpec

Fit = Literal["crop", "pad", "stretch"]
"""What becomes of images of another aspect ratio than G's."""


class Target(NamedTuple):
    """One image, before its conversion."""

    name: str
    image: Image.Image | np.ndarray
    label: str | None = None
    """Its class, of a dataset with classes."""
    values: dict[str, float] = {}
    """Its conditions by name, of a dataset with some."""


class Targets(NamedTuple):
    """Images to project."""

    names: list[str]
    images: Tensor
    """float32 [N, C, H, W] in [-1, 1]."""
    labels: list[str | None]
    """The class of each, by its name in the dataset that the image is of."""
    values: list[dict[str, float]]
    """The conditions of each, by name."""
    notes: list[str]
    """What conversions were done, and what was left out."""


def read_targets(paths: Sequence[str], G: PretrainedGenerator, fit: Fit, count: int) -> Targets:
    """The images at `paths`: files, and of folders and datasets the first `count`. Raises UsageError."""
    options = convert_options(G.spec, fit)
    notes: list[str] = []
    found = [target for path in paths for target in open_targets(path, count, notes)]
    converted: Counter[str] = Counter()
    pixels = []
    for target in found:
        try:
            image, conversions = prepare(target.image, options)
        except Exception as error:  # decoders raise what they like for a broken file
            why = reason(error).split("; --")[0]  # the options that it names are those of `shards make`
            raise UsageError(f"{target.name}: {why}; the generator makes {G.spec.unconditional()}") from None
        pixels.append(image)
        converted.update(conversions)
    notes += [f"{times} of {len(found)} images: {name}" for name, times in converted.items()]
    images = normalize(torch.from_numpy(np.stack(pixels)), G.spec).contiguous()
    names = [target.name for target in found]
    return Targets(names, images, [each.label for each in found], [each.values for each in found], notes)


def convert_options(spec: SampleSpec, fit: Fit) -> Options:
    """How images become those that G makes."""
    low, high = spec.range
    return Options(
        size=f"{spec.height}x{spec.width}",
        channels=spec.channels,
        dtype=spec.dtype,
        range=f"{low!r},{high!r}",
        fit=fit,
    )


def open_targets(path: str, count: int, notes: list[str]) -> Iterator[Target]:
    """The images of a file, a folder or a dataset; `notes` are told what is left out. Raises UsageError."""
    if "://" in path or (Path(path) / "manifest.json").is_file():
        yield from of_dataset(path, count, notes)
    elif Path(path).is_dir():
        files = sorted(file for file in find_files(Path(path)) if is_image(file.name))
        if not files:
            raise UsageError(f"{path}: there is no image in the folder")
        if len(files) > count:
            notes.append(f"{path}: the first {count} of {len(files):,} images; --count takes more")
        for file in files[:count]:
            yield Target(str(file), open_file(file))
    else:
        yield Target(path, open_file(Path(path)))


def open_file(path: Path) -> Image.Image | np.ndarray:
    """Raises UsageError for what is no image."""
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file; give images, folders or datasets, and then a run or a file")
    try:
        return open_image(path)
    except Exception as error:
        raise UsageError(f"{path}: {reason(error)}") from None


def of_dataset(address: str, count: int, notes: list[str]) -> Iterator[Target]:
    """The first images of a dataset, with their labels; of latents, those that were encoded. Raises UsageError."""
    dataset = real_images_of(open_dataset(address), address).dataset
    total = dataset.manifest.samples
    if total > count:
        notes.append(f"{address}: the first {count} of {total:,} images; --count takes more")
    ids = np.arange(min(count, total))
    images = np.asarray(Reader(dataset).read(ids).images)
    names = [one.name for one in dataset.spec.conditions]
    for i, image in zip(ids.tolist(), images, strict=True):
        label = dataset.classes[dataset.columns["label"][i]].name if dataset.classes else None
        values = dict(zip(names, dataset.columns[NUMBERS][i].tolist(), strict=True)) if names else {}
        yield Target(f"{address} {i}", image, label, values)
