"""Files: atomic writes, hashes, and the cache folder."""

import hashlib
import os
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads, and what can be computed again, are kept, unless a key or an option names another folder."""
    return Path.home() / ".cache" / "distgan"


def atomic_write(path: Path, data: bytes) -> None:
    """Replace `path` in one step, synced to disk: a kill leaves the old file or the new one. Raises OSError."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


UMASK = os.umask(0o022)  # it is read by setting it: once, before there are threads
os.umask(UMASK)


def share(path: Path) -> None:
    """Give a file the permissions of one that `open` makes; a library that renames its own keeps it private.

    Raises OSError.
    """
    path.chmod(0o666 & ~UMASK)


def fsync_dir(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sha256_file(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
