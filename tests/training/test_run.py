"""What a user reads when a device or a launch is at fault, arranged where there is no GPU; settings; what is due."""

import math
import os
from fractions import Fraction

import pytest
import torch
import torch.distributed as dist

import distgan.training.iteration
from distgan.config.keys import Config
from distgan.distributed.launch import set_determinism
from distgan.training.due import Clock
from helpers import TINY, train, weights


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nmore"),
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ... Try --micro_batch (gradient accumulation); "
            "there is no checkpoint yet",
        ),
        (
            dist.DistBackendError("NCCL error, invalid usage\nLast error:\nDuplicate GPU detected : rank 1"),
            "the launch: NCCL cannot start: Duplicate GPU detected : rank 1",
        ),
    ],
    ids=["memory", "duplicate"],
)
def test_errors_of_a_device_are_one_line(tiny, tmp_path, monkeypatch, capsys, error, message):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(distgan.training.iteration, "train_step", fail)
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY) == 1
    printed = capsys.readouterr().err
    assert message in printed and printed.count("\n") == 1


def test_more_processes_than_gpus_are_refused(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY) == 2
    assert "the launch: 3 processes on a node with 2 GPUs; use --num_processes 2" in capsys.readouterr().err
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert train("--data.shards", tiny, "--run_dir", tmp_path / "run", *TINY, "--images", 16) == 0


def test_deterministic_and_tf32_reach_torch(monkeypatch):
    for name in ("NCCL_NVLS_ENABLE", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    try:
        set_determinism(Config(deterministic=False, tf32=False))
        assert not torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.benchmark
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    finally:
        set_determinism(Config())
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.deterministic and torch.backends.cudnn.allow_tf32
    assert (os.environ["NCCL_NVLS_ENABLE"], os.environ["CUBLAS_WORKSPACE_CONFIG"]) == ("0", ":4096:8")


@pytest.mark.slow
def test_runs_with_many_labels_are_equal(tiny, trained):
    """The embedding's backward at 4,096 images per process, which on GPUs adds in no fixed order by default."""
    words = ["--data.labels", "true", "--batch", 4096, "--data.lanes", 16, "--images", 8192]
    assert weights(trained(*words, name="a")) == weights(trained(*words, name="b"))


@pytest.mark.parametrize("every", [0.05, 0.1, 0.2, 0.3, 1, 2.5])
def test_a_fraction_of_an_epoch_is_due_at_its_multiples(every):
    """0.1 of 1,792 images ten times is the end of the epoch, in floating point too."""
    clock = Clock(iteration_images=32, epoch_images=1792, total_images=17920)
    due = [images for images in range(32, 10 * 1792 + 1, 32) if clock.crossed(every, images)]
    at = [math.ceil(Fraction(str(every)) * 1792 * k / 32) * 32 for k in range(1, int(10 / every) + 1)]
    assert due == [images for images in dict.fromkeys(at) if images <= 10 * 1792]
