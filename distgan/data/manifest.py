"""manifest.json: read in both of its formats, written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from distgan.data.schema import FORMAT, FORMAT_1, ClassCount, ConditionRow, Manifest, decode
from distgan.files import atomic_write
from distgan.samples import LIMITS, Condition, DType, SampleSpec


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
    image = manifest.fields.image
    limits = LIMITS.get(image.dtype, (-np.inf, np.inf))
    fault = None
    for key, rows in (("shards", manifest.shards), ("classes", manifest.classes)):
        if (rows or key == "shards") and sum(row.samples for row in rows) != manifest.samples:
            fault = f"its {key} do not have {manifest.samples} samples"
    if not limits[0] <= image.range[0] < image.range[1] <= limits[1] or not np.isfinite(image.range).all():
        fault = f"its range {image.range} is none of {image.dtype} pixels"
    if image.encoding != "npy" and not (image.dtype == "uint8" and image.channels in (1, 3)):
        fault = f"its images of {image.channels} channels of {image.dtype} cannot be {image.encoding}"
    if not np.isfinite([number for row in manifest.conditions for number in (row.mean, row.std)]).all():
        fault = "the mean or std of a condition is not finite"
    if fault:
        raise ValueError(f"manifest.json is corrupt ({fault})")


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
    image = manifest.fields.image
    shape = (image.height, image.width, image.channels)
    conditions = conditions_of(manifest.conditions)
    return SampleSpec(*shape, len(manifest.classes), conditions, image.dtype, image.range)


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
