"""BatchNorm over all processes against torch's, and its running statistics."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from distgan.distributed.batchnorm import GlobalBatchNorm2d, RunningStatsWarmup, convert


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


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """A world of this process alone: the collectives run, and change nothing."""
    store = tmp_path_factory.mktemp("store") / "file"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_it_computes_what_torchs_batchnorm_computes(process_group, dtype, channels_last):
    """Outputs, all gradients, running statistics, and the memory format of the input's gradient."""
    reference = nn.Sequential(nn.BatchNorm2d(5))
    nn.init.uniform_(reference.get_parameter("0.weight"), generator=torch.Generator().manual_seed(1))
    reference = reference.double() if dtype == torch.float64 else reference
    ours = convert(copy.deepcopy(reference))
    x = torch.randn(6, 5, 4, 3, generator=torch.Generator().manual_seed(0)).mul(2).add(3).to(dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    inputs, results = [], []
    for network in (reference, ours):
        input = x.clone().requires_grad_(True)
        output = network(input)
        (output.float() * torch.arange(output.numel()).view(output.shape).sin()).sum().backward()
        inputs.append(input)
        results.append(output)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-5, torch.bfloat16: 0.05}[dtype]
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)
    assert results[1].dtype == dtype and inputs[1].grad.dtype == dtype
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=tolerance, atol=tolerance)
    assert inputs[1].grad.stride() == inputs[0].grad.stride()
    for (name, a), b in zip(ours.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=tolerance, atol=10 * tolerance, msg=name)
    for a, b in zip(ours.buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_what_is_kept_for_backward_is_the_input_alone(process_group):
    """torch's BatchNorm keeps one byte per byte of input; plain tensor operations would keep four."""
    network = convert(nn.Sequential(nn.BatchNorm2d(8)))
    x = torch.randn(4, 8, 16, 16).to(memory_format=torch.channels_last).requires_grad_(True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda t: t):
        network(x)
    assert sum(kept) < 1.1 * x.nbytes


def test_a_second_derivative_is_refused(process_group):
    network = convert(nn.Sequential(nn.BatchNorm2d(2)))
    x = torch.randn(4, 2, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|differentiate twice"):
        gradient.sum().backward()
