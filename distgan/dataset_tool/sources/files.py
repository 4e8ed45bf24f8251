"""Images in a folder or a zip."""

import errno
import functools
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from distgan.dataset_tool.sources.encoded import open_bytes, open_image
from distgan.dataset_tool.sources.pixels import Layout
from distgan.dataset_tool.sources.source import Source, add_labels, is_hidden, is_image
from distgan.dataset_tool.sources.tiff import announce_bands
from distgan.errors import UsageError

MAX_ZIP_MEMBER = 1 << 28


def open_folder(folder: Path, labels: str, label_columns: str | None = None, layout: Layout | None = None) -> Source:
    paths = sorted(find_images(folder))
    stats = [path.stat() if path.exists() else path.lstat() for path in paths]
    source = Source(
        "folder",
        [path.relative_to(folder).as_posix() for path in paths],
        lambda i: open_image(paths[i], layout),
        has_paths=True,
        fingerprint=[(stat.st_size, stat.st_mtime_ns) for stat in stats],
    )
    announce_bands(source)
    return add_labels(source, labels, lambda name: (folder / name).read_bytes(), label_columns)


def open_zip(path: Path, labels: str, label_columns: str | None = None, layout: Layout | None = None) -> Source:
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
        lambda i: open_bytes(read_zip_member(archives(os.getpid()), members[i]), layout),
        has_paths=True,
        fingerprint=[member.CRC for member in members],
    )
    announce_bands(source)
    return add_labels(source, labels, archive.read, label_columns)


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
