"""manifest.json: read in both of its formats, written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from distgan.data.schema import FORMAT, FORMAT_1, ClassCount, ConditionRow, Fields, LatentField, Manifest, decode
from distgan.files import atomic_write
from distgan.samples import LIMITS, Condition, DType, LatentSpec, SampleSpec


def decode_manifest(data: bytes) -> Manifest:
    """Raises ValueError, with one line about what is wrong."""
    try:
        keys = decode(data, dict[str, Any])
        format = keys["format"]
        manifest = None
        if format in (FORMAT, FORMAT_1):
            manifest = msgspec.convert(from_format_1(keys) if format == FORMAT_1 else keys, Manifest)
    except KeyError as error:
        raise ValueError(f"manifest.json is corrupt (it has no {error})") from None
    except ValueError as error:
        raise ValueError(f"manifest.json is corrupt ({error})") from None
    if manifest is None:
        raise ValueError(f"manifest.json has format {format!r}; this version reads {FORMAT_1!r} and {FORMAT!r}")
    check(manifest)
    return manifest


def check(manifest: Manifest) -> None:
    """Raises ValueError, with one line about what is wrong."""
    fault = None
    for key, rows in (("shards", manifest.shards), ("classes", manifest.classes)):
        if (rows or key == "shards") and sum(row.samples for row in rows) != manifest.samples:
            fault = f"its {key} do not have {manifest.samples} samples"
    fault = fault_of_fields(manifest.fields) or fault
    if not np.isfinite([number for row in manifest.conditions for number in (row.mean, row.std)]).all():
        fault = "the mean or std of a condition is not finite"
    if fault:
        raise ValueError(f"manifest.json is corrupt ({fault})")


def fault_of_fields(fields: Fields) -> str | None:
    """What is wrong with them; None: nothing."""
    image = fields.image
    latents = fields.latents
    if image is None and latents is None:
        return "its fields have neither an image nor latents"
    if image is not None:
        limits = LIMITS.get(image.dtype, (-np.inf, np.inf))
        if image.encoding != "npy" and not (image.dtype == "uint8" and image.channels in (1, 3)):
            return f"its images of {image.channels} channels of {image.dtype} cannot be {image.encoding}"
        if not limits[0] <= image.range[0] < image.range[1] <= limits[1] or not np.isfinite(image.range).all():
            return f"its range {image.range} is none of {image.dtype} pixels"
    if image is not None and latents is not None:
        decoded = (latents.image_height, latents.image_width, latents.image_channels, "uint8", LIMITS["uint8"])
        if (image.height, image.width, image.channels, image.dtype, image.range) != decoded:
            return "its images are not those that its latents are decoded to"
    if latents is not None and not np.isfinite([latents.shift, *latent_range(latents)]).all():
        return "the scale or shift of its latents is not finite"
    return None


def latent_range(latents: LatentField) -> tuple[float, float]:
    """The latents that networks see as -1 and 1."""
    return latents.shift - 1 / latents.scale, latents.shift + 1 / latents.scale


def from_format_1(keys: dict[str, Any]) -> dict[str, Any]:
    """The keys of a manifest of format 1 as those of format 2; the format stays. Raises KeyError."""
    size, channels, encoding = (keys[name] for name in ("size", "channels", "encoding"))
    kind = {"height": size, "width": size, "channels": channels}
    image = {**kind, "dtype": "uint8", "range": LIMITS["uint8"], "encoding": encoding}
    if channels not in (1, 3):
        raise ValueError(f"it has {channels!r} channels")
    rest = {name: value for name, value in keys.items() if name not in ("size", "channels", "encoding")}
    return {**rest, "fields": {"image": image}}


def to_format_1(keys: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `from_format_1`, with the keys in the order that they had."""
    image = keys["fields"]["image"]
    first = {"format": FORMAT_1, "samples": keys["samples"], "size": image["height"]}
    first |= {name: image[name] for name in ("channels", "encoding")}
    return first | {name: value for name, value in keys.items() if name != "fields"}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json atomically, in its format; it completes the dataset, so that it is written last."""
    keys = msgspec.to_builtins(manifest)
    if manifest.format == FORMAT_1:
        keys = to_format_1(keys)
    atomic_write(folder / "manifest.json", (json.dumps(keys, indent=1) + "\n").encode())


def spec_of(manifest: Manifest) -> SampleSpec:
    """What the samples of a dataset are."""
    return spec_of_fields(manifest.fields, len(manifest.classes), conditions_of(manifest.conditions))


def spec_of_fields(fields: Fields, num_classes: int = 0, conditions: tuple[Condition, ...] = ()) -> SampleSpec:
    """What samples of these fields are: latents where there are both."""
    labels = num_classes, conditions
    image = fields.image
    stored = fields.latents
    if stored is None:
        assert image is not None, "fields that were checked have one of them"
        return SampleSpec(image.height, image.width, image.channels, *labels, image.dtype, image.range)
    decoded = stored.image_height, stored.image_width, stored.image_channels
    latents = LatentSpec(stored.vae, stored.scale, stored.shift, *decoded, stored.flips)
    limits = latent_range(stored)
    return SampleSpec(stored.height, stored.width, stored.channels, *labels, "float16", limits, latents)


def encoding_of(manifest: Manifest) -> str:
    """How its samples are stored; latents as .npy."""
    image = manifest.fields.image
    return "npy" if image is None or manifest.fields.latents is not None else image.encoding


def images_of(manifest: Manifest) -> Manifest | None:
    """The manifest of the images beside the latents; None without latents, or without images."""
    fields = manifest.fields
    if fields.image is None or fields.latents is None:
        return None
    return msgspec.structs.replace(manifest, fields=Fields(fields.image), mean=None, std=None)


def conditions_of(rows: Sequence[ConditionRow]) -> tuple[Condition, ...]:
    return tuple(Condition(**msgspec.structs.asdict(row)) for row in rows)


def class_rows(names: Sequence[str], labels: np.ndarray) -> list[ClassCount]:
    """The manifest's `classes`."""
    counts = np.bincount(labels, minlength=len(names)) if len(names) else []
    return [ClassCount(name, int(count)) for name, count in zip(names, counts, strict=True)]


def condition_rows(names: Sequence[str], numbers: np.ndarray) -> list[ConditionRow]:
    """The manifest's `conditions`, of float32 `numbers` [samples, names]: flags where all values are 0 or 1.

    A number that is the same in all samples has a std of 1.
    """
    rows = []
    for name, column in zip(names, numbers.T.astype(np.float64), strict=True):
        flag = bool(np.isin(column, (0, 1)).all())
        low = float(column.min())
        high = float(column.max())
        mean, std = (0.0, 1.0) if flag else (float(column.mean()), float(column.std()))
        if low == high and not flag:  # rounding may leave a std of 1e-17
            mean, std = low, 1.0
        rows.append(ConditionRow(name, "flag" if flag else "number", mean, std, low, high))
    return rows


def channel_stats(
    sums: Sequence[float] | np.ndarray, squares: Sequence[float] | np.ndarray, count: int, dtype: DType
) -> dict[str, list[float]]:
    """The manifest's `mean` and `std` per channel, of stored pixels, from sums over `count` pixels."""
    mean = np.asarray(sums, np.float64) / count
    std = np.sqrt(np.maximum(np.asarray(squares, np.float64) / count - mean**2, 0))

    def rounded(value: float) -> float:
        return round(value, 4) if dtype in LIMITS else float(f"{value:.6g}")

    return {name: [rounded(float(value)) for value in values] for name, values in (("mean", mean), ("std", std))}
