"""The key `graph`: whole iterations as CUDA graphs, one for each set of due penalties."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from distgan.errors import UsageError
from distgan.gan.parts import Batches, GPenalties, Minibatch, Penalties
from distgan.training.iteration import Iteration, Outcome

WARM_UP = 3
"""Iterations before a capture: libraries choose their kernels, and optimizers make their state."""

Replay = Callable[[], object]
Capture = Callable[[Callable[[], Outcome]], tuple[Replay, Outcome]]
"""(iteration without arguments) -> (what runs it again on the same tensors, the tensors that it returns)"""


class CapturedIteration:
    """An `Iteration` that the host starts as a whole.

    Minibatches are copied into the same tensors each time; all else that changes is a tensor already. The first
    iteration with a set of penalties, whose names are all different, is run a few times, undone, and captured.
    """

    def __init__(self, iteration: Iteration, capture: Capture | None = None) -> None:
        self.iteration = iteration
        self.capture = capture or CudaCapture()
        self.inputs: Batches | None = None
        self.captured: dict[tuple[str, ...], tuple[Replay, Outcome]] = {}

    def __call__(self, batches: Batches, penalties: Penalties, g_penalties: GPenalties) -> Outcome:
        if self.inputs is None:
            self.inputs = map_tensors(torch.clone, batches)
        copy_inputs(self.inputs, batches)
        names = (*penalties, *g_penalties)
        if names not in self.captured:
            self.captured[names] = self.prepare(self.inputs, penalties, g_penalties)
        replay, outcome = self.captured[names]
        replay()
        # copies, in one launch: the next replay writes into the same tensors
        values = torch.stack(list(outcome.scalars.values())).unbind()
        return Outcome(dict(zip(outcome.scalars, values, strict=True)), outcome.norms.clone())

    def prepare(self, inputs: Batches, penalties: Penalties, g_penalties: GPenalties) -> tuple[Replay, Outcome]:
        """Warm up, which changes nothing, and capture, which computes nothing."""

        def run() -> Outcome:
            return self.iteration(inputs, penalties, g_penalties)

        with unchanged(self.iteration), side_stream():
            for _ in range(WARM_UP):
                run()
        for optimizer in self.iteration.optimizers:
            optimizer.zero_grad()  # gradients of the warm-up do not belong to the graph
        return self.capture(run)


class CudaCapture:
    """Captures what it is given as a CUDA graph; all graphs share their memory."""

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, run: Callable[[], Outcome]) -> tuple[Replay, Outcome]:
        graph = torch.cuda.CUDAGraph()
        try:
            # other threads, which read images into pinned memory, may allocate meanwhile
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
                outcome = run()
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise UsageError(f"graph: the iteration cannot be captured: {reason}; set graph to false") from error
        # nothing in the graphs' own memory is read after the next replay of any of them
        self.pool = graph.pool()
        return graph.replay, outcome


@contextlib.contextmanager
def side_stream() -> Iterator[None]:
    """Another stream than the default one, which cannot be captured; nothing where there is no GPU."""
    if not torch.cuda.is_available():
        yield
        return
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream().wait_stream(stream)


@contextlib.contextmanager
def unchanged(iteration: Iteration) -> Iterator[None]:
    """Restore on exit, in place, all tensors that an iteration changes; what it has made in between becomes zero."""
    iteration.init_loss_scale()
    saved = {id(tensor): (tensor, tensor.detach().to("cpu", copy=True)) for tensor in iteration.state()}
    yield
    with torch.no_grad():
        for tensor in iteration.state():
            before = saved.get(id(tensor))
            if before is None:
                tensor.zero_()  # a moment of Adam or its number of steps
            else:
                tensor.copy_(before[1])


def map_tensors(function: Callable[..., Tensor], *batches: Batches) -> Batches:
    """The same structure with the function's results in place of the tensors."""

    def map_minibatch(*minibatches: Minibatch) -> Minibatch:
        columns = zip(*minibatches, strict=True)
        tensors: list[Any] = [None if column[0] is None else function(*column) for column in columns]
        return Minibatch(*tensors)

    def map_all(*micro_batches: Any) -> list[Minibatch]:
        return [map_minibatch(*each) for each in zip(*micro_batches, strict=True)]

    d = [map_all(*each) for each in zip(*[each.d for each in batches], strict=True)]
    g = None if batches[0].g is None else map_all(*[each.g for each in batches])
    return Batches(d, g)


def copy_inputs(inputs: Batches, batches: Batches) -> None:
    """Copy the minibatches into `inputs`; does not wait for the device."""
    map_tensors(Tensor.copy_, inputs, batches)
