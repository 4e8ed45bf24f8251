"""Checkpoints under faults: full disks, corrupt files, folders that cannot be written."""

import contextlib
import errno
import fcntl
import os
import subprocess
import time
from pathlib import Path

import msgspec
import pytest
import torch

from distgan.errors import RunError, UsageError
from distgan.runs.checkpoint import Checkpoints, load
from distgan.runs.folder import RunDir
from distgan.training.state import get_optimizer_tensors, set_optimizer_tensors
from helpers import TINY, launch, train, weights


def flip_a_byte(path: Path) -> str:
    file = path / "ema.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    return "the sha256 of ema.safetensors does not match state.json"


def truncate(path: Path) -> str:
    os.truncate(path / "optimizers.safetensors", 1000)
    return "the sha256 of optimizers.safetensors"


def remove_one(path: Path) -> str:
    (path / "discriminator.safetensors").unlink()
    return "discriminator.safetensors is missing"


def remove_state(path: Path) -> str:
    (path / "state.json").unlink()
    return "state.json is missing"


def corrupt_state(path: Path) -> str:
    (path / "state.json").write_text("{")
    return "state.json is unreadable"


def make_unreadable(path: Path) -> str:
    (path / "ema.safetensors").unlink()
    (path / "ema.safetensors").mkdir()
    return "ema.safetensors is unreadable"


@pytest.mark.parametrize("corrupt", [flip_a_byte, truncate, remove_one, remove_state, corrupt_state, make_unreadable])
def test_a_corrupt_checkpoint_is_named_and_the_previous_one_used(trained, capsys, corrupt):
    expected = weights(trained("--epochs", 3, name="uninterrupted"))
    run = trained("--epochs", 2)
    what = corrupt(run / "checkpoints" / "160")
    capsys.readouterr()
    assert weights(trained("--epochs", 3)) == expected
    out, error = capsys.readouterr()
    assert what in error and "checkpoints/160 is corrupt" in error and error.count("\n") == 1
    assert "resuming from" in out and "checkpoints/80:" in out


def test_every_checkpoint_is_corrupt(trained, tiny, tmp_path, capsys):
    run = trained("--epochs", 2)
    for images in ("80", "160"):
        remove_one(run / "checkpoints" / images)
    assert train("--data.shards", tiny, "--run_dir", run, *TINY, "--epochs", 3) == 1
    assert "is corrupt; --fresh moves the run aside and starts over" in capsys.readouterr().err
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["160", "80"]


def test_a_full_disk_leaves_earlier_checkpoints_complete(tiny, small_disk, capsys):
    run = small_disk / "run"
    words = ["--data.shards", tiny, "--run_dir", run, *TINY, "--model.options.width", 16, "--checkpoint.keep", 0]
    assert train(*words, "--epochs", 100) == 1
    error = capsys.readouterr().err
    assert str(run) in error and "No space left on device" in error and "latest checkpoint: " in error
    assert error.count("\n") == 1
    newest = Checkpoints(run / "checkpoints").newest()
    assert newest is not None and not list((run / "checkpoints").glob(".*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    assert train(*words, "--epochs", 14) == 0 and weights(run)["images"] == 1120


def test_a_read_only_run_folder(trained, tiny, small_disk, capsys):
    words = ["--data.shards", tiny, "--run_dir", small_disk / "run", *TINY, "--epochs", 1]
    assert train(*words) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    capsys.readouterr()
    assert train(*words) == 2
    error = capsys.readouterr().err
    assert "cannot be written: Read-only file system" in error and error.count("\n") == 1


def test_a_clock_that_is_set_back(trained, monkeypatch):
    """Checkpoints are ordered by images seen, not by time."""
    expected = weights(trained("--epochs", 3, name="uninterrupted"))
    run = trained("--epochs", 2)
    for path in run.rglob("*"):
        os.utime(path, (2_000_000_000, 2_000_000_000))
    os.utime(run / "checkpoints" / "80", (2_100_000_000, 2_100_000_000))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 10**6)
    assert weights(trained("--epochs", 3)) == expected


def test_a_failed_write_is_printed_at_once_and_ends_the_run_if_the_next_fails_too(tmp_path):
    printed: list[str] = []
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, 3, print_error=printed.append)
    files = {"generator": {"w": torch.zeros(3)}}
    rest = {"config": {}, "manifest": "", "skipped": 0, "rollbacks": 0}
    with contextlib.closing(checkpoints):
        folder.write_text("a file, not a folder")
        checkpoints.save(files, {"images": 1} | rest, {})
        with pytest.raises(RunError, match="a checkpoint could not be written"):
            checkpoints.save(files, {"images": 2} | rest, {})
        assert len(printed) == 2 and "Not a directory" in printed[0]
        checkpoints.save(files, {"images": 3} | rest, {})
        assert checkpoints.writing is not None and checkpoints.writing.exception() is not None
        folder.unlink()
        checkpoints.save(files, {"images": 4} | rest, {})  # writing works again: this one is saved
        checkpoints.wait()
    assert checkpoints.newest() == folder / "4"


def test_a_file_system_without_locks_is_reported(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(UsageError, match="has no locks"):
        RunDir(tmp_path / "run")


def test_optimizer_state_keeps_its_memory_format(tmp_path):
    """A fused Adam indexes weights and moments alike: restored moments must have the strides of their weights."""
    network = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), fused=True)
    network(torch.randn(2, 4, 8, 8)).sum().backward()
    optimizer.step()
    other = torch.optim.Adam(network.parameters(), fused=True)
    set_optimizer_tensors(get_optimizer_tensors("net", network, optimizer), "net", network, other)
    for parameter in network.parameters():
        for name, value in optimizer.state[parameter].items():
            restored = other.state[parameter][name]
            assert torch.equal(restored, value) and restored.stride() == value.stride()


def test_others_may_read_it_as_other_files(trained):
    run = trained("--epochs", 1)
    (run / "plain").touch()
    modes = {path.stat().st_mode for path in [run / "plain", *(run / "checkpoints" / "80").iterdir()]}
    assert len(modes) == 1


def test_a_checkpoint_does_not_depend_on_the_number_of_processes(tiny, tmp_path):
    launch(2, "--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 1)
    files, state = load(tmp_path / "run" / "checkpoints" / "80")
    assert set(files) == {"generator", "discriminator", "ema", "optimizers"}
    assert not any("module." in name for tensors in files.values() for name in tensors)
    text = msgspec.json.encode(state).decode()
    assert "rank" not in text and "world" not in text


def test_asynchronous_and_blocking_writes_give_the_same_files(trained):
    assert weights(trained("--epochs", 2, name="a")) == weights(
        trained("--epochs", 2, "--checkpoint.wait=true", name="b")
    )


def test_a_control_folder_that_is_gone_is_named_and_the_checkpoint_is_whole(
    trained, tiny, tmp_path, monkeypatch, capsys
):
    """launch/train.sbatch is told of each checkpoint by a file there; the checkpoint itself is complete."""
    monkeypatch.setenv("DISTGAN_CONTROL_DIR", str(tmp_path / "gone"))
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--epochs", 1) == 1
    error = capsys.readouterr().err
    assert f"$DISTGAN_CONTROL_DIR: {tmp_path / 'gone' / 'saved'}: No such file or directory" in error
    monkeypatch.delenv("DISTGAN_CONTROL_DIR")
    assert weights(trained("--epochs", 1)) == weights(trained("--epochs", 1, name="uninterrupted"))


@pytest.mark.parametrize("text", ["{", "[]", '{"images": 80, "metric": "fid", "value": "abc"}', '{"images": 80}'])
def test_a_corrupt_best_json_names_no_checkpoint(trained, text):
    run = trained("--epochs", 1)
    (run / "best.json").write_text(text)
    with contextlib.closing(Checkpoints(run / "checkpoints")) as checkpoints:
        assert checkpoints.best is None


def test_the_current_folder_is_not_moved_aside(trained, tiny, monkeypatch, capsys):
    run = trained("--epochs", 1)
    monkeypatch.chdir(run)
    assert train("--data.shards", tiny, "--run_dir", ".", *TINY, "--epochs", 1, "--fresh") == 2
    assert "run_dir: --fresh moves . aside, and it is the current folder; start in another" in capsys.readouterr().err
