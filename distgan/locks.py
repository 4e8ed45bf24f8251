"""Locks on files, between the processes of a node, also on file systems that have none."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NO_LOCKS = errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF
"""What file systems without locks answer; NFS answers EBADF where a file is open for reading only."""


def stat_of(path: Path) -> os.stat_result | None:
    """None if there is nothing at `path`."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def is_at(path: Path, fd: int) -> bool:
    """Whether the open file `fd` is the one at `path`."""
    stat = stat_of(path)
    return stat is not None and os.path.samestat(stat, os.fstat(fd))


def lock_file(fd: int, *, shared: bool = False, wait: bool = True, required: bool = False) -> bool:
    """Lock an open file or folder until it is closed, which the end of the process does too.

    Returns False on a file system without locks; raises OSError there instead if the lock is `required`. Raises
    BlockingIOError if another process holds the lock and this one is not to `wait` for it.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
    except OSError as error:
        if required or error.errno not in NO_LOCKS:
            raise
        return False
    return True


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[Any]:
    """`path`, open for one thread of one process of this node at a time. The lock ends with the process.

    On a file system without locks it is open at once.
    """
    while True:
        file = open(path, "r+b", buffering=0, opener=open_or_create)
        lock_file(file.fileno())
        if is_at(path, file.fileno()):
            break
        file.close()  # the previous holder has removed it
    try:
        yield file
    finally:
        if is_at(path, file.fileno()):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                path.unlink()
        file.close()


def open_or_create(path: str, flags: int) -> int:
    """Opens another user's lock for reading only, which is enough to lock it."""
    try:
        return os.open(path, flags | os.O_CREAT, 0o666)
    except PermissionError:
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise
