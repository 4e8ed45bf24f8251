"""The columns of Parquet files: which holds the images, which may be labels, and the names of their classes."""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from distgan.dataset_tool.notes import note
from distgan.dataset_tool.sources.source import is_image
from distgan.errors import UsageError


def find_image_column(file: pq.ParquetFile, image_key: str | None, where: str) -> str:
    """The column of images: `image_key`, or the only one that can be. Raises UsageError."""
    schema = file.schema_arrow
    listed = ", ".join(f"{field.name} ({short_type(field.type)})" for field in schema)
    if image_key is not None:
        if image_key not in schema.names:
            raise UsageError(f"--image_key: {where} has no column {image_key!r}; it has {listed}")
        if not (holds_bytes(schema.field(image_key).type) or is_text(schema.field(image_key).type)):
            fix = "images are a struct {bytes, path}, bytes of image files, or paths"
            raise UsageError(f"--image_key: {image_key!r} of {where} is not a column of images; {fix}")
        return image_key
    found = [field.name for field in schema if holds_bytes(field.type)] or columns_of_paths(file)
    if len(found) != 1:
        problem = f"{' and '.join(found)} may be the images" if found else "no column of images"
        raise UsageError(f"{where}: {problem}; it has {listed}; --image_key COLUMN says which are the images")
    return found[0]


def columns_of_paths(file: pq.ParquetFile) -> list[str]:
    """The columns of text whose first value is the name of an image file."""
    texts = [field.name for field in file.schema_arrow if is_text(field.type)]
    first = next(file.iter_batches(1, columns=texts, use_threads=False), None) if texts else None
    if first is None or first.num_rows == 0:
        return []
    row = first.to_pylist()[0]
    return [name for name in texts if row[name] is not None and is_image(row[name])]


def image_leaves(schema: pa.Schema, column: str) -> list[str]:
    """What is read of a column of images; a struct may have fields beside `bytes` and `path`."""
    kind = schema.field(column).type
    if not pa.types.is_struct(kind):
        return [column]
    return [f"{column}.{field.name}" for field in kind if field.name in ("bytes", "path")]


def label_candidates(schema: pa.Schema, image_column: str) -> list[str]:
    """The columns of text, numbers, flags, and lists of numbers."""
    return [field.name for field in schema if field.name != image_column and is_label(field.type)]


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes by column: the ClassLabel features in the `huggingface` metadata of the schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        rows = [(name, feature["names"]) for name, feature in features.items() if "names" in feature]
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: names for name, names in rows if name in schema.names and is_names(names)}


def default_columns(candidates: Sequence[str], names: dict[str, list[str]], where: str) -> list[str]:
    """The candidates that may be labels if none is asked for: columns with class names, and `label`.

    A note says what else there is.
    """
    found = [name for name in candidates if name in names or name == "label"]
    if not found and candidates:
        listed = ", ".join(candidates)
        note(f"{where}: no labels are taken from the columns {listed}; --label_columns NAME[,NAME] takes them")
    return found


def is_names(names: Any) -> bool:
    return isinstance(names, list) and len(names) > 0 and all(isinstance(name, str) for name in names)


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column can be of images: bytes, or a struct with a field `bytes`."""
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and (is_bytes(field.type) or pa.types.is_null(field.type)) for field in kind)
    return is_bytes(kind)


def is_label(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
        return pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return is_text(kind) or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)


def short_type(kind: pa.DataType) -> str:
    """The type, without the fields of a nested one."""
    return str(kind).split("<")[0]
