"""Remote shards: complete files, downloaded in this process into a cache folder and named by their sha256.

No shell and no external program: obstore transfers the bytes.
"""

import contextlib
import fcntl
import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from distgan import CorruptDataError, RunError, UsageError
from distgan.data.objectstore import check_address, explain, open_store
from distgan.data.shardset import LocalStorage, Storage


def open_storage(address: str, cache_dir: str | None = None, cache_gb: float = 0.0) -> Storage:
    """A folder, or the server of an http(s)://, s3://, gs:// or az:// address. Raises UsageError."""
    if "://" not in address:
        return LocalStorage(Path(address))
    check_address(address)
    folder = Path(cache_dir) if cache_dir else Path.home() / ".cache" / "distgan" / "shards"
    return RemoteStorage(address.rstrip("/"), folder, cache_gb)


class RemoteStorage:
    """A dataset on a server. One process per node downloads a file; the others wait for it and share the copy.

    A failed download is resumed with exponential backoff and jitter until `timeout` seconds pass without a new byte. A
    copy gets its name only if length and sha256 match the manifest. With `cache_gb`, the least recently used shards
    are evicted.
    """

    def __init__(self, address: str, folder: Path, cache_gb: float = 0.0, timeout: float = 120.0) -> None:
        self.address, self.folder, self.cache_bytes, self.timeout = address, folder, int(cache_gb * 1e9), timeout
        self.store = open_store(address)

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
            raise RunError(f"data.cache_dir: cannot write to {self.folder}: {error.strerror or error}") from None

    def _fetch_locked(self, name: str, copy: Path, size: int | None, sha256: str | None) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked_file(copy.with_name(f".{copy.name}.part")) as part:
            if sha256 is not None and is_complete(copy, size):
                return copy
            part.truncate(0)  # left by a killed process, perhaps not synced to disk
            url = f"{self.address}/{name}"
            self._download(url, name, part, size)
            if sha256 is not None:
                part.seek(0)
                found = hashlib.file_digest(part, "sha256").hexdigest()
                if found != sha256:
                    part.truncate(0)
                    raise CorruptDataError(f"{url}: the sha256 does not match the manifest")
                self._evict(part.tell())
            os.fsync(part.fileno())
            os.replace(part.name, copy)
        return copy

    def _download(self, url: str, name: str, part: BinaryIO, size: int | None) -> None:
        """Write the file to `part`, from the last byte received on after each failure."""
        import obstore
        from obstore.exceptions import BaseError

        received, most, last_byte, pause = 0, 0, time.monotonic(), 0.2
        while True:
            try:
                result = obstore.get(self.store, name, options={"range": {"offset": received}} if received else {})
                if size not in (None, result.meta["size"]):
                    raise CorruptDataError(f"{url}: {result.meta['size']} bytes on the server, {size} in the manifest")
                for chunk in result.stream(min_chunk_size=1):  # as received: a cut loses what waits for a chunk's end
                    received += part.write(chunk)
                return
            except (BaseError, FileNotFoundError, ValueError) as error:
                permanent, cause = explain(error)
            if received and "Range request not supported" in cause:
                received, permanent = part.seek(0), False
                part.truncate()
            if permanent:
                kind = UsageError if name == "manifest.json" else RunError
                raise kind(f"{url}: {cause}")
            if received > most:
                most, last_byte, pause = received, time.monotonic(), 0.2
            if time.monotonic() - last_byte + pause > self.timeout:
                raise RunError(f"{url}: gave up after {self.timeout:.0f} s without a byte: {cause}")
            time.sleep(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, 15.0)

    def _evict(self, size: int) -> None:
        """Remove the least recently used shards until `size` more bytes fit. A process that has one open can keep
        reading it."""
        if not self.cache_bytes:
            return
        copies = sorted(
            (stat.st_mtime, stat.st_size, path) for path in self.folder.glob("[!.]*.tar") if (stat := stat_of(path))
        )
        used = sum(bytes for _, bytes, _ in copies)
        for _, bytes, path in copies:
            if used + size <= self.cache_bytes:
                break
            path.unlink(missing_ok=True)
            used -= bytes


def stat_of(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def is_complete(copy: Path, size: int | None) -> bool:
    stat = stat_of(copy)
    return stat is not None and (size is None or stat.st_size == size)


@contextlib.contextmanager
def locked_file(path: Path) -> Iterator[Any]:
    """`path`, open for one thread of one process of this node at a time. The lock ends with the process."""
    while True:
        file = open(path, "r+b", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666))
        fcntl.flock(file, fcntl.LOCK_EX)
        stat = stat_of(path)
        if stat is not None and stat.st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # the previous holder has renamed it: this is the finished copy
    try:
        yield file
    finally:
        if (stat := stat_of(path)) is not None and stat.st_ino == os.fstat(file.fileno()).st_ino:
            path.unlink()
        file.close()
