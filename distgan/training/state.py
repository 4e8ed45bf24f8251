"""The state of a run that resumes: counters, weights, optimizer state; saved to and restored from a checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distgan.errors import UsageError
from distgan.runs.checkpoint import Checkpoints, Tensors, load
from distgan.training.build import Run


@dataclass
class TrainState:
    """The counters of a run, the same on every process."""

    images_seen: int = 0
    """Real images that D was trained on, over all processes; progress and schedules are measured in them."""
    skipped: int = 0
    """Corrupt images that were skipped, over all processes; up to the last logging interval."""
    rollbacks: int = 0
    """Times the run returned to a checkpoint; part of the key of its random numbers from then on."""
    augment_p: Tensor | float = 0.0
    """Probability of augmentation if it is adaptive; after an iteration on the device, 0-dim float32."""
    augment_sign: Tensor | float = 0.0
    """Sum over iterations of the means of sign(D(x)), since that probability moved last; likewise."""


def save_state(run: Run, state: TrainState, checkpoints: Checkpoints) -> None:
    """Copy the run's state to host memory and hand it to the writer; called on the main process."""
    accelerator, gan = run.processes.accelerator, run.gan
    files = {"generator": copy_weights(run.raw_G), "discriminator": copy_weights(gan.raw_D)}
    if run.ema:
        files["ema"] = copy_weights(run.ema.module)
    files["optimizers"] = get_optimizer_tensors("generator", run.raw_G, gan.g_optimizer) | get_optimizer_tensors(
        "discriminator", gan.raw_D, gan.d_optimizer
    )
    metadata = {
        "config": run.config.fingerprint(),
        "size": run.dataset.size,
        "channels": run.dataset.channels,
        "classes": [row.name for row in run.dataset.classes] if run.config.data.labels else [],
        "manifest": run.dataset.digest,
        "images": state.images_seen,
    }
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    counters = {
        "skipped": state.skipped,
        "rollbacks": state.rollbacks,
        "augment_p": float(state.augment_p),
        "augment_sign": float(state.augment_sign),
        "scaler": scaler,
    }
    checkpoints.save(files, {key: metadata[key] for key in ("images", "config", "manifest")} | counters, metadata)


def restore_state(run: Run, state: TrainState, path: Path) -> None:
    """Load a checkpoint, on every process. Raises UsageError if its networks are not those of the configuration."""
    accelerator, gan = run.processes.accelerator, run.gan
    files, saved = load(path)
    try:
        run.raw_G.load_state_dict(files["generator"])
        gan.raw_D.load_state_dict(files["discriminator"])
        if run.ema:
            run.ema.module.load_state_dict(files.get("ema", files["generator"]))
        set_optimizer_tensors(files["optimizers"], "generator", run.raw_G, gan.g_optimizer)
        set_optimizer_tensors(files["optimizers"], "discriminator", gan.raw_D, gan.d_optimizer)
    except (KeyError, RuntimeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise UsageError(f"run_dir: the networks in {path} do not match this configuration: {first}") from None
    if accelerator.scaler is not None and saved.scaler:
        accelerator.scaler.load_state_dict(saved.scaler)
    state.images_seen, state.skipped, state.rollbacks = saved.images, saved.skipped, saved.rollbacks
    state.augment_p = saved.augment_p
    state.augment_sign = saved.augment_sign


def copy_weights(network: nn.Module) -> Tensors:
    """A network's weights and buffers, copied to host memory."""
    return {name: to_host(tensor) for name, tensor in network.state_dict().items()}


def get_optimizer_tensors(prefix: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
    """An optimizer's state as tensors named PREFIX.PARAMETER.STATE, copied to host memory."""
    return {
        f"{prefix}.{name}.{key}": to_host(value)
        for name, parameter in network.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def set_optimizer_tensors(tensors: Tensors, prefix: str, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """The inverse of `get_optimizer_tensors`. Parameters that were never updated have no state.

    Adam's moments get the memory format of their parameter: a fused optimizer indexes both alike.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for i, (name, parameter) in enumerate(network.named_parameters()):
        start = f"{prefix}.{name}."
        for key, value in tensors.items():
            if key.startswith(start):
                ordered = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
                state.setdefault(i, {})[key[len(start) :]] = ordered.detach()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def to_host(tensor: Tensor) -> Tensor:
    # safetensors refuses channels-last strides
    return tensor.detach().to("cpu", copy=True).contiguous()
