"""Shards on a server: whole files, fetched in process, into a folder of copies named by their sha256.

No shell and no second program: http(s) by the standard library, s3 by boto3 (pip install 'distgan[s3]').
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


class Body(NamedTuple):
    """An answer under way."""

    start: int
    """The first byte it holds; 0 where the server ignores ranges."""
    read: Callable[[int], bytes]
    length: int | None
    """Bytes it promises."""


class Refused(Exception):
    """An answer that will not change: not found, forbidden, wrong secret."""


class Passing(Exception):
    """A fault that may pass: a busy server, a cut connection, a time-out."""


def open_storage(address: str, cache_dir: str | None = None, cache_gb: float = 0.0) -> Storage:
    """A folder, or the server that an http(s):// or s3:// address names. Raises UsageError."""
    scheme = address.split("://")[0] if "://" in address else ""
    if not scheme:
        return LocalStorage(Path(address))
    if scheme not in ("http", "https", "s3"):
        raise UsageError(f"data.shards: {address}: shards are read from folders, http://, https:// and s3://")
    try:
        parts = urllib.parse.urlsplit(address)
        named = bool(parts.hostname) and parts.port != 0  # a port that is no number raises
    except ValueError:
        named = False
    if not named:
        raise UsageError(f"data.shards: {address} names no server")
    folder = Path(cache_dir) if cache_dir else Path.home() / ".cache" / "distgan" / "shards"
    return RemoteStorage(address.rstrip("/"), folder, cache_gb)


class RemoteStorage:
    """A set on a server. One process of a node fetches a file, the others wait for it and share the copy.

    A fetch is retried with growing, jittered pauses, going on where it broke off, until `patience` seconds pass
    without a new byte. A copy takes its name only when length and sha256 are those of the manifest.
    """

    def __init__(self, address: str, folder: Path, cache_gb: float = 0.0, patience: float = 120.0) -> None:
        self.address, self.folder, self.cache_bytes, self.patience = address, folder, int(cache_gb * 1e9), patience
        self.open = S3(address) if address.startswith("s3://") else http_open

    def path(self, name: str, size: int | None = None, sha256: str | None = None) -> Path:
        suffix = Path(name).suffix
        if sha256 is None:  # the manifest names all others; nothing names it, so it is fetched each time
            name_hash = hashlib.sha256(f"{self.address}/{name}".encode()).hexdigest()
            return self._fetch(name, self.folder / f"{name_hash}{suffix}", None, None)
        copy = self.folder / f"{sha256}{suffix}"
        if not is_whole(copy, size):
            return self._fetch(name, copy, size, sha256)
        with contextlib.suppress(OSError):
            os.utime(copy)  # the clock of the cache: what was opened last stays longest
        return copy

    def names(self) -> set[str] | None:
        return None

    def _fetch(self, name: str, copy: Path, size: int | None, sha256: str | None) -> Path:
        try:
            return self._fetch_locked(name, copy, size, sha256)
        except OSError as error:
            raise RunError(f"data.cache_dir: {self.folder} cannot be written: {error.strerror or error}") from None

    def _fetch_locked(self, name: str, copy: Path, size: int | None, sha256: str | None) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(copy.with_name(f".{copy.name}.part")) as part:
            if sha256 is not None and is_whole(copy, size):
                return copy
            part.truncate(0)  # what a killed process left is not ours to trust
            url = f"{self.address}/{urllib.parse.quote(name)}"
            self._download(url, part, size)
            if sha256 is not None:
                part.seek(0)
                found = hashlib.file_digest(part, "sha256").hexdigest()
                if found != sha256:
                    part.truncate(0)
                    raise CorruptDataError(f"{url}: the sha256 is not the manifest's")
                self._make_room(part.tell())
            part.flush()
            os.fsync(part.fileno())
            os.replace(part.name, copy)
        return copy

    def _download(self, url: str, part: BinaryIO, size: int | None) -> None:
        last_byte, pause = time.monotonic(), 0.2
        while True:
            got = part.seek(0, os.SEEK_END)
            try:
                with self.open(url, got) as body:
                    if size is not None and body.length is not None and body.start + body.length != size:
                        raise CorruptDataError(
                            f"{url}: {body.start + body.length} bytes on the server, {size} in the manifest"
                        )
                    part.seek(body.start)
                    part.truncate()
                    copy_body(body, part)
                if size is not None and part.tell() != size:
                    raise Passing(f"{part.tell()} of {size} bytes came")
                return
            except Refused as error:
                kind = UsageError if url.endswith("/manifest.json") else RunError
                raise kind(f"{url}: {error}") from None
            except Passing as error:
                if part.seek(0, os.SEEK_END) > got:
                    last_byte, pause = time.monotonic(), 0.2
                if time.monotonic() - last_byte + pause > self.patience:
                    raise RunError(f"{url}: given up after {self.patience:.0f} s without a byte: {error}") from None
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, 15.0)

    def _make_room(self, size: int) -> None:
        """Remove the copies used longest ago until `size` more bytes fit. Readers keep what they have open."""
        if not self.cache_bytes:
            return
        copies = sorted(
            ((stat.st_mtime, stat.st_size, path) for path in self.folder.glob("[!.]*.tar") if (stat := stat_of(path))),
        )
        held = sum(bytes for _, bytes, _ in copies)
        for _, bytes, path in copies:
            if held + size <= self.cache_bytes:
                break
            path.unlink(missing_ok=True)
            held -= bytes


def stat_of(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def is_whole(copy: Path, size: int | None) -> bool:
    stat = stat_of(copy)
    return stat is not None and (size is None or stat.st_size == size)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[Any]:
    """`path`, opened for one process and thread of this node at a time; unlocked by the end of the process too."""
    while True:
        file = open(path, "a+b")  # noqa: SIM115 - handed on
        fcntl.flock(file, fcntl.LOCK_EX)
        stat = stat_of(path)
        if stat is not None and stat.st_ino == os.fstat(file.fileno()).st_ino:
            break
        file.close()  # the holder before renamed it: what is locked here is the finished copy
    try:
        yield file
    finally:
        if (stat := stat_of(path)) is not None and stat.st_ino == os.fstat(file.fileno()).st_ino:
            path.unlink()
        file.close()


def copy_body(body: Body, part: BinaryIO) -> None:
    left = body.length
    while left is None or left:
        try:
            data = body.read(CHUNK if left is None else min(CHUNK, left))
        except http.client.IncompleteRead as error:
            part.write(error.partial)
            raise Passing("the connection was cut") from None
        except (OSError, http.client.HTTPException) as error:
            raise Passing(f"the connection broke: {error!r}") from None
        if not data:
            if left:
                raise Passing(f"the connection was cut {left} bytes before the end")
            return
        part.write(data)
        left = None if left is None else left - len(data)


@contextlib.contextmanager
def http_open(url: str, start: int) -> Iterator[Body]:
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416:  # nothing after `start`: the file is shorter than the manifest says
                raise Refused(f"has no byte {start}") from None
            if error.code in (408, 425, 429) or error.code >= 500:
                raise Passing(f"HTTP {error.code}") from None
            raise Refused(f"HTTP {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise Refused(str(error.reason)) from None
        raise Passing(str(error.reason)) from None
    except (OSError, http.client.HTTPException) as error:
        raise Passing(repr(error)) from None
    with answer:
        length = answer.headers.get("Content-Length")
        yield Body(start if answer.status == 206 else 0, answer.read1, int(length) if length else None)


class S3:
    """Opens s3://BUCKET/KEY with boto3: credentials and AWS_ENDPOINT_URL from where every AWS tool takes them."""

    def __init__(self, address: str) -> None:
        try:
            import boto3
            import botocore.config
            import botocore.exceptions
        except ImportError:
            raise UsageError(f"{address}: s3 needs boto3, which is not installed; pip install 'distgan[s3]'") from None
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
    def __call__(self, url: str, start: int) -> Iterator[Body]:
        parts = urllib.parse.urlsplit(url)
        key = urllib.parse.unquote(parts.path.lstrip("/"))
        try:
            extra = {"Range": f"bytes={start}-"} if start else {}
            answer = self.client.get_object(Bucket=parts.netloc, Key=key, **extra)
        except self.errors.ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            about = error.response.get("Error", {})
            text = f"{about.get('Code', status)}: {about.get('Message')}"
            raise (Passing if status >= 500 or status in (408, 429) else Refused)(text) from None
        except (self.errors.NoCredentialsError, self.errors.ParamValidationError) as error:
            raise Refused(" ".join(str(error).split())) from None
        except (self.errors.BotoCoreError, OSError) as error:
            raise Passing(str(error)) from None

        def read(size: int) -> bytes:
            try:
                return answer["Body"].read(size)
            except (self.errors.BotoCoreError, self.errors.HTTPClientError) as error:
                raise OSError(str(error)) from None

        with contextlib.closing(answer["Body"]):
            yield Body(start if "ContentRange" in answer else 0, read, answer["ContentLength"])
