"""Running statistics of BatchNorm: averages of the first iterations, without the initial values."""

import torch
from torch import nn

from distgan.training.batchnorm import GlobalBatchNorm2d, RunningStatsWarmup, convert


def test_the_first_statistics_are_averaged_with_equal_weights():
    norm = nn.BatchNorm2d(3)
    warmup = RunningStatsWarmup([nn.Sequential(norm)])
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(16, 3, 4, 4, generator=generator) * 0.02 for _ in range(30)]
    means, variances = (
        torch.stack([f(b.transpose(0, 1).flatten(1), dim=1) for b in batches]) for f in (torch.mean, torch.var)
    )
    for iteration, batch in enumerate(batches):
        warmup.set_momentum(iteration)
        norm(batch)
        if iteration < 10:  # until 1 / (t + 1) falls below the momentum of 0.1
            torch.testing.assert_close(norm.running_mean, means[: iteration + 1].mean(0))
            torch.testing.assert_close(norm.running_var, variances[: iteration + 1].mean(0))
    assert norm.momentum == 0.1


def test_a_resumed_run_has_the_momentum_of_its_iteration():
    norm = nn.BatchNorm2d(3)
    warmup = RunningStatsWarmup([norm])
    warmup.set_momentum(3)
    assert norm.momentum == 0.25
    warmup.set_momentum(0)
    assert norm.momentum == 1


def test_conversion_keeps_parameters_buffers_and_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(nn.BatchNorm2d(4, momentum=0.3))).eval()
    before = dict(network.named_parameters()) | dict(network.named_buffers())
    convert(network)
    norm = network.get_submodule("1.0")
    assert type(norm) is GlobalBatchNorm2d and norm.momentum == 0.3 and not norm.training
    after = dict(network.named_parameters()) | dict(network.named_buffers())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
