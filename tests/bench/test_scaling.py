"""The model of an iteration's time on N GPUs: its limits, a figure of NCCL's own, and the work that it counts."""

import os

import pytest
import torch
from bench import scaling, scaling_check
from bench.scaling_model import (
    BACKWARD_SHARE,
    HOST_PER_OPERATION,
    LL128_SHARE,
    NCCL,
    NETWORK_BANDWIDTH,
    NODE_BANDWIDTH,
    PEAK_FLOPS,
    SUSTAINED,
    US,
    Work,
    all_reduce_seconds,
    exposed_seconds,
    iteration,
)
from gpu.test_pretended_world import exchange

from helpers import ROOT, make_dataset, noise

WORLDS = (1, 2, 4, 8, 16, 64, 256, 1024)


def test_one_process_has_nothing_to_reduce():
    assert all_reduce_seconds(NCCL, 1, 10**9) == 0


@pytest.mark.parametrize(
    ("processes", "bandwidth"), [(8, NODE_BANDWIDTH), (64, NETWORK_BANDWIDTH), (1024, NETWORK_BANDWIDTH)]
)
def test_a_large_all_reduce_is_limited_by_bandwidth(processes, bandwidth):
    limit = 2 * (processes - 1) / processes * 10**12 / (LL128_SHARE * bandwidth)
    assert limit < all_reduce_seconds(NCCL, processes, 10**12) < 1.001 * limit


@pytest.mark.parametrize("size", [8, 8192, 10**6, 10**9])
def test_an_all_reduce_takes_longer_among_more_processes(size):
    seconds = [all_reduce_seconds(NCCL, processes, size) for processes in WORLDS]
    assert seconds == sorted(seconds) and len(set(seconds)) == len(WORLDS)


def test_a_small_all_reduce_takes_what_nccl_expects():
    """NCCL's log of three nodes of eight H100, 128 bytes: "time 25.214764" (github.com/NVIDIA/nccl/issues/1453)."""
    assert all_reduce_seconds(NCCL, 24, 128) == pytest.approx(25.21 * US, abs=0.02 * US)


def test_the_last_bucket_is_never_hidden():
    networks = [[1.0, 2.0], [3.0, 4.0]]
    assert [exposed_seconds(networks, overlap) for overlap in (0.0, 3.0, 100.0)] == [10, 7, 6]


def test_an_iteration_is_the_slower_of_host_and_device():
    flops = int(SUSTAINED * PEAK_FLOPS)  # of a second
    gradients = [[10**9, 10**9]]
    slow_host = Work(64, flops, operations=int(2 / HOST_PER_OPERATION), gradients=gradients)
    assert iteration(slow_host, 8, captured=False).seconds == pytest.approx(2)
    flat = all_reduce_seconds(NCCL, 8, 2 * 10**9)
    assert iteration(slow_host, 8, captured=True).seconds == pytest.approx(1 + flat)
    eager = iteration(Work(64, flops, operations=1, gradients=gradients), 8, captured=False)
    last = all_reduce_seconds(NCCL, 8, 10**9)
    assert last < BACKWARD_SHARE and eager.gradients == pytest.approx(last)
    among_batchnorm = Work(64, flops, 1, batchnorm=[8], batchnorm_in_backward=True, gradients=gradients)
    assert iteration(among_batchnorm, 8, captured=False).gradients == pytest.approx(2 * last)


def test_views_and_allocations_start_no_kernel():
    x = torch.ones(4)
    with scaling.Starts() as starts:
        torch.relu(x).view(2, 2).detach()
        torch.empty(3)
    assert starts.count == 1


def test_buckets_are_those_that_ddp_reduces(tmp_path):
    """Of D, then of G, in DCGAN-64."""
    images = make_dataset(tmp_path / "set", noise(64, size=64))
    traffic = exchange(8, images, tmp_path, "--config", str(ROOT / "configs" / "dcgan-64.yaml"))
    reduced = [size for kind, size in traffic.iterations[-1] if kind == "gradients"]
    d_buckets = scaling.buckets(traffic.gan.raw_D)
    assert len(d_buckets) == 2 and reduced == d_buckets + scaling.buckets(traffic.gan.raw_G)


def test_processes_that_share_cores_take_longer(monkeypatch):
    """On two cores four processes are half as fast, and two beside four other jobs a third as fast."""
    constants = {"small": 0.001, "large": 0.1, "batch of one": 1.0, "batch of all": 1.5, "others": 0.0}
    large = scaling_check.LARGE_BYTES
    assert all_reduce_seconds(scaling_check.gloo(constants), 2, large) == pytest.approx(0.1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    work = Work(8, 0, 0, gradients=[[large]])
    assert scaling_check.predict(work, "batch", 1, constants) == (1.0, 0.0, 0.0)
    assert scaling_check.predict(work, "batch", 2, constants) == (1.5, 0.0, pytest.approx(0.1))
    compute, _, gradients = scaling_check.predict(work, "batch", 4, constants)
    assert compute == 3.0 and 0.2 < gradients == 2 * all_reduce_seconds(scaling_check.gloo(constants), 4, large)
    beside_others = scaling_check.predict(work, "batch", 2, constants | {"others": 4.0})
    assert beside_others == (4.5, 0.0, pytest.approx(0.1))  # its all-reduce was measured beside them too
