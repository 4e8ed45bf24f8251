"""Remote shards: complete files, downloaded in this process into a cache folder and named by their sha256.

No shell and no external program: http(s) by the standard library, s3 by boto3 (pip install 'distgan[s3]').
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import random
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from distgan import CorruptDataError, RunError, UsageError
from distgan.data.shardset import LocalStorage, Storage

CHUNK = 1 << 18


class Response(NamedTuple):
    """A download in progress."""

    start: int
    """Position in the file of the first byte of the body; 0 if the server ignores ranges."""
    read: Callable[[int], bytes]
    length: int | None
    """Bytes of the body, if the server says."""


class PermanentError(Exception):
    """A retry cannot help: not found, forbidden, bad credentials."""


class TransientError(Exception):
    """A retry may help: a busy server, a dropped connection, a timeout."""


def open_storage(address: str, cache_dir: str | None = None, cache_gb: float = 0.0) -> Storage:
    """A folder, or the server of an http(s):// or s3:// address. Raises UsageError."""
    scheme = address.split("://")[0] if "://" in address else ""
    if not scheme:
        return LocalStorage(Path(address))
    if scheme not in ("http", "https", "s3"):
        raise UsageError(f"data.shards: unknown scheme in {address}; use a folder, http://, https:// or s3://")
    try:
        parts = urllib.parse.urlsplit(address)
        has_host = bool(parts.hostname) and parts.port != 0  # a port that is not a number raises
    except ValueError:
        has_host = False
    if not has_host:
        raise UsageError(f"data.shards: no host or bucket in {address}")
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
        self.open = S3(address) if address.startswith("s3://") else http_open

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
            url = f"{self.address}/{urllib.parse.quote(name)}"
            self._download(url, part, size)
            if sha256 is not None:
                part.seek(0)
                found = hashlib.file_digest(part, "sha256").hexdigest()
                if found != sha256:
                    part.truncate(0)
                    raise CorruptDataError(f"{url}: the sha256 does not match the manifest")
                self._evict(part.tell())
            part.flush()
            os.fsync(part.fileno())
            os.replace(part.name, copy)
        return copy

    def _download(self, url: str, part: BinaryIO, size: int | None) -> None:
        last_byte, pause = time.monotonic(), 0.2
        while True:
            received = part.seek(0, os.SEEK_END)
            try:
                with self.open(url, received) as response:
                    if response.length is not None and size not in (None, response.start + response.length):
                        raise CorruptDataError(
                            f"{url}: {response.start + response.length} bytes on the server, {size} in the manifest"
                        )
                    part.seek(response.start)
                    part.truncate()
                    copy_body(response, part)
                if size is not None and part.tell() != size:
                    raise TransientError(f"received {part.tell()} of {size} bytes")
                return
            except PermanentError as error:
                kind = UsageError if url.endswith("/manifest.json") else RunError
                raise kind(f"{url}: {error}") from None
            except TransientError as error:
                if part.seek(0, os.SEEK_END) > received:
                    last_byte, pause = time.monotonic(), 0.2
                if time.monotonic() - last_byte + pause > self.timeout:
                    raise RunError(f"{url}: gave up after {self.timeout:.0f} s without a byte: {error}") from None
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
        file = open(path, "a+b")
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


def copy_body(response: Response, part: BinaryIO) -> None:
    """Append the body to `part`. Raises TransientError if it ends early; what was received is kept."""
    left = response.length
    while left is None or left:
        try:
            data = response.read(CHUNK if left is None else min(CHUNK, left))
        except http.client.IncompleteRead as error:
            part.write(error.partial)
            raise TransientError("connection closed early") from None
        except (OSError, http.client.HTTPException) as error:
            raise TransientError(f"connection failed: {error!r}") from None
        if not data:
            if left:
                raise TransientError(f"connection closed {left} bytes before the end")
            return
        part.write(data)
        left = None if left is None else left - len(data)


@contextlib.contextmanager
def http_open(url: str, start: int) -> Iterator[Response]:
    """The bytes of `url` from `start` on. Raises PermanentError or TransientError."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        reply = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # range not satisfiable: the file is shorter than the manifest says
                raise PermanentError(f"has no byte {start}") from None
            if error.code in (408, 425, 429) or error.code >= 500:
                raise TransientError(f"HTTP {error.code}") from None
            raise PermanentError(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise PermanentError(str(error.reason)) from None
        raise TransientError(str(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise TransientError(repr(error)) from None
    with reply:
        length = reply.headers.get("Content-Length")
        yield Response(start if reply.status == 206 else 0, reply.read1, int(length) if length else None)


class S3:
    """Opens s3://BUCKET/KEY with boto3: credentials and AWS_ENDPOINT_URL as for any AWS tool."""

    def __init__(self, address: str) -> None:
        try:
            import boto3
            import botocore.config
            import botocore.exceptions
        except ImportError:
            raise UsageError(f"{address}: boto3 is not installed; pip install 'distgan[s3]'") from None
        self.errors = botocore.exceptions
        config = botocore.config.Config(
            connect_timeout=10,
            read_timeout=30,
            retries={"total_max_attempts": 1},
            response_checksum_validation="when_required",
        )
        try:
            self.client = boto3.Session().client("s3", config=config)
        except (botocore.exceptions.BotoCoreError, ValueError) as error:
            raise UsageError(f"{address}: {error}") from None

    @contextlib.contextmanager
    def __call__(self, url: str, start: int) -> Iterator[Response]:
        """The bytes of `url` from `start` on. Raises PermanentError or TransientError."""
        parts = urllib.parse.urlsplit(url)
        key = urllib.parse.unquote(parts.path.lstrip("/"))
        try:
            extra = {"Range": f"bytes={start}-"} if start else {}
            reply = self.client.get_object(Bucket=parts.netloc, Key=key, **extra)
        except self.errors.ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            details = error.response.get("Error", {})
            message = f"{details.get('Code', status)}: {details.get('Message')}"
            raise (TransientError if status >= 500 or status in (408, 429) else PermanentError)(message) from None
        except (self.errors.NoCredentialsError, self.errors.ParamValidationError) as error:
            raise PermanentError(" ".join(str(error).split())) from None
        except (self.errors.BotoCoreError, OSError) as error:
            raise TransientError(str(error)) from None

        def read(size: int) -> bytes:
            try:
                return reply["Body"].read(size)
            except (self.errors.BotoCoreError, self.errors.HTTPClientError) as error:
                raise OSError(str(error)) from None

        with contextlib.closing(reply["Body"]):
            yield Response(start if "ContentRange" in reply else 0, read, reply["ContentLength"])
