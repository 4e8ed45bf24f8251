"""Open shards: file descriptors that threads share, and how many of them a process may have."""

import contextlib
import os
import resource
from pathlib import Path

from distgan.data.remote.cache import RemoteStorage, check_open_files
from distgan.data.shardset import ShardSet
from distgan.errors import CorruptDataError
from distgan.locks import is_at, lock_file

MAX_OPEN_FILES = 256
"""Shards that a reader keeps open. An evaluation in a run has a reader of its own."""


class OpenFile:
    """A file descriptor, closed when the last thread that uses it drops its reference.

    With `lock`, no process removes the file from the cache until then. Raises OSError.
    """

    def __init__(self, path: Path, lock: bool = False) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if lock:
            lock_file(self.fd, shared=True)
            if not is_at(path, self.fd):
                raise FileNotFoundError(None, "evicted while it was opened", str(path))

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def raise_file_limit() -> None:
    """Let this process open as many files as it may; the usual limit of 1,024 leaves few beside those of the shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_shard(shards: ShardSet, shard: int) -> OpenFile:
    """Open a shard. Raises CorruptDataError if that fails, or if its size does not match the manifest.

    Raises RunError if there is no file descriptor left.
    """
    expected = shards.manifest.shards[shard].bytes
    remote = isinstance(shards.storage, RemoteStorage)
    for attempt in range(3):  # a cached copy can be evicted between its download and its opening
        path = shards.shard_path(shard)
        try:
            file = OpenFile(path, lock=remote)
        except OSError as error:
            if attempt < 2 and isinstance(error, FileNotFoundError):
                continue
            check_open_files(error)
            raise CorruptDataError(f"{path}: {error.strerror}") from None
        size = os.fstat(file.fd).st_size
        if size != expected:
            raise CorruptDataError(f"{path}: {size} bytes, {expected} in the manifest")
        return file
    raise AssertionError("the last attempt returns or raises")
