"""`shards make --part I/N` and `shards join`: the same bytes as a set made in one go, whatever happens to the parts."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from PIL import Image

from distgan.commands import shards
from distgan.dataset_tool import make, parts, workers
from distgan.dataset_tool.parts import DatasetWriter, read_plan
from distgan.dataset_tool.shard_info import ShardInfo
from distgan.locks import lock_file
from helpers import noise

OPTIONS = ["--format", "png", "--shard_mb", "0.075", "--skip_bad"]
LONG = 20
"""Seconds that a shard takes which nobody waits for."""


def command(*args: object) -> int:
    return shards.main([str(arg) for arg in args])


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Two class folders of 60 images, and a bad one in each."""
    folder = tmp_path_factory.mktemp("images")
    for i, image in enumerate(noise(120, 32)):
        path = folder / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    for name in "ab":
        (folder / name / "bad.png").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> dict[str, bytes]:
    """The files of a set made in one go."""
    folder = tmp_path_factory.mktemp("whole") / "dataset"
    assert command("make", images, folder, *OPTIONS, "--jobs", 1) == 0
    assert len(list(folder.glob("*.tar"))) == 6
    return files(folder)


def hold(monkeypatch: pytest.MonkeyPatch, shards: Mapping[int, Callable[[], object]]) -> None:
    """Have workers call this instead of completing these shards."""
    write_info = DatasetWriter.write_info

    def held(writer: DatasetWriter, shard: int, info: ShardInfo, columns: dict) -> None:
        shards.get(shard, lambda: write_info(writer, shard, info, columns))()

    monkeypatch.setattr(DatasetWriter, "write_info", held)


def is_free(dest: Path) -> bool:
    """Whether no process is left that writes to it."""
    fd = os.open(dest, os.O_RDONLY)
    try:
        return lock_file(fd, wait=False)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def full_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_ends_all_workers_at_once_and_is_resumed(images, whole, tmp_path, capsys, monkeypatch):
    dest = tmp_path / "dataset"
    with monkeypatch.context() as patched:
        hold(patched, {1: full_disk} | {shard: lambda: time.sleep(LONG) for shard in range(2, 6)})
        began = time.monotonic()
        assert command("make", images, dest, *OPTIONS, "--jobs", 2) == 1
        assert time.monotonic() - began < LONG and is_free(dest)
    assert capsys.readouterr().err == f"distgan: {dest}: No space left on device\n"
    assert command("make", images, dest, *OPTIONS, "--jobs", 2) == 0 and files(dest) == whole


@pytest.mark.signals
def test_ctrl_c_ends_all_workers_at_once_and_is_resumed(images, whole, tmp_path, capfd, monkeypatch):
    dest = tmp_path / "dataset"
    with monkeypatch.context() as patched:
        hold(patched, {shard: lambda: ((tmp_path / "reached").touch(), time.sleep(LONG)) for shard in range(1, 6)})

        def interrupted() -> None:
            os.setsid()  # a terminal interrupts all processes of the command
            os._exit(command("make", images, dest, *OPTIONS, "--jobs", 1))

        process = multiprocessing.get_context("fork").Process(target=interrupted)
        process.start()
        while process.is_alive() and not (tmp_path / "reached").exists():
            time.sleep(0.001)
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGINT)
        process.join(LONG)
    assert process.exitcode == 130 and is_free(dest) and capfd.readouterr().err == "distgan: interrupted\n"
    first = (dest / "shard-000000.tar").stat().st_mtime_ns
    plan = read_plan(dest)
    assert plan is not None
    writer = DatasetWriter(dest, plan)
    assert writer.is_written(0) and not writer.is_written(1)
    assert command("make", images, dest, *OPTIONS, "--jobs", 1) == 0 and files(dest) == whole
    assert (dest / "shard-000000.tar").stat().st_mtime_ns == first


@pytest.mark.signals
def test_ctrl_c_raises_nothing_where_a_lock_of_the_pool_may_be_taken():
    reached = []
    with pytest.raises(KeyboardInterrupt), workers.on_interrupt(lambda: reached.append("work")):
        signal.raise_signal(signal.SIGINT)
        reached.append("the rest")
    assert reached == ["work", "the rest"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def start(images: Path, dest: Path, part: str) -> BaseProcess:
    """A part in a process of its own, forked so that it imports nothing."""
    words = ["make", images, dest, *OPTIONS, "--jobs", 1, "--part", part]
    process = multiprocessing.get_context("fork").Process(target=lambda: os._exit(command(*words)))
    process.start()
    return process


def test_parts_in_any_order_are_joined_to_the_same_bytes(images, whole, tmp_path, capsys):
    for part in ("3/4", "1/4", "4/4"):
        assert command("make", images, tmp_path / "dataset", *OPTIONS, "--jobs", 1, "--part", part) == 0
    assert f"part 4/4 is written; when all are, `distgan shards join {tmp_path}/dataset`" in capsys.readouterr().out
    assert command("join", tmp_path / "dataset") == 2
    error = capsys.readouterr().err
    assert "2 of 6 shards are missing (shard-000001.tar, shard-000005.tar)" in error and error.count("\n") == 1
    assert command("make", images, tmp_path / "dataset", *OPTIONS, "--jobs", 1, "--part", "2/4") == 0
    assert command("join", tmp_path / "dataset") == 0 and files(tmp_path / "dataset") == whole
    assert "left out: 2" in capsys.readouterr().out
    for again in (["join"], ["make", images]):  # both find the complete dataset
        assert command(*again, tmp_path / "dataset", *(OPTIONS if len(again) > 1 else [])) == 0
    assert files(tmp_path / "dataset") == whole


def test_killed_parts_and_two_of_the_same_at_once_lose_nothing(images, whole, tmp_path):
    dest = tmp_path / "dataset"
    killed = start(images, dest, "1/2")
    while killed.is_alive() and not list(dest.glob(".shard-*.tmp")):
        time.sleep(0.001)
    killed.kill()
    running = [start(images, dest, part) for part in ("1/2", "2/2", "1/2", "2/2")]
    for process in (killed, *running):
        process.join()
    assert [process.exitcode for process in running] == [0] * 4
    assert killed.exitcode == -signal.SIGKILL and command("join", dest) == 0 and files(dest) == whole


def test_joining_waits_for_a_lock_that_is_about_to_end(images, whole, tmp_path):
    """As the workers of a killed part hold it, until they notice."""
    dest = tmp_path / "dataset"
    assert command("make", images, dest, *OPTIONS, "--jobs", 1, "--part", "1/1") == 0
    held = os.open(dest, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    ends = threading.Timer(0.3, os.close, [held])
    ends.start()
    assert command("join", dest) == 0 and files(dest) == whole
    ends.join()


@pytest.mark.parametrize("again", ["join", "make"])
def test_kill_while_cleaning_up_leaves_a_complete_dataset(folder_of_images, tmp_path, monkeypatch, again):
    for path in (folder_of_images / "a").iterdir():
        path.write_text("not an image")
    words = ["--size", 8, "--shard_mb", 0.002, "--skip_bad", "--jobs", 1]
    whole, dest = tmp_path / "whole", tmp_path / "killed"
    assert command("make", folder_of_images, whole, *words) == 0 and len(list(whole.glob("*.tar"))) == 5

    def killed() -> None:
        write_manifest = parts.write_manifest
        monkeypatch.setattr(parts, "write_manifest", lambda *args: (write_manifest(*args), os._exit(9)))
        command("make", folder_of_images, dest, *words)

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join()
    (dest / ".making" / "shard-000000.tar.npz").unlink()
    assert process.exitcode == 9 and len(list(dest.glob("*.tar"))) == 10 and (dest / ".making" / "plan.json").exists()
    assert command(*(["join", dest] if again == "join" else ["make", folder_of_images, dest, *words])) == 0
    assert files(dest) == files(whole)


def test_parts_of_another_source_are_refused(images, tmp_path, capsys):
    dest = tmp_path / "dataset"
    part = ["--jobs", 1, "--part"]
    assert command("make", images, dest, *OPTIONS, *part, "1/2") == 0
    assert command("make", images, dest, "--format", "npy", *OPTIONS[2:], *part, "2/2") == 2
    assert "of another source or other options" in capsys.readouterr().err
    assert command("make", images, tmp_path / "other", *OPTIONS, "--seed", 1, *part, "2/2") == 0
    for path in [*(tmp_path / "other").glob("*.tar"), *(tmp_path / "other" / ".making").glob("*.npz")]:
        shutil.copy(path, dest / path.relative_to(tmp_path / "other"))  # made elsewhere, and copied together
    assert command("join", dest) == 2
    assert "shard-000001.tar is of another source or other options" in capsys.readouterr().err
    os.truncate(dest / "shard-000000.tar", 1000)
    assert command("join", dest) == 2 and "shard-000000.tar is truncated" in capsys.readouterr().err


def test_join_waits_for_no_part_and_says_so(images, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(make, "LOCK_SECONDS", 0.1)
    assert command("join", tmp_path / "nowhere") == 2 and not (tmp_path / "nowhere").exists()
    assert "there is nothing to join" in capsys.readouterr().err
    running = start(images, tmp_path / "dataset", "1/1")
    while running.is_alive() and not list((tmp_path / "dataset").glob(".shard-*.tmp")):
        time.sleep(0.001)
    assert running.pid is not None
    os.kill(running.pid, signal.SIGSTOP)
    try:
        assert command("join", tmp_path / "dataset") == 2
        assert "another `shards make` or `shards encode` is writing to it" in capsys.readouterr().err
    finally:
        running.kill()
        running.join()


def test_images_that_cannot_be_used_fail_their_part(images, tmp_path, capsys):
    codes = [command("make", images, tmp_path / "dataset", *OPTIONS[:-1], "--part", f"{i}/3") for i in (1, 2, 3)]
    error = capsys.readouterr().err
    assert 2 in codes and "a/bad.png" in error and "b/bad.png" in error
    assert command("join", tmp_path / "dataset") == 2 and "2 of 122 images cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2", "1/2/3"])
def test_a_part_is_one_of_n(images, tmp_path, capsys, part):
    assert command("make", images, tmp_path / "dataset", f"--part={part}") == 2
    assert "--part: " in capsys.readouterr().err and not (tmp_path / "dataset").exists()
