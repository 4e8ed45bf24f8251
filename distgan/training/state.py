"""The state of a run that resumes: counters, weights, optimizer state; as tensors of a checkpoint and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.gan.ema import EMA
from distgan.gan.parts import GAN
from distgan.gan.power_ema import PowerEMA
from distgan.runs.checkpoint import Tensors

POWER_EMA = "power_ema"
"""The file of a checkpoint with the averages of G by power functions: tensors named WIDTH.NAME."""


@dataclass
class TrainState:
    """The counters of a run, the same on every process."""

    images_seen: int = 0
    """Real images that D was trained on, over all processes; progress and schedules are measured in them."""
    skipped: int = 0
    """Corrupt images that were skipped, over all processes; up to the last logging interval."""
    rollbacks: int = 0
    """Times the run returned to a checkpoint; part of the key of its random numbers from then on."""


def copy_tensors(gan: GAN, ema: EMA | None, power_emas: Sequence[PowerEMA] = ()) -> dict[str, Tensors]:
    """The tensors of a run by file of a checkpoint, copied to host memory."""
    files = {"generator": copy_weights(gan.raw_G), "discriminator": copy_weights(gan.raw_D)}
    if ema:
        files["ema"] = copy_weights(ema.module)
    if power_emas:
        files[POWER_EMA] = {
            f"{average.width}.{name}": tensor
            for average in power_emas
            for name, tensor in copy_weights(average.module).items()
        }
    files["optimizers"] = get_optimizer_tensors("generator", gan.raw_G, gan.g_optimizer)
    files["optimizers"] |= get_optimizer_tensors("discriminator", gan.raw_D, gan.d_optimizer)
    return files


def load_tensors(
    gan: GAN, ema: EMA | None, files: Mapping[str, Tensors], path: Path, power_emas: Sequence[PowerEMA] = ()
) -> None:
    """The inverse of `copy_tensors`. Raises UsageError if the networks in the checkpoint `path` are not these, or if it
    has no average of a width: one cannot begin in the middle of a run."""
    try:
        gan.raw_G.load_state_dict(files["generator"])
        gan.raw_D.load_state_dict(files["discriminator"])
        if ema:
            ema.module.load_state_dict(files.get("ema", files["generator"]))
        for average in power_emas:
            load_power_ema(average, files.get(POWER_EMA, {}), path)
        set_optimizer_tensors(files["optimizers"], "generator", gan.raw_G, gan.g_optimizer)
        set_optimizer_tensors(files["optimizers"], "discriminator", gan.raw_D, gan.d_optimizer)
    except (KeyError, RuntimeError) as error:
        cause = str(error).splitlines()[-1].strip()
        raise UsageError(f"run_dir: the networks in {path} do not match this configuration: {cause}") from None


def load_power_ema(average: PowerEMA, tensors: Tensors, path: Path) -> None:
    """The average of its width, from the tensors of all widths. Raises UsageError if it is not there."""
    start = f"{average.width}."
    own = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    if not own:
        raise UsageError(
            f"ema.power_widths: the checkpoint {path} has no average of the width {average.width}, and an average "
            "cannot begin in the middle of a run; leave the width out, or start over with --fresh"
        )
    average.module.load_state_dict(own)


def copy_weights(network: nn.Module) -> Tensors:
    """A network's weights and buffers, copied to host memory."""
    return {name: to_host(tensor) for name, tensor in network.state_dict().items()}


def get_optimizer_tensors(prefix: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """An optimizer's state as tensors named PREFIX.PARAMETER.STATE, copied to host memory."""
    return {
        f"{prefix}.{name}.{key}": to_host(value)
        for name, parameter in updated_parameters(network, optimizer)
        for key, value in optimizer.state[parameter].items()
    }


def updated_parameters(network: nn.Module, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    """The parameters by name that the optimizer has, in its order: frozen ones are not among them."""
    updated = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [(name, parameter) for name, parameter in network.named_parameters() if id(parameter) in updated]


def set_optimizer_tensors(tensors: Tensors, prefix: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The inverse of `get_optimizer_tensors`. Parameters that were never updated have no state.

    Adam's moments get the memory format of their parameter: a fused optimizer indexes both alike.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for i, (name, parameter) in enumerate(updated_parameters(network, optimizer)):
        start = f"{prefix}.{name}."
        for key, value in tensors.items():
            if key.startswith(start):
                ordered = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                state.setdefault(i, {})[key[len(start) :]] = ordered.detach()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def to_host(tensor: Tensor) -> Tensor:
    # safetensors refuses channels-last strides
    return tensor.detach().to("cpu", copy=True).contiguous()
