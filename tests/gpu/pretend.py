"""A pretended CUDA device: torch's fake tensors as "cuda:0", and a record of what makes the host wait for it.

CPU tensors are real. CUDA tensors have a shape, dtype, strides and a device, but no values: an operation on both kinds
raises RuntimeError, as on a GPU. Where the host reads a value (`.item()`, `bool()`, a copy to the CPU) it gets a
made-up one, and `CudaDevice.waits` says where that was.
"""

import contextlib
import os
import pkgutil
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent.parent
PRIVATE_NAMES = (
    "torch._subclasses.fake_tensor.FakeTensor",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "torch._subclasses.fake_tensor.unset_fake_temporarily",
    "torch.autograd._engine_run_backward",
    "torch.cuda.amp.common.amp_definitely_not_available",
    "torch.nn.Module._apply",
    "torch.testing._internal.distributed.fake_pg.FakeStore",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._pytree.tree_leaves",
)
"""What the tests in this folder use of torch that its documentation does not promise."""


def missing_names() -> list[str]:
    missing = []
    for name in PRIVATE_NAMES:
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    return missing


def is_tested_torch() -> bool:
    """Whether this is the version of torch in .ci/constraints.txt, on which nothing may be skipped."""
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    return f"torch=={torch.__version__.split('+')[0]}" in [line.split("+")[0] for line in lines]


if (missing := missing_names()) and not is_tested_torch():
    pytest.skip(f"torch {torch.__version__} has no {', '.join(missing)}", allow_module_level=True)

from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402, F401
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

BATCHNORM_OUTPUTS = {
    torch.ops.aten.batch_norm_stats.default: 2,
    torch.ops.aten.batch_norm_elemt.default: 0,
    torch.ops.aten.batch_norm_backward_reduce.default: 4,
    torch.ops.aten.batch_norm_backward_elemt.default: 0,
}
"""SyncBatchNorm's kernels, which torch cannot pretend: how many tensors [C] they return; 0: one like the input."""

FUSED_ADAM = torch.ops.aten._fused_adam_.tensor_lr
"""Adam's kernel with the learning rate on the device, which torch cannot pretend either; it works in place."""


class CudaDevice(TorchDispatchMode):
    """What the host did to the pretended device, operation by operation."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        """Where and how the host waited for the device, or would have."""
        self.uploads = 0
        """Copies from host to device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        device = kwargs.get("device")
        if not any(isinstance(leaf, FakeTensor) for leaf in leaves) and torch.device(device or "cpu").type == "cpu":
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if torch.Tag.data_dependent_output in func.tags:
            self.wait(func.__name__)
            number = leaves[0]
            return False if number.dtype == torch.bool or func is torch.ops.aten.equal.default else 1
        if torch.Tag.dynamic_output_shape in func.tags:
            self.wait(func.__name__)
        if func in BATCHNORM_OUTPUTS:
            x, count = args[0], BATCHNORM_OUTPUTS[func]
            sums = tuple(torch.empty(x.shape[1], device=x.device) for _ in range(count))
            return sums or torch.empty_like(x)
        if func is FUSED_ADAM:
            if devices := {leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)} - {"cuda"}:
                raise RuntimeError(f"Expected all tensors to be on cuda:0, but found {devices}")
            return None
        output = func(*args, **kwargs)
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        return self.copied(func, args, kwargs, output) if copies else output

    def copied(self, func: Any, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        in_place = func is torch.ops.aten.copy_.default
        source, non_blocking = (args[1], args[2:3] == (True,)) if in_place else (args[0], False)
        non_blocking = kwargs.get("non_blocking", non_blocking)
        if source.device.type == output.device.type:
            return output
        name = f"copy of {list(source.shape)} from {source.device.type} to {output.device.type}"
        if not non_blocking:
            self.wait(f"blocking {name}")
        elif not source.is_cuda and not is_pinned(source):
            self.wait(f"pageable {name}")
        if output.is_cuda:
            self.uploads += 1
            return output
        with unset_fake_temporarily():
            return torch.zeros(output.shape, dtype=output.dtype)

    def wait(self, what: str) -> None:
        frames = [f for f in traceback.extract_stack() if f"{os.sep}torch{os.sep}" not in f.filename]
        inner = next((f for f in reversed(frames) if f.filename != __file__), frames[-1])
        self.waits.append(f"{Path(inner.filename).name}:{inner.lineno}: {what}")


def is_pinned(tensor: Tensor) -> bool:
    return getattr(tensor, "pretended_pinned", False)


def pin(tensor: Tensor, *_: Any) -> Tensor:
    """Tensor.pin_memory, which asks a driver for page-locked memory."""
    pinned = tensor.clone()
    pinned.pretended_pinned = True  # type: ignore[attr-defined]
    return pinned


def run_backward(outputs: Any, gradients: Any, *_: Any, **__: Any) -> tuple:
    """torch's autograd engine, in Python: the one in C++ asks the CUDA driver for streams."""
    pending: dict[Any, int] = {}  # gradients that a node still waits for
    received: dict[Any, list[Tensor | None]] = {}
    seen, stack = set(), [output.grad_fn for output in outputs]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            successors = [after for after, _ in node.next_functions if after is not None]
            for after in successors:
                pending[after] = pending.get(after, 0) + 1
            stack += successors

    def send(node: Any, index: int, gradient: Tensor | None) -> None:
        inputs = node._input_metadata
        slots = received.setdefault(node, [None] * len(inputs))
        if gradient is not None:
            gradient = gradient.sum_to_size(inputs[index].shape).to(inputs[index].dtype)
            before = slots[index]
            slots[index] = gradient if before is None else before + gradient

    with torch.no_grad():
        for output, gradient in zip(outputs, gradients, strict=True):
            send(output.grad_fn, output.output_nr, gradient)
        ready = [output.grad_fn for output in outputs]
        while ready:
            node = max(ready, key=lambda node: node._sequence_nr())
            ready.remove(node)
            results = getattr(node, "apply", node)(*received.pop(node))
            results = results if isinstance(results, tuple) else (results,)
            for (after, index), result in zip(node.next_functions, results, strict=False):
                if after is not None:
                    send(after, index, result)
                    pending[after] -= 1
                    ready += [after] if not pending[after] else []
            del results
    return ()


@contextlib.contextmanager
def cuda_device() -> Iterator[CudaDevice]:
    """Accelerate's device is "cuda:0", and the CUDA tensors made inside are pretended."""
    empty, apply, device = torch.empty, nn.Module._apply, CudaDevice()

    class Event:
        """torch.cuda.Event: not ready when first asked."""

        queries = 0

        def record(self, *_: Any) -> None:
            pass

        def query(self) -> bool:
            self.queries += 1
            return self.queries > 2

        def synchronize(self) -> None:
            device.wait("Event.synchronize")

    def empty_pinned(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        return pin(empty(*size, **options)) if pin_memory else empty(*size, **options)

    def apply_to_real(module: nn.Module, *words: Any, **options: Any) -> nn.Module:
        """Accelerate moves a network to the device where it is already; torch refuses to exchange fake parameters."""
        moved = any(isinstance(parameter, FakeTensor) for parameter in module.parameters())
        return module if moved else apply(module, *words, **options)

    with contextlib.ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")  # by copy.deepcopy, for EMA
        stack.enter_context(mock.patch.dict(os.environ, ACCELERATE_TORCH_DEVICE="cuda:0"))
        patch(torch, "empty", empty_pinned)
        patch(Tensor, "pin_memory", pin)
        patch(nn.Module, "_apply", apply_to_real)
        patch(torch.autograd, "_engine_run_backward", run_backward)
        patch(torch.cuda, "Event", Event)
        patch(torch.cuda, "synchronize", lambda *_: device.wait("torch.cuda.synchronize"))
        patch(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch(torch.cuda, "max_memory_reserved", lambda *_: 0)
        patch(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(device)
