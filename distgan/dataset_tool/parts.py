"""A dataset that is being written, by one command or by its parts on many machines.

Every file is written whole under a name of its writer and then renamed, and what a shard holds depends on the plan
alone: parts may be killed, run twice, or run twice at once. What is known of a shard is kept in DEST/.making.
"""

import dataclasses
import hashlib
import io
import os
import shutil
import socket
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from distgan import __version__
from distgan.data.index_file import COLUMNS, NUMBERS, write_index
from distgan.data.manifest import channel_stats, class_rows, condition_rows, decode_manifest, write_manifest
from distgan.data.schema import FORMAT, FORMAT_1, ConditionRow, Fields, File, ImageField, Manifest, Shard, decode
from distgan.data.shardset import SOURCES
from distgan.dataset_tool.arrays import check_alike
from distgan.dataset_tool.convert import Options
from distgan.dataset_tool.plan import Plan
from distgan.dataset_tool.shard_info import ShardInfo, conversions_of
from distgan.dataset_tool.value_range import resolve_range
from distgan.errors import UsageError
from distgan.files import atomic_write, sha256_file
from distgan.samples import LIMITS

MAKING = ".making"
PLAN = "plan.json"
FINGERPRINT = ".source"
"""The plan's fingerprint, which is not in the manifest: modification times are not part of a dataset."""


class DatasetWriter:
    """The files that are written into the folder `dest` by a plan."""

    def __init__(self, dest: Path, plan: Plan) -> None:
        self.dest = dest
        self.plan = plan
        self.digest = plan.digest()

    def is_finished(self) -> bool:
        return (self.dest / "manifest.json").exists()

    def check_finished(self) -> Manifest:
        """The manifest of the finished dataset. Raises UsageError unless it is complete, and of this plan."""
        manifest = read_manifest(self.dest)
        if not self.is_described_by(manifest):
            raise UsageError(f"{self.dest} holds another dataset; use another folder, or delete this one first")
        path = self.dest / FINGERPRINT
        if path.exists() and path.read_text().strip() != self.plan.fingerprint:
            fix = "use another folder, or delete this one first"
            raise UsageError(f"{self.dest}: the images have changed since, or --layout has; {fix}")
        sizes = {shard.name: shard.bytes for shard in manifest.shards}
        if manifest.sources is not None:
            sizes[SOURCES] = manifest.sources.bytes
        for name, size in sizes.items():
            if not (self.dest / name).exists() or (self.dest / name).stat().st_size != size:
                fix = "delete the folder, then re-create it"
                raise UsageError(f"{self.dest}: {name} is missing or truncated; {fix}")
        self.clean_up(manifest)
        return manifest

    def is_described_by(self, manifest: Manifest) -> bool:
        """Whether a finished dataset is of this plan, as far as its manifest tells."""
        return (options_of(manifest), manifest.source) == (self.plan.options, self.plan.source)

    def start_or_resume(self) -> None:
        """Create DEST/.making, or check that it is of the same plan. Raises UsageError."""
        path = self.dest / MAKING / PLAN
        if not path.exists():
            foreign = [path.name for path in self.dest.iterdir() if path.name != MAKING]
            if foreign and not path.exists():  # else another part has just begun
                raise UsageError(f"{self.dest} is not empty (it contains {foreign[0]}); use a new folder")
            path.parent.mkdir(exist_ok=True)
            write_whole(path, self.plan.encode())
        if path.read_bytes() != self.plan.encode():
            what = "an unfinished dataset of another source or other options"
            raise UsageError(f"{self.dest} holds {what}; delete it first")

    def info_path(self, shard: int) -> Path:
        return self.dest / MAKING / f"{shard_name(shard)}.npz"

    def is_written(self, shard: int) -> bool:
        return self.info_path(shard).exists() and (self.dest / shard_name(shard)).exists()

    def write_info(self, shard: int, info: ShardInfo, columns: dict[str, np.ndarray]) -> None:
        """Keep what is known of a written shard, and its rows of the index."""
        buffer = io.BytesIO()
        meta = np.array(msgspec.json.encode(info).decode())
        np.savez(buffer, meta=meta, **columns)  # type: ignore[arg-type]
        write_whole(self.info_path(shard), buffer.getvalue())

    def read_info(self, shard: int) -> tuple[ShardInfo, dict[str, np.ndarray]]:
        """Raises UsageError unless the shard was written by this plan, and is complete."""
        name = shard_name(shard)
        path = self.info_path(shard)
        try:
            with np.load(path) as stored:
                info = decode(str(stored["meta"]), ShardInfo)
                columns = {key: stored[key] for key in self.column_names()}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UsageError(f"{path}: {error}; delete it, and run its part again") from None
        if info.plan != self.digest:
            fix = f"delete {self.dest}, then make all parts"
            raise UsageError(f"{self.dest}: {name} is of another source or other options; {fix}")
        if (self.dest / name).stat().st_size != info.bytes:
            raise UsageError(f"{self.dest}: {name} is truncated; delete it, and run its part again")
        return info, columns

    def column_names(self) -> list[str]:
        """Of the index."""
        return [*COLUMNS, *([NUMBERS] if self.plan.numbers else [])]

    def keep_shard(self, shard: int, temporary: Path, info: ShardInfo, columns: dict[str, np.ndarray]) -> None:
        """Give a shard that was written whole its name, and keep what is known of it."""
        info.bytes = temporary.stat().st_size
        info.sha256 = sha256_file(temporary)
        os.replace(temporary, self.dest / info.name)
        self.write_info(shard, info, columns)

    def check_images(self, infos: list[ShardInfo]) -> list[str]:
        """The images that were left out. Raises UsageError, with a list of them, if none may be, or none is left."""
        bad = [line for info in infos for line in info.bad]
        some_left = any(info.samples for info in infos) or not bad
        if bad and not (some_left and self.plan.options["skip_bad"]):
            fix = "fix them, or leave them out with --skip_bad" if some_left else "fix them"
            images = self.plan.source["images"]
            raise UsageError(f"{len(bad)} of {images} images cannot be used; {fix}:\n  " + "\n  ".join(bad))
        return bad

    def finish(self) -> Manifest:
        """Write the index, sources.txt and the manifest from what is in DEST/.making, and remove it.

        Returns the manifest. Raises UsageError, and removes what was written, if images cannot be used.
        """
        stored = [self.read_info(shard) for shard in range(self.plan.shards)]
        infos = [info for info, _ in stored]
        columns = {name: np.concatenate([part[name] for _, part in stored]) for name in stored[0][1]}
        try:
            left_out = self.check_images(infos)
            fields = self.fields(infos)
        except UsageError:
            self.remove_written()
            raise
        written = [info for info in infos if info.samples]
        paths = [path for info in written for path in info.paths]
        sources = write_sources(self.dest, paths) if self.plan.sources else None
        manifest = self.describe(written, columns, fields, left_out, sources, write_index(self.dest, columns))
        atomic_write(self.dest / FINGERPRINT, (self.plan.fingerprint + "\n").encode())
        write_manifest(self.dest, manifest)
        self.clean_up(manifest)
        return manifest

    def fields(self, infos: list[ShardInfo]) -> Fields:
        """What a sample consists of. Raises UsageError, also if the images are not alike."""
        options = Options(**self.plan.options)
        samples = sum(info.samples for info in infos)
        if check_alike(conversions_of(infos), samples, options):
            limits = LIMITS[options.pixel_type]
        else:
            values = [info.values for info in infos if info.samples]
            limits = resolve_range(options.range, options.pixel_type, values)
        return Fields(ImageField(*options.shape, options.pixel_type, limits, options.format))

    def conditions(self, columns: dict[str, np.ndarray]) -> list[ConditionRow]:
        """The manifest's."""
        return condition_rows(self.plan.numbers, columns[NUMBERS]) if self.plan.numbers else []

    def stats(self, written: list[ShardInfo], fields: Fields) -> dict[str, list[float]]:
        """The manifest's `mean` and `std`."""
        image = fields.latents or fields.image
        assert image is not None, "a sample has one of them"
        # of Python's integers, which do not overflow
        sums = [sum(channel) for channel in zip(*(info.sums for info in written), strict=True)]
        squares = [sum(channel) for channel in zip(*(info.squares for info in written), strict=True)]
        values = sum(info.samples for info in written) * image.height * image.width
        return channel_stats(sums, squares, values, image.dtype if isinstance(image, ImageField) else "float16")

    def describe(
        self,
        written: list[ShardInfo],
        columns: dict[str, np.ndarray],
        fields: Fields,
        left_out: list[str],
        sources: File | None,
        index: File,
    ) -> Manifest:
        """The manifest of the shards that were written, and of the columns of their index."""
        plan = self.plan
        stats = self.stats(written, fields)
        return Manifest(
            format=FORMAT,
            samples=sum(info.samples for info in written),
            fields=fields,
            classes=[] if plan.classes is None else class_rows(plan.classes, columns["label"]),
            conditions=self.conditions(columns),
            mean=stats["mean"],
            std=stats["std"],
            shards=[Shard(info.name, info.samples, info.bytes, info.sha256) for info in written],
            options=plan.options,
            source=plan.source,
            converted=conversions_of(written),
            left_out=left_out,
            made_by=f"distgan {__version__}",
            sources=sources,
            index=index,
        )

    def clean_up(self, manifest: Manifest) -> None:
        """Remove what the finished dataset does not need: shards without images, and DEST/.making.

        It can be killed, and called again.
        """
        kept = {shard.name for shard in manifest.shards}
        for name in {shard_name(shard) for shard in range(self.plan.shards)} - kept:
            (self.dest / name).unlink(missing_ok=True)
        remove_making(self.dest)

    def remove_written(self) -> None:
        """Remove what `make` wrote into the folder, and nothing else."""
        for shard in range(self.plan.shards):
            (self.dest / shard_name(shard)).unlink(missing_ok=True)
        remove_making(self.dest)


def read_plan(dest: Path) -> Plan | None:
    """The plan in DEST/.making; None if there is none. Raises UsageError."""
    try:
        return decode((dest / MAKING / PLAN).read_bytes(), Plan)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UsageError(f"{dest}: {PLAN} is corrupt ({error}); delete the folder, then make all parts") from None


def read_manifest(dest: Path) -> Manifest:
    """Raises UsageError."""
    try:
        return decode_manifest((dest / "manifest.json").read_bytes())
    except ValueError as error:
        raise UsageError(f"{dest}: {error}; delete the folder first") from None


def options_of(manifest: Manifest) -> dict[str, Any] | None:
    """The options of `make` of a dataset of any format."""
    options = manifest.options
    if manifest.format != FORMAT_1 or options is None:
        return options
    size = options.get("size")
    changed = {"size": f"{size}x{size}", "dtype": "uint8", "fit": "crop" if options.get("crop") == "center" else "none"}
    known = {field.name: field.default for field in dataclasses.fields(Options)}
    return known | {name: value for name, value in options.items() if name in known} | changed


def write_sources(dest: Path, lines: list[str]) -> File:
    """Write DEST/sources.txt; returns what the manifest records of it."""
    data = "".join(f"{line}\n" for line in lines).encode()
    atomic_write(dest / SOURCES, data)
    return File(len(data), hashlib.sha256(data).hexdigest())


def shard_name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def own_name(path: Path) -> Path:
    """A hidden name beside `path` that no other process has."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def write_whole(path: Path, data: bytes) -> None:
    """`atomic_write` for several writers of the same bytes at once."""
    atomic_write(own_name(path), data)
    os.replace(own_name(path), path)


def remove_making(dest: Path) -> None:
    for path in dest.glob(".shard-*.tmp"):  # of killed writers
        path.unlink(missing_ok=True)
    shutil.rmtree(dest / MAKING, ignore_errors=True)
