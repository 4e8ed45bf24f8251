"""Remote shards: complete files, downloaded in this process into a cache folder and named by their sha256.

No shell and no external program: obstore transfers the bytes.
"""

import contextlib
import errno
import hashlib
import os
import random
import re
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import BinaryIO

from distgan.data.remote.objectstore import check_address, explain, open_store
from distgan.data.shardset import LocalStorage, Storage
from distgan.errors import CorruptDataError, RunError, UsageError
from distgan.files import cache_folder
from distgan.locks import is_at, lock_file, locked_file, stat_of

CACHED = re.compile(r"[0-9a-f]{64}\.tar|\.[0-9a-f]{64}\.tar\..+\.part")
"""Names of the shards in the cache folder, which may hold files of the user too, and of unfinished downloads."""
UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.\w+\.(?:lock|(?P<host>.+)-\d+-[0-9a-f]+\.part)")
"""Names of what a download has in the cache folder: its lock, and the bytes that it has received."""
FIRST_PAUSE = 0.2
"""Seconds between a failure and the next attempt; twice as long after each further failure."""
SILENT_SECONDS = 3600.0
"""An unfinished download of another node is dead if it received nothing for so long."""
EXITING = threading.Event()
"""Set when the interpreter exits: downloads end."""


def open_storage(
    address: str, cache_dir: str | None = None, cache_gb: float = 0.0, fetch_ahead: int = 2, fetch_threads: int = 32
) -> Storage:
    """A folder, or the server of an http(s)://, s3://, gs:// or az:// address. Raises UsageError."""
    if "://" not in address:
        return LocalStorage(Path(address))
    check_address(address)
    folder = Path(cache_dir) if cache_dir else cache_folder() / "shards"
    return RemoteStorage(address.rstrip("/"), folder, cache_gb, fetch_ahead, fetch_threads)


class UnavailableError(RunError):
    """The server does not have a file, or refuses it; trying again does not help."""


class RemoteStorage:
    """A dataset on a server. One process per node downloads a file; the others wait for it and share the copy.

    A failed download is resumed with exponential backoff and jitter until `timeout` seconds pass without a new byte. A
    copy gets its name only if length and sha256 match the manifest. With `cache_gb`, the least recently used shards
    are evicted; a file that a process has locked, because it reads or writes it, is not. Where the locks of the file
    system hold on one node only, or where it has none, several processes may download the same file, each for itself.
    """

    def __init__(
        self, address: str, folder: Path, cache_gb: float = 0.0, fetch_ahead: int = 2, fetch_threads: int = 32
    ) -> None:
        self.address = address
        self.folder = folder
        self.timeout = 120.0
        self.processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        """Processes of this node, which share the cache and the connections equally."""
        self.cache_bytes = int(cache_gb * 1e9)
        self.share = self.cache_bytes // self.processes
        self.fetch_ahead = fetch_ahead
        self.fetch_threads = max(1, fetch_threads // self.processes)
        self.store = open_store(address)
        self.stopping = threading.Event()
        """While it is set, downloads end."""
        self.is_clean = False

    def path(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        suffix = Path(name).suffix
        if sha256 is None:  # manifest.json: its hash is not known, so it is downloaded each time
            name_hash = hashlib.sha256(f"{self.address}/{name}".encode()).hexdigest()
            return self._fetch(name, self.folder / f"{name_hash}{suffix}", None, None)
        copy = self.folder / f"{sha256}{suffix}"
        if not is_complete(copy, size):
            return self._fetch(name, copy, size, sha256)
        with contextlib.suppress(OSError):
            os.utime(copy)  # the time of last use, for eviction
        return copy

    def names(self) -> set[str] | None:
        return None

    def _fetch(self, name: str, copy: Path, size: int | None, sha256: str | None) -> Path:
        try:
            return self._fetch_locked(name, copy, size, sha256)
        except OSError as error:
            check_open_files(error)
            raise RunError(f"data.cache_dir: cannot write to {self.folder}: {error.strerror or error}") from None

    def _fetch_locked(self, name: str, copy: Path, size: int | None, sha256: str | None) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._clean_up()
        with locked_file(copy.with_name(f".{copy.name}.lock")):
            if sha256 is not None and is_complete(copy, size):
                return copy
            own = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
            with locked_file(copy.with_name(f".{copy.name}.{own}.part")) as part:
                part.truncate(size or 0)  # counts in full in the cache from now on
                self._make_room()
                self._download(name, part, size)
                part.seek(0)
                if sha256 is not None and hashlib.file_digest(part, "sha256").hexdigest() != sha256:
                    raise CorruptDataError(f"{self.address}/{name}: the sha256 does not match the manifest")
                os.fsync(part.fileno())
                if sha256 is None or not is_complete(copy, size):  # another node may have been faster, and reads it
                    os.replace(part.name, copy)
        return copy

    def _clean_up(self) -> None:
        """Remove, once, what killed downloads left."""
        if not self.is_clean:
            self.is_clean = True
            for path in self.folder.iterdir():
                if UNFINISHED.fullmatch(path.name):
                    remove_unused(path)

    def _download(self, name: str, part: BinaryIO, size: int | None) -> None:
        """Write the file to `part`, from the last byte received on after each failure."""
        import obstore
        from obstore.exceptions import BaseError

        url = f"{self.address}/{name}"
        received = 0
        most = 0  # that was received before a failure
        last_byte = time.monotonic()
        pause = FIRST_PAUSE
        while True:
            try:
                result = obstore.get(self.store, name, options={"range": {"offset": received}} if received else {})
                if size not in (None, result.meta["size"]):
                    raise CorruptDataError(f"{url}: {result.meta['size']} bytes on the server, {size} in the manifest")
                for chunk in result.stream(min_chunk_size=1):  # as received: a cut loses what waits for a chunk's end
                    received += part.write(chunk)
                    if self._interrupted_within(0):
                        raise RunError(f"{url}: interrupted")
                return
            except (BaseError, FileNotFoundError, ValueError) as error:
                permanent, cause = explain(error)
            if received and "Range request not supported" in cause:
                received = part.seek(0)
                part.truncate(size or 0)
                permanent = False
            if permanent:
                kind = UsageError if name == "manifest.json" else UnavailableError
                raise kind(f"{url}: {cause}")
            if received > most:
                most = received
                last_byte = time.monotonic()
                pause = FIRST_PAUSE
            if time.monotonic() - last_byte + pause > self.timeout:
                raise RunError(f"{url}: gave up after {self.timeout:.0f} s without a byte: {cause}")
            if self._interrupted_within(pause * random.uniform(0.5, 1.5)):
                raise RunError(f"{url}: interrupted")
            pause = min(2 * pause, 15.0)

    def _interrupted_within(self, seconds: float) -> bool:
        """Wait so long; returns earlier if downloads are to end, and whether they are."""
        deadline = time.monotonic() + seconds
        while not (EXITING.is_set() or self.stopping.is_set()):
            if (left := deadline - time.monotonic()) <= 0:
                return False
            EXITING.wait(min(left, 0.1))
        return True

    def _make_room(self) -> None:
        """Remove the least recently used shards, and parts of killed downloads, until the cache keeps its limit."""
        if not self.cache_bytes:
            return
        paths = [path for path in self.folder.iterdir() if CACHED.fullmatch(path.name)]
        files = sorted((stat.st_mtime, stat.st_size, path) for path in paths if (stat := stat_of(path)))
        excess = sum(bytes for _, bytes, _ in files) - self.cache_bytes
        for _, bytes, path in files:
            if excess <= 0:
                break
            if remove_unused(path):
                excess -= bytes


def check_open_files(error: OSError) -> None:
    """Raises RunError if the process, or the machine, has no file descriptor left: no file is to blame."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        raise RunError(f"{error.strerror}; raise the limit of open files (`ulimit -n`)") from None


def is_complete(copy: Path, size: int | None) -> bool:
    stat = stat_of(copy)
    return stat is not None and (size is None or stat.st_size == size)


def remove_unused(path: Path) -> bool:
    """Remove a file, unless a process uses it or it is another user's; returns whether it is gone."""
    try:
        with open(path, "r+b") as file:
            has_lock = lock_file(file.fileno(), wait=False)
            if may_be_written(path, has_lock):
                return False
            if is_at(path, file.fileno()):
                path.unlink()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def may_be_written(path: Path, has_lock: bool) -> bool:
    """Whether a download may go on that writes this file, which this process has locked, if `has_lock`.

    A lock tells only of the processes of this node. Of others, only how long ago they wrote is known.
    """
    name = UNFINISHED.fullmatch(path.name)
    if name is None or name["host"] is None or (has_lock and name["host"] == socket.gethostname()):
        return False
    return time.time() - path.stat().st_mtime < SILENT_SECONDS
