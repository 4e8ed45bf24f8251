"""Images in a folder or a zip."""

import errno
import functools
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from distgan.dataset_tool.notes import note
from distgan.dataset_tool.sources.encoded import open_bytes, open_image
from distgan.dataset_tool.sources.pixels import Layout
from distgan.dataset_tool.sources.source import Source, add_labels, check_images, is_hidden, is_image
from distgan.dataset_tool.sources.tiff import announce_bands
from distgan.errors import UsageError

MAX_ZIP_MEMBER = 1 << 28


def open_folder(folder: Path, files: list[Path], labels: str, columns: str | None, layout: Layout | None) -> Source:
    """The images among the `files` of a folder and its subfolders; `labels` and `columns` are those of `add_labels`.

    `layout` is that of .npy files. Raises UsageError.
    """
    paths = sorted(path for path in files if is_image(path.name))
    stats = [path.stat() if path.exists() else path.lstat() for path in paths]
    source = Source(
        "folder",
        [path.relative_to(folder).as_posix() for path in paths],
        lambda i: open_image(paths[i], layout),
        has_paths=True,
        fingerprint=[(stat.st_size, stat.st_mtime_ns) for stat in stats],
    )
    others = [path for path in files if not is_image(path.name) and path.absolute() != Path(labels).absolute()]
    check_images(source, [path.relative_to(folder).as_posix() for path in others])
    announce_bands(source)
    return add_labels(source, labels, lambda name: (folder / name).read_bytes(), columns)


def open_zip(path: Path, labels: str, columns: str | None, layout: Layout | None) -> Source:
    """The images in a zip; the options are those of `open_folder`. Raises UsageError."""
    # One for each process, since forked ones would share a file position; opening it reads the list of all members.
    archives = functools.cache(lambda pid: zipfile.ZipFile(path))
    try:
        archive = archives(os.getpid())
    except zipfile.BadZipFile as error:
        raise UsageError(f"{path} is not a zip: {error}") from None
    names = member_names(archive)
    visible = [(name, m) for name, m in names.items() if not any(map(is_hidden, PurePosixPath(name).parts))]
    members = sorted((name, member) for name, member in visible if is_image(name))
    source = Source(
        "zip",
        [name for name, _ in members],
        lambda i: open_bytes(read_zip_member(archives(os.getpid()), members[i][1]), layout),
        has_paths=True,
        fingerprint=[member.CRC for _, member in members],
    )
    check_images(source, [name for name, _ in visible if not is_image(name) and not name.endswith("/")])
    announce_bands(source)
    return add_labels(source, labels, archive.read, columns)


def member_names(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The members by name, the last of each; where all folders end in backslashes, as of Windows, these become `/`."""
    members = {member.filename: member for member in archive.infolist()}
    windows = next((name for name in members if "\\" in name), None)
    if windows is None or any("/" in name for name in members):
        return members
    note(f"backslashes in the names of the zip are taken for /, as in {windows}")
    return {name.replace("\\", "/"): member for name, member in members.items()}


def find_files(folder: Path, parents: tuple[str, ...] = ()) -> Iterator[Path]:
    """The files in a folder and its subfolders, symbolic links followed; hidden ones are skipped.

    Broken links are included, so that they are reported when they are read.
    """
    real = os.path.realpath(folder)
    if real in parents:  # a link to a folder that contains it
        return
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            continue
        if is_folder(entry):
            yield from find_files(Path(entry.path), (*parents, real))
        elif entry.is_symlink() or entry.is_file():
            yield Path(entry.path)


def is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself is broken
            return False
        raise


def read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """The data of a member. Raises ValueError if it is too large for an image."""
    if member.file_size > MAX_ZIP_MEMBER:
        raise ValueError(f"{member.file_size:,} bytes; images in a zip have at most {MAX_ZIP_MEMBER:,}")
    return archive.read(member)
