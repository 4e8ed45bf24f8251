"""Adam (Kingma & Ba 2015, arXiv 1412.6980) whose beta2 is a tensor, for captured iterations."""
# pyright: reportPrivateImportUsage=false

from typing import Any

import torch
from torch import Tensor


class TensorAdam(torch.optim.Adam):
    """torch's Adam with a learning rate and a beta2 that are 0-dim tensors on the device of the parameters.

    A captured iteration reads their values when it is replayed. torch's own kernels take beta2 as a number.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Algorithm 1 of the paper, for all parameters together."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            states = [self.init_state(parameter) for parameter in parameters]
            update(parameters, states, group)

    def init_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter, which starts at zero."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state


def update(parameters: list[Tensor], states: list[dict[str, Tensor]], group: dict[str, Any]) -> None:
    """One step of the parameters of a group, in place."""
    beta1, beta2 = group["betas"]
    dtype = parameters[0].dtype
    gradients: Any = [parameter.grad for parameter in parameters]
    steps = [state["step"] for state in states]
    means = [state["exp_avg"] for state in states]
    squares = [state["exp_avg_sq"] for state in states]
    if group["weight_decay"] and group["decoupled_weight_decay"]:
        # AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, algorithm 2)
        torch._foreach_mul_(parameters, 1 - group["lr"].to(dtype) * group["weight_decay"])
    elif group["weight_decay"]:
        gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
    torch._foreach_add_(steps, 1)
    # m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2
    torch._foreach_lerp_(means, gradients, 1 - beta1)
    # one kernel for all tensors needs one dtype; 1 - beta2 is not the difference of rounded numbers
    torch._foreach_mul_(squares, beta2.to(dtype))
    scaled = torch._foreach_mul(gradients, (1 - beta2).to(dtype))
    torch._foreach_addcmul_(squares, scaled, gradients)
    # all parameters have had the same number of steps
    step = steps[0].double()
    step_size = group["lr"] / (1 - beta1**step)
    # theta = theta - step_size m / (sqrt(v / (1 - beta2^t)) + eps)
    denominators = torch._foreach_sqrt(squares)
    torch._foreach_div_(denominators, (1 - beta2**step).sqrt().to(dtype))
    torch._foreach_add_(denominators, group["eps"])
    changes = torch._foreach_div(means, denominators)
    torch._foreach_mul_(changes, step_size.to(dtype))
    torch._foreach_sub_(parameters, changes)
