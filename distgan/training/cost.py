"""What a run costs, for --dry_run: FLOPs and GPU memory, estimated without a GPU; the largest micro-batch, tried."""

import weakref
from collections.abc import Callable
from math import prod
from typing import Any, NamedTuple

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from distgan.config.keys import Config
from distgan.frozen.vision import FrozenNetwork
from distgan.gan.losses import LOSSES
from distgan.gan.parts import GAN, Batches, Minibatch, unaugmented
from distgan.gan.step import train_step
from distgan.models import example_labels
from distgan.samples import SampleSpec
from distgan.training.batches import split
from distgan.training.build import build_view, has_own_minibatch, init_networks, weighted_terms
from distgan.training.frozen_features import frozen_features, reads_pixels
from distgan.training.optimizers import adam
from distgan.training.scheduled import weighted_g_penalties, weighted_penalties

try:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:  # torch does not document these names
    # type: ignore[assignment, misc]
    FakeTensorMode = None
    TorchDispatchMode = object

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
ALLOCATION = 512  # bytes; the CUDA allocator rounds up to multiples of it


class Cost(NamedTuple):
    """What a process computes and keeps."""

    flops: int
    """Floating-point operations of an iteration in convolutions and matrix products; an addition and a multiplication
    are two."""
    memory: int
    """Peak bytes of tensors on a GPU: weights, optimizer state, minibatch, activations, gradients."""


def describe_cost(
    config: Config,
    spec: SampleSpec,
    world_size: int,
    network: FrozenNetwork | None = None,
    decoder: nn.Module | None = None,
) -> list[str]:
    """Lines for the dry run: `estimate_cost`, and what it leaves out; or why it is unknown."""
    try:
        cost = estimate_cost(config, spec, world_size, network, decoder)
    except Exception as error:  # of networks and losses of the user's that need values, or of another torch
        reason = (str(error).splitlines() or [""])[0][:200]
        return [f"estimated FLOPs and peak memory per process on a GPU: unknown ({type(error).__name__}: {reason})"]
    images = config.iteration_images
    return [
        f"FLOPs of an iteration: {cost.flops * world_size / 1e9:,.1f} G for {images} images, all processes and due "
        "penalties included",
        f"estimated peak memory per process on a GPU: {cost.memory / 1e9:.2f} GB of tensors; in addition the CUDA "
        "context, cuDNN's workspaces, NCCL's buffers and the allocator's fragmentation",
    ]


def estimate_cost(
    config: Config,
    spec: SampleSpec,
    world_size: int,
    network: FrozenNetwork | None = None,
    decoder: nn.Module | None = None,
) -> Cost:
    """The cost of a process of `world_size`, with that of the frozen `network` of a term.

    The weights of the `decoder` of latents are on the device all along; what it decodes, between iterations, is not
    counted.

    Runs two iterations, since the first makes the optimizers' state, on fake tensors: they have no data. Raises what
    networks and losses raise if they need values, and RuntimeError if this torch has no fake tensors.
    """
    if FakeTensorMode is None:
        raise RuntimeError(f"torch {torch.__version__} has no FakeTensorMode")
    with FakeTensorMode(), Meter() as meter:
        gan, averages = fake_gan(config, spec, network)
        penalties = weighted_penalties(config, torch.device("cpu"))
        g_penalties = weighted_g_penalties(config, torch.device("cpu"))
        flops = 0
        for _ in range(2):
            micro_batches = fake_minibatch(config, spec, config.batch // world_size, build_view(config, gan.D).columns)
            fresh = micro_batches if has_own_minibatch(config) else None
            before = meter.flops
            train_step(gan, Batches([micro_batches] * config.n_critic, fresh), penalties, g_penalties=g_penalties)
            flops = meter.flops - before
        del averages  # kept until here
        buckets = weight_bytes(gan.G) + weight_bytes(gan.D) if world_size > 1 else 0  # DDP copies gradients into them
    return Cost(flops, meter.peak + buckets + (weight_bytes(decoder) if decoder is not None else 0))


def weight_bytes(network: nn.Module) -> int:
    """Of its parameters."""
    return sum(parameter.nbytes for parameter in network.parameters())


def largest_micro_batch(images: int, iterate: Callable[[int], object]) -> int | None:
    """The largest divisor of `images` that `iterate` runs with; None if none does."""
    for size in range(images, 0, -1):
        if images % size:
            continue
        try:
            iterate(size)
            return size
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    return None


class Meter(TorchDispatchMode):  # pyright: ignore[reportGeneralTypeIssues]
    """Counts the bytes of live tensors, by storage, and FLOPs, by the formulas of torch's FlopCounterMode but one.

    That mode itself also attributes them to modules, by hooks that a gradient with respect to an image breaks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.allocated = self.peak = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution_backward.default:
            self.flops += convolution_backward_flops(*args, **(kwargs or {}))
        elif func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=output)
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, Tensor):
                self.add(tensor.untyped_storage())
        return output

    def add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = -(-storage.nbytes() // ALLOCATION) * ALLOCATION
            self.allocated += self.sizes[key]
            self.peak = max(self.peak, self.allocated)
            weakref.finalize(storage, self.remove, key)

    def remove(self, key: int) -> None:
        self.allocated -= self.sizes.pop(key)


def convolution_backward_flops(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: list[bool],
) -> int:
    """FLOPs of aten::convolution_backward, whose arguments these are: each gradient costs as much as the forward.

    torch's own formula counts the gradient of a grouped convolution's weight `groups` times (torch 2.15).
    """
    positions = (x if transposed else dy).shape[2:]
    needs_dx, needs_dw, _ = output_mask
    return 2 * x.shape[0] * prod(positions) * weight.numel() * (needs_dx + needs_dw)


def fake_gan(config: Config, spec: SampleSpec, network: FrozenNetwork | None = None) -> tuple[GAN, list[nn.Module]]:
    """Networks, optimizers and averages of G, as on a GPU; on the CPU, where autograd needs no driver.

    BatchNorm is torch's own: on a GPU GlobalBatchNorm2d keeps the same tensors.
    """

    def build() -> tuple[nn.Module, nn.Module]:
        G, D = init_networks(config, spec, network)
        return mixed_precision(G, config.precision), mixed_precision(D, config.precision)

    G, D = build()
    optimizers = adam(G, config.g_optimizer), adam(D, config.d_optimizer)
    averages = [build()[0] for _ in range(bool(config.ema.half_life_images) + len(config.ema.power_widths))]
    view = build_view(config, D)
    terms = weighted_terms(config, torch.device("cpu"))
    copy = network.without_weights() if network is not None else None
    dtype = HALF.get(config.precision)
    frozen = frozen_features(D, copy, view.augment, lambda: torch.autocast("cpu", dtype, enabled=dtype is not None))
    augment = view if view.columns else unaugmented
    gan = GAN(G, D, G, D, *optimizers, LOSSES[config.loss], augment, terms=terms, frozen_features=frozen)
    return gan, averages


def mixed_precision(network: nn.Module, precision: str) -> nn.Module:
    """Autocast as Accelerate does it."""
    dtype = HALF.get(precision)
    if dtype is not None:
        network.forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype)(network.forward))
        for module in network.modules():
            if isinstance(module, (nn.GroupNorm, nn.LayerNorm)):  # on CUDA autocast computes them in float32
                module.register_forward_pre_hook(lambda module, inputs: tuple(x.float() for x in inputs))
    return network


def fake_minibatch(config: Config, spec: SampleSpec, n: int, columns: int) -> list[Minibatch]:
    """A minibatch of `n` images, as micro-batches; D's view of each needs `columns` random numbers."""
    real = torch.empty(n, spec.height, spec.width, spec.channels).permute(0, 3, 1, 2)
    real = real if config.channels_last else real.contiguous()
    labels = example_labels(spec, n, torch.device("cpu"))
    u = torch.empty(n, columns)
    keys = torch.zeros(n, dtype=torch.long)
    batch = Minibatch(real, torch.empty(n, config.model.latent), labels, labels, u, u, u, torch.empty(n), keys, keys)
    if reads_pixels(config, spec):
        seen = spec.pixels
        batch = batch._replace(pixels=torch.empty(n, seen.channels, seen.height, seen.width))
    return split(batch, config.micro_batch or n)
