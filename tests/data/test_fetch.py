"""Shards fetched ahead from a web server: the images of the disk, several shards at once, within the cache's limit."""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from distgan.commands import evaluate
from distgan.data.dataset import open_dataset
from distgan.data.order import Lanes
from distgan.data.remote import ahead
from distgan.data.remote import cache as cache_module
from distgan.data.remote.ahead import check_cache
from distgan.data.remote.cache import open_storage
from distgan.data.shardset import LocalStorage, ShardSet, open_shardset
from distgan.data.stream import Reader, Stream, images_in_flight
from distgan.dataset_tool import check
from distgan.errors import CorruptDataError, RunError
from distgan.locks import stat_of
from distgan.training.finite import FiniteCheck
from helpers import ROOT, TINY, fill, launch_env, make_dataset, metrics, noise, train, weights

SHARDS = 6


class SlowServer(ThreadingHTTPServer):
    """Serves a dataset; waits `seconds` before each shard, and knows which it was asked for, and how many at once.

    The shards in `stalled` do not come before `released` is set.
    """

    daemon_threads = True

    def __init__(self, folder: Path, seconds: float = 0.0) -> None:
        self.folder, self.seconds, self.requests = folder, seconds, []
        self.stalled: set[str] = set()
        self.released = threading.Event()
        self.lock, self.active, self.most_active = threading.Lock(), 0, 0
        super().__init__(("127.0.0.1", 0), SlowHandler)
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class SlowHandler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server, name = self.server, self.path[1:]
        assert isinstance(server, SlowServer)
        if name.endswith(".tar"):
            with server.lock:
                server.requests.append(name)
                server.active += 1
                server.most_active = max(server.most_active, server.active)
            time.sleep(server.seconds)
            if name in server.stalled:
                server.released.wait(60)
        exists = (server.folder / name).exists()
        data = (server.folder / name).read_bytes() if exists else b""
        if name.endswith(".tar"):
            with server.lock:
                server.active -= 1
        self.send_response(200 if exists else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """6 shards of about 1,100 images."""
    return make_dataset(tmp_path_factory.mktemp("fetched") / "set", noise(1100 * SHARDS), shards=SHARDS)


@pytest.fixture
def serve() -> Iterator[Callable[..., SlowServer]]:
    servers = []

    def start(folder: Path, seconds: float = 0.0) -> SlowServer:
        servers.append(SlowServer(folder, seconds))
        threading.Thread(target=servers[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


def open_set(address: str | Path, cache: Path, **keys: Any) -> ShardSet:
    return open_shardset(open_storage(str(address), str(cache), **keys), str(address))


def minibatches(
    dataset: ShardSet, *, lanes: int, batch: int, threads: int = 2, stop: int | None = None
) -> contextlib.closing[Stream]:
    order = Lanes(dataset.counts, 0, lanes)
    reader = Reader(dataset)
    batches = Stream(order, reader, lambda at: {}, batch=batch, position=0, threads=threads, stop=stop)
    return contextlib.closing(batches)


def images(dataset: ShardSet, count: int, **keys: int) -> list[bytes]:
    """The images of the first `count` minibatches."""
    with minibatches(dataset, **keys) as batches:
        return [next(batches).images.tobytes() for _ in range(count)]


def disk_use(cache: Path) -> int:
    """Bytes of shards and of parts of them on the disk, less what its blocks round up; at one moment.

    Files come and go meanwhile: it is read again until the names before and after are the same.
    """
    while True:
        before = sorted(path for path in cache.iterdir() if ".tar" in path.name)
        stats = [stat for path in before if (stat := stat_of(path))]
        if before == sorted(path for path in cache.iterdir() if ".tar" in path.name):
            return sum(min(stat.st_size, stat.st_blocks * 512) for stat in stats)


def test_an_evaluation_uses_the_cache_of_its_run(shards, serve, tmp_path):
    """As a run's config.yaml names it; without a run, the default folder."""
    (tmp_path / "config.yaml").write_text(f"data: {{shards: a, cache_dir: {tmp_path}/cache, cache_gb: 0.5}}\n")
    storage = open_dataset(serve(shards).address, evaluate.data_config(tmp_path)).storage
    assert isinstance(storage, cache_module.RemoteStorage) and storage.cache_bytes == 5e8
    assert storage.folder == tmp_path / "cache" and len(list(storage.folder.glob("*.json"))) == 1
    assert evaluate.data_config(None) == evaluate.data_config(tmp_path / "cache") == {}


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_first_images_wait_for_all_of_their_shards_at_once(serve, shards, tmp_path):
    server = serve(shards, seconds=0.5)
    start = time.monotonic()
    dataset = open_set(server.address, tmp_path / "cache")
    assert images(dataset, 1, lanes=6, batch=60) == images(open_set(shards, tmp_path), 1, lanes=6, batch=60)
    assert time.monotonic() - start < 0.5 * SHARDS / 2 and server.most_active > 3


def test_shards_are_fetched_before_they_are_needed_and_no_others(serve, shards, tmp_path):
    server = serve(shards)
    dataset = open_set(server.address, tmp_path / "cache", fetch_ahead=2, fetch_threads=1)
    with minibatches(dataset, lanes=1, batch=10) as batches:
        next(batches)
        wait_until(lambda: len(server.requests) >= 3)
        time.sleep(0.2)
        needs = itertools.islice(Lanes(dataset.counts, 0, 1).needs(0), 8)
        expected = list(dict.fromkeys(dataset.manifest.shards[shard].name for _, _, shard in needs))
        assert server.requests == expected[: len(server.requests)] and 3 <= len(server.requests) <= 4
        before = len(server.requests)
        for _ in range(110):
            next(batches)
        wait_until(lambda: len(server.requests) > before)


def test_shards_after_the_end_of_the_run_are_not_fetched(serve, shards, tmp_path):
    server = serve(shards)
    dataset = open_set(server.address, tmp_path / "cache", fetch_ahead=8)
    with minibatches(dataset, lanes=1, batch=10, stop=1024) as batches:
        next(batches)
        time.sleep(0.3)
        assert 1 <= len(server.requests) <= 2


def stall_after(server: SlowServer, stop: int) -> None:
    """Stall the shards that one lane needs only from `stop` on."""
    dataset = open_shardset(LocalStorage(server.folder), "")
    needs = itertools.takewhile(lambda need: need[0] < stop, Lanes(dataset.counts, 0, 1).needs(0))
    server.stalled = {row.name for row in dataset.manifest.shards}
    server.stalled -= {dataset.manifest.shards[shard].name for _, _, shard in needs}


def test_stream_ends_at_its_stop_and_reads_nothing_after_it(serve, shards, tmp_path):
    server, start = serve(shards), time.monotonic()
    stall_after(server, 1024)
    with minibatches(open_set(server.address, tmp_path / "cache"), lanes=1, batch=10, stop=1015) as batches:
        assert len(list(batches)) == 102 and time.monotonic() - start < 10


@pytest.mark.parametrize("threads", [0, 1])
def test_closed_stream_waits_for_no_download_and_its_reader_serves_another(serve, shards, tmp_path, threads):
    server = serve(shards)
    stall_after(server, 1024)
    dataset = open_set(server.address, tmp_path / "cache")
    order, reader = Lanes(dataset.counts, 0, 1), Reader(dataset)
    batches = Stream(order, reader, lambda at: {}, batch=10, position=0, threads=threads)
    for _ in range(101):  # what is read ahead is beyond 1024
        next(batches)
    wait_until(lambda: server.stalled & set(server.requests))
    start = time.monotonic()
    reader.close()
    assert next(batches, None) is None and time.monotonic() - start < 10
    server.released.set()
    again = Stream(order, reader, lambda at: {}, batch=10, position=500, threads=threads, stop=1500)
    local = Reader(open_set(shards, tmp_path))
    for at, batch in zip(range(500, 1500, 10), again, strict=True):
        assert batch.images.tobytes() == local.read(order.ids(at, 10)).images.tobytes()


@pytest.mark.parametrize("threads", [0, 1])
def test_a_reader_serves_one_stream_at_a_time(shards, tmp_path, threads):
    dataset, before = open_set(shards, tmp_path), set(threading.enumerate())
    order, reader = Lanes(dataset.counts, 0, 1), Reader(dataset)
    keys = {"batch": 10, "threads": threads}
    first = Stream(order, reader, lambda at: {}, position=0, **keys)
    next(first)
    second = Stream(order, reader, lambda at: {}, position=50, **keys)
    assert next(first, None) is None
    first.close()  # once more: it is not the reader's stream any longer
    assert next(second).images.tobytes() == reader.read(order.ids(50, 10)).images.tobytes()
    reader.close()
    assert next(second, None) is None and set(threading.enumerate()) <= before


@pytest.mark.parametrize("words", [[], ["--loss", "rpgan", "--n_critic", 3]], ids=["", "paired"])
def test_run_does_not_wait_for_shards_after_its_end(serve, shards, tmp_path, words):
    server, start = serve(shards), time.monotonic()
    stall_after(server, 1024)
    words = ["--data.shards", server.address, "--data.lanes", 1, "--images", 1000, *TINY, *words]
    assert train(*words, "--data.cache_dir", tmp_path / "cache", "--run_dir", tmp_path / "run") == 0
    assert time.monotonic() - start < 30


def test_failed_run_does_not_wait_for_a_stalled_server(serve, shards, tmp_path, monkeypatch, capsys):
    server = serve(shards)
    stall_after(server, 1024)
    failed = []
    before = set(threading.enumerate())

    def fail_while_it_stalls(check: FiniteCheck, norms: Any, scalars: Any, images: int) -> None:
        if images == 1008:
            wait_until(lambda: server.stalled & set(server.requests))
            failed.append(time.monotonic())
            raise CorruptDataError("failed")

    monkeypatch.setattr(FiniteCheck, "record", fail_while_it_stalls)
    words = ["--data.shards", server.address, "--data.lanes", 1, "--images", 6000, *TINY]
    assert train(*words, "--data.cache_dir", tmp_path / "cache", "--run_dir", tmp_path / "run") == 1
    assert time.monotonic() - failed[0] < 10 and "failed" in capsys.readouterr().err
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("distgan-read")]  # exit joins them


def test_order_with_a_cache_of_three_shards_is_that_of_the_disk(serve, shards, tmp_path):
    server, cache = serve(shards), tmp_path / "cache"
    size = max(row.bytes for row in open_set(shards, cache).manifest.shards)
    dataset = open_set(server.address, cache, cache_gb=3 * size / 1e9)
    check_cache(dataset, Lanes(dataset.counts, 0, 1), images_in_flight(1, threads=0))
    remote = minibatches(dataset, lanes=1, batch=1, threads=0)
    with remote as batches, minibatches(open_set(shards, cache), lanes=1, batch=1, threads=0) as local:
        for index in range(dataset.counts.sum()):
            assert next(batches).images.tobytes() == next(local).images.tobytes()
            if index % 50 == 0:
                assert disk_use(cache) <= 3 * size
    assert {server.requests.count(name) for name in server.requests} <= {1, 2}
    assert len(server.requests) <= SHARDS + 1 + 3  # the epoch begins and ends in one; up to 3 of the next epoch


def test_cache_too_small_for_the_lanes_is_refused_with_the_number_that_would_do(serve, shards, tmp_path, capsys):
    server, cache = serve(shards), tmp_path / "cache"
    words = ["--data.shards", server.address, "--data.cache_dir", cache, "--run_dir", tmp_path / "run", *TINY]
    words += ["--data.lanes", "2", "--images", "1600", "--report.digests", "true"]
    assert train(*words, "--data.cache_gb", "0.003") == 2
    error = capsys.readouterr().err
    assert "data.cache_gb: 0.003 is too small: the 2 lanes of this node" in error and not (tmp_path / "run").exists()
    enough = error.split("set it to ")[1].split(",")[0]
    assert train(*words, "--data.cache_gb", enough) == 0 and disk_use(cache) <= 1e9 * float(enough)
    digests = [row["digest"] for row in metrics(tmp_path / "run")]
    assert train(*words, "--data.shards", shards, "--fresh") == 0
    assert digests == [row["digest"] for row in metrics(tmp_path / "run")]


READ_AN_EPOCH = """
import sys
from test_fetch import open_set, read_an_epoch
address, cache, cache_gb, seed, rank, world = sys.argv[1:]
print(read_an_epoch(open_set(address, cache, cache_gb=float(cache_gb)), int(seed), int(rank), int(world)))
"""


def read_an_epoch(dataset: ShardSet, seed: int = 0, rank: int = 0, world: int = 1) -> str:
    """Hash of the images of an epoch in two lanes."""
    order = Lanes(dataset.counts, seed, 2, 2 * rank // world, 2 * (rank + 1) // world)
    batches = Stream(order, Reader(dataset), lambda at: {}, batch=20, position=0, threads=1, stop=order.epoch_images)
    digest = hashlib.sha256()
    for _ in range(order.epoch_images // 20):
        digest.update(next(batches).images.tobytes())
    return digest.hexdigest()


def start_reading(address: str, cache: Path, *, cache_gb=0.0, seed=0, rank=0, world=1) -> subprocess.Popen:
    """Another process that prints `read_an_epoch`."""
    words = [str(word) for word in (address, cache, cache_gb, seed, rank, world)]
    places = f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests/data'}"
    env = launch_env(PYTHONPATH=places, LOCAL_WORLD_SIZE=str(world), LOCAL_RANK=str(rank), RANK=str(rank))
    return subprocess.Popen([sys.executable, "-c", READ_AN_EPOCH, *words], stdout=subprocess.PIPE, text=True, env=env)


def outputs(processes: list[subprocess.Popen]) -> list[str]:
    texts = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return texts


def test_processes_of_a_node_fetch_each_shard_once(serve, shards, tmp_path):
    server, local = serve(shards, seconds=0.05), open_set(shards, tmp_path)
    remote = [start_reading(server.address, tmp_path / "cache", rank=rank, world=2) for rank in range(2)]
    assert outputs(remote) == [read_an_epoch(local, rank=rank, world=2) for rank in range(2)]
    assert sorted(server.requests) == sorted(path.name for path in shards.glob("*.tar"))


@pytest.mark.slow
def test_two_runs_on_one_small_cache_read_what_is_on_disk(serve, shards, tmp_path):
    """Each evicts what the other does not read; one was killed while it fetched."""
    server, cache, local = serve(shards, seconds=0.05), tmp_path / "cache", open_set(shards, tmp_path)
    killed = start_reading(server.address, cache, cache_gb=0.02)
    wait_until(lambda: cache.exists() and len(list(cache.glob(".*.tar.*.part"))) > 1)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    remote = [start_reading(server.address, cache, cache_gb=0.02, seed=seed) for seed in range(2)]
    assert outputs(remote) == [read_an_epoch(local, seed=seed) for seed in range(2)]


def test_shard_that_is_read_is_not_evicted(serve, shards, tmp_path):
    server, cache = serve(shards), tmp_path / "cache"
    first, second = (open_set(server.address, cache, cache_gb=0.003) for _ in range(2))
    reader = Reader(first)
    reader.read(np.arange(3))
    name = Path(first.shard_path(0)).name
    Reader(second).read(np.arange(2000, 2003))
    assert (cache / name).exists()
    del reader
    for id in (3000, 4000, 5000):
        Reader(second).read(np.arange(id, id + 3))
    assert not (cache / name).exists()


def test_reader_raises_the_limit_of_open_files(shards, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
        Reader(open_set(shards, tmp_path))
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("remote", [True, False])
def test_too_many_open_files_are_no_corrupt_images(serve, shards, tmp_path, monkeypatch, remote, cached):
    dataset = open_set(serve(shards).address if remote else shards, tmp_path / "cache")
    if cached:
        dataset.shard_path(0)
    reader = Reader(dataset, skip_bad=5)

    def no_descriptor(path: Any, *args: Any, **keys: Any) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    with monkeypatch.context() as patch, pytest.raises(RunError, match="Too many open files; .*`ulimit -n`") as raised:
        patch.setattr(os, "open", no_descriptor)
        reader.read(np.arange(3))
    assert not isinstance(raised.value, CorruptDataError)


def test_only_shards_of_the_cache_are_evicted(serve, shards, tmp_path):
    server, cache = serve(shards), tmp_path / "cache"
    cache.mkdir()
    own = [cache / name for name in ("imagenet.tar.gz", "set.tar", f"{'0' * 64}.tar.txt")]
    for path in own:
        path.write_bytes(bytes(3_000_000))
    reader = Reader(open_set(server.address, cache, cache_gb=0.003))
    for id in (0, 2000, 4000):
        reader.read(np.arange(id, id + 3))
    assert all(path.exists() for path in own) and len(list(cache.glob("?" * 64 + ".tar"))) == 1


@pytest.mark.parametrize("cause", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_cache_on_a_file_system_without_locks(serve, shards, tmp_path, monkeypatch, cause):
    """Two runs at once, each with a cache of three shards in the same folder."""

    def no_locks(file: Any, kind: int) -> None:
        raise OSError(cause, os.strerror(cause))

    server, cache, local = serve(shards), tmp_path / "cache", open_set(shards, tmp_path)
    monkeypatch.setattr(fcntl, "flock", no_locks)
    digests: dict[int, str] = {}

    def read(seed: int) -> None:
        digests[seed] = read_an_epoch(open_set(server.address, cache, cache_gb=0.012), seed)

    threads = [threading.Thread(target=read, args=[seed]) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == {seed: read_an_epoch(local, seed) for seed in range(2)}


def test_nodes_whose_locks_hold_on_one_node_only_share_a_cache(serve, shards, tmp_path, monkeypatch):
    """Both download the same shard at once."""
    server, cache, paths = serve(shards), tmp_path / "cache", []
    datasets = [open_set(server.address, cache) for _ in range(2)]
    row = datasets[0].manifest.shards[0]
    server.stalled = {row.name}
    monkeypatch.setattr(fcntl, "flock", lambda file, kind: None)
    threads = [threading.Thread(target=lambda own=own: paths.append(own.shard_path(0))) for own in datasets]
    for thread in threads:
        thread.start()
    wait_until(lambda: server.requests == [row.name] * 2)
    server.released.set()
    for thread in threads:
        thread.join()
    assert paths == [cache / f"{row.sha256}.tar"] * 2
    assert hashlib.sha256(paths[0].read_bytes()).hexdigest() == row.sha256
    assert not list(cache.glob(".*"))


def test_only_unfinished_downloads_of_ended_processes_are_removed(serve, shards, tmp_path):
    cache, host = tmp_path / "cache", socket.gethostname()
    cache.mkdir()
    ended, running, far, far_ended, lock, users = paths = [
        cache / name
        for name in (
            f".{'0' * 64}.tar.{host}-1-0a.part",
            f".{'0' * 64}.tar.{host}-2-0a.part",
            f".{'0' * 64}.tar.not-{host}-1-0a.part",
            f".{'0' * 64}.tar.not-{host}-2-0a.part",
            f".{'0' * 64}.tar.lock",
            ".movie.part",
        )
    ]
    for path in paths:
        path.write_bytes(b"begun")
    for path in (ended, running, far_ended, users):
        os.utime(path, (0, 0))
    with running.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        open_set(serve(shards).address, cache)
        assert [path for path in paths if path.exists()] == [running, far, users]
        assert {path for path in cache.iterdir() if path.name.startswith(".")} == {running, far, users}


def test_shards_and_locks_of_another_user_are_used_and_not_evicted(serve, shards, tmp_path, monkeypatch):
    """They cannot be opened for writing."""
    server, cache = serve(shards), tmp_path / "cache"
    other = open_set(server.address, cache).shard_path(0)
    dataset = open_set(server.address, cache, cache_gb=0.003)
    lock = cache / f".{dataset.manifest.shards[2].sha256}.tar.lock"
    lock.touch()

    def refuse(path: Any) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def open_fd(path: Any, flags: int, *args: Any, opened: Callable = os.open, **keys: Any) -> int:
        return refuse(path) if path == str(lock) and flags & os.O_RDWR else opened(path, flags, *args, **keys)

    def open_file(path: Any, mode: str, **keys: Any) -> Any:
        return refuse(path) if path == other and mode == "r+b" else open(path, mode, **keys)

    monkeypatch.setattr(os, "open", open_fd)
    monkeypatch.setattr(cache_module, "open", open_file, raising=False)
    reader = Reader(dataset)
    for id in (1100, 2300, 0):
        reader.read(np.arange(id, id + 3))
    assert other.exists() and server.requests.count(dataset.manifest.shards[0].name) == 1


def test_verify_lists_every_file_that_the_server_lacks(serve, tiny, tmp_path):
    folder = Path(shutil.copytree(tiny, tmp_path / "set"))
    address = serve(folder).address
    dataset = open_set(address, tmp_path / "cache")
    names = [dataset.manifest.shards[shard].name for shard in (1, 4)]
    for name in names:
        (folder / name).unlink()
    data = bytearray((folder / dataset.manifest.shards[6].name).read_bytes())
    (folder / dataset.manifest.shards[6].name).write_bytes(data[:-1] + b"x")
    missing, also_missing, corrupt = check.verify(dataset)
    assert [missing, also_missing] == [f"{address}/{name}: HTTP 404 Not Found" for name in names]
    assert corrupt == f"{address}/{dataset.manifest.shards[6].name}: the sha256 does not match the manifest"


def test_progress_is_printed_until_the_first_shards_are_there(serve, shards, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(ahead, "REPORT_SECONDS", 0.0)
    dataset = open_set(serve(shards, seconds=0.1).address, tmp_path / "cache", fetch_threads=2)
    images(dataset, 1, lanes=6, batch=60)
    assert f"distgan: fetched 2 of the first {SHARDS} shards, " in capfd.readouterr().err


def test_waiting_for_data_is_in_the_metrics(serve, tiny, tmp_path):
    server = serve(tiny, seconds=0.4)
    for source, name in ((tiny, "disk"), (server.address, "http")):
        words = ["--data.shards", source, "--run_dir", tmp_path / name, *TINY, "--epochs", 1]
        assert train(*words, "--data.cache_dir", tmp_path / "cache", "--data.fetch_threads", 1) == 0
    assert weights(tmp_path / "http") == weights(tmp_path / "disk")
    waits = [sum(row["data_wait_seconds"] for row in metrics(tmp_path / name)) for name in ("disk", "http")]
    assert 0 < waits[0] < 0.4 and len(server.requests) == 8


def test_full_disk_is_one_line_and_loses_nothing(serve, tiny, small_disk, tmp_path, capsys):
    """A run whose cache is full ends; with more space, the same command gives the weights of a run from disk."""
    words = ["--data.shards", serve(tiny).address, "--data.cache_dir", small_disk / "cache", *TINY, "--epochs", 2]
    assert train(*words, "--run_dir", tmp_path / "run", "--epochs", 1) == 0
    for path in (small_disk / "cache").glob("*.tar"):
        path.unlink()
    filler = fill(small_disk)
    assert train(*words, "--run_dir", tmp_path / "run") == 1
    error = capsys.readouterr().err
    assert error == f"distgan: data.cache_dir: cannot write to {small_disk / 'cache'}: No space left on device\n"
    assert weights(tmp_path / "run")["images"] == 80
    filler.unlink()
    assert train(*words, "--run_dir", tmp_path / "run") == 0
    assert train(*words, "--run_dir", tmp_path / "disk", "--data.shards", tiny) == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "disk")


def test_local_datasets_do_not_import_obstore():
    code = "import sys, distgan.data.stream as s; assert 'obstore' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
