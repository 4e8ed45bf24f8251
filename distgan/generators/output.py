"""The files that generated images are written to: sheets to look at, and pixels as datasets store them."""

import csv
import importlib.util
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distgan.errors import UsageError
from distgan.files import atomic_write
from distgan.generators.pretrained import PretrainedGenerator
from distgan.generators.sampling import Inputs, batches
from distgan.images import grid, save_picture
from distgan.pixels import to_picture, to_stored
from distgan.samples import SampleSpec

NPZ_NAMES = ("images", "z", "w", "labels", "noise", "distances", "file", "allow_pickle")
"""Arrays of an .npz that are no conditions, and keywords of numpy.savez."""
LABELS_FILE = "labels.csv"
INSTALL_TIFF = "pip install 'distgan[tiff]'"


def choose_format(spec: SampleSpec, wanted: str) -> tuple[str, str]:
    """The format of single files, png, npy or tiff, and a remark on it; `wanted`, or for `auto` one that holds `spec`.

    Raises UsageError for a format that does not.
    """
    is_png = (spec.dtype, spec.channels) in (("uint8", 1), ("uint8", 3), ("uint16", 1))
    has_tifffile = importlib.util.find_spec("tifffile") is not None
    if wanted == "png" and not is_png:
        raise UsageError(
            f"format: a PNG cannot hold {spec.channels} channels of {spec.dtype}; take --format npy or tiff"
        )
    if wanted == "tiff" and not has_tifffile:
        raise UsageError(f"format: a TIFF needs tifffile: {INSTALL_TIFF}, or take --format npy")
    if wanted != "auto":
        return wanted, ""
    if is_png:
        return "png", ""
    return ("tiff", "") if has_tifffile else ("npy", f"as .npy, since TIFF needs tifffile ({INSTALL_TIFF})")


def save_sheet(
    G: PretrainedGenerator, inputs: Inputs, out: Path, columns: int | None, show: Sequence[int], blank: int = 0
) -> None:
    """Write the channels `show` of the images as one picture, after `blank` black ones. Raises OSError."""
    images = pictures(G, inputs, show)
    save_picture(grid(np.pad(images, ((blank, 0), (0, 0), (0, 0), (0, 0))), columns), out)


def pictures(G: PretrainedGenerator, inputs: Inputs, show: Sequence[int]) -> np.ndarray:
    """The channels `show` of the images, uint8 [N, H, W, 1 or 3]."""
    return np.concatenate(list(batches(G, inputs, lambda images: to_picture(images.numpy(), show))))


def stored_batches(G: PretrainedGenerator, inputs: Inputs) -> Iterator[np.ndarray]:
    """The images as they are stored, up to inputs.batch at a time."""
    return batches(G, inputs, lambda images: to_stored(images, G.spec).numpy())


def save_arrays(G: PretrainedGenerator, inputs: Inputs, out: Path, **more: np.ndarray) -> None:
    """Write the images as they are stored, [N, H, W, C]: an .npy, or an .npz with their inputs and `more`.

    Raises OSError.
    """
    images = np.concatenate(list(stored_batches(G, inputs)))
    with open(out, "wb") as file:
        if out.suffix.lower() == ".npy":
            np.save(file, images)
            return
        names = column_names(inputs.values, NPZ_NAMES)
        values: dict[str, Any] = {names[name]: column for name, column in inputs.values.items()}
        values |= {"z" if inputs.w is None else "w": inputs.latents.numpy(), **more}
        if G.noise is not None:
            values["noise"] = np.array(G.noise)
        np.savez_compressed(file, images=images, labels=inputs.classes, **values)


def save_files(G: PretrainedGenerator, inputs: Inputs, out: Path, names: Sequence[str]) -> None:
    """Write each image as it is stored to a file of these names, and conditions to labels.csv beside them.

    Raises OSError.
    """
    for folder in sorted({(out / name).parent for name in names}):
        folder.mkdir(parents=True, exist_ok=True)
    for name, image in zip(names, (image for batch in stored_batches(G, inputs) for image in batch), strict=True):
        save_image(image, out / name)
    if inputs.values:
        atomic_write(out / LABELS_FILE, label_table(G, inputs, names).encode())


def save_image(image: np.ndarray, path: Path) -> None:
    """Write pixels [H, W, C] unchanged, in the format of the suffix. Raises OSError."""
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    if path.suffix == ".png":
        save_picture(pixels, path)
        return
    file = io.BytesIO()
    if path.suffix == ".npy":
        np.save(file, image)
    else:
        import tifffile

        is_rgb = image.shape[2] == 3
        kind: dict[str, Any] = {"planarconfig": "contig"} if pixels.ndim == 3 else {}
        tifffile.imwrite(
            file, pixels, photometric="rgb" if is_rgb else "minisblack", metadata=None, software=False, **kind
        )
    atomic_write(path, file.getvalue())


def label_table(G: PretrainedGenerator, inputs: Inputs, names: Sequence[str]) -> str:
    """A CSV of the classes and conditions of the images in files `names`."""
    columns: dict[str, Sequence[Any]] = {"file_name": names}
    if len(inputs.classes):
        columns["label"] = [G.classes[number] for number in inputs.classes]
    name_of = column_names(inputs.values, list(columns))
    for condition in G.spec.conditions:
        values = inputs.values[condition.name]
        columns[name_of[condition.name]] = (values.astype(int) if condition.kind == "flag" else values).tolist()
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([list(columns), *zip(*columns.values(), strict=True)])
    return text.getvalue()


def column_names(conditions: Iterable[str], taken: Sequence[str]) -> dict[str, str]:
    """The column of each condition: its name, behind `condition_` where that means something else."""
    names: dict[str, str] = {}
    for condition in conditions:
        name = condition
        while name in taken or name in names.values():
            name = f"condition_{name}"
        names[condition] = name
    return names
