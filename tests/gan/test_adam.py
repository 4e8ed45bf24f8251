"""Adam with tensors equals torch's, with both kinds of weight decay."""

from typing import Any

import pytest
import torch

from distgan.gan.adam import TensorAdam


@pytest.mark.parametrize("decoupled", [False, True])
def test_tensor_adam_equals_torch(decoupled):
    torch.manual_seed(0)
    start = torch.randn(3, 4, dtype=torch.float64)
    parameters = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    keys: Any = {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": decoupled}
    adam, tensor_adam = torch.optim.Adam([parameters[0]], **keys), TensorAdam([parameters[1]], **keys)
    tensor_adam.param_groups[0]["lr"] = torch.tensor(0.01, dtype=torch.float64)
    tensor_adam.param_groups[0]["betas"] = (0.5, torch.tensor(0.9, dtype=torch.float64))
    for _ in range(5):
        gradient = torch.randn(3, 4, dtype=torch.float64)
        for parameter, optimizer in zip(parameters, (adam, tensor_adam), strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(parameters[1], parameters[0], rtol=0, atol=1e-14)
    plain = torch.nn.Parameter(start.clone())
    plain.grad = torch.zeros_like(plain)
    torch.optim.Adam([plain], **(keys | {"weight_decay": 0.0})).step()
    assert not torch.equal(plain, parameters[0])
