"""A CUDA graph's stand-in on a CPU: the operations of a call, recorded once and run again on the same tensors.

Like a graph it repeats the kernels with the memory that they had, and no line of Python: a number that was one when it
was recorded stays what it was.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distgan.training.captured import unchanged
from distgan.training.iteration import Iteration, Outcome


class Recorder(TorchDispatchMode):
    """Records operations with their arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple, dict, list[Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, tree_leaves(output)))
        return output

    @torch.no_grad()
    def replay(self) -> None:
        """Run all operations again; each result goes to the memory where the first one is."""
        for func, args, kwargs, outputs in self.operations:
            results = tree_leaves(func(*args, **kwargs))
            for output, result in zip(outputs, results, strict=True):
                if isinstance(output, Tensor) and output.data_ptr() != result.data_ptr():
                    output.copy_(result)


class RecordedCapture:
    """What a `CapturedIteration` captures with: a capture computes nothing that stays."""

    def __init__(self, iteration: Iteration) -> None:
        self.iteration = iteration
        self.captures = 0

    def __call__(self, run: Callable[[], Outcome]) -> tuple[Callable[[], None], Outcome]:
        self.captures += 1
        with unchanged(self.iteration), Recorder() as recorder:
            outcome = run()
        return recorder.replay, outcome
