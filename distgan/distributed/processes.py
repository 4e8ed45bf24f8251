"""The processes of a run: their start, the collectives between them, and what to say when one is lost."""

import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from distgan.config.keys import Config
from distgan.distributed.launch import check_devices, check_launcher, set_determinism
from distgan.errors import DistganError, RunError, UsageError, format_os_error

T = TypeVar("T")
TIMEOUT_SECONDS = float(os.environ.get("DISTGAN_TIMEOUT_SECONDS", 600))


class Distributed:
    """One process's view of the processes that `accelerate launch` started (one, if nothing was launched)."""

    def __init__(self, config: Config) -> None:
        check_launcher()
        check_devices()
        set_determinism(config)
        timeout = timedelta(seconds=TIMEOUT_SECONDS)
        try:  # set everything that Accelerate would otherwise take from environment variables
            self.accelerator = Accelerator(
                mixed_precision=config.precision,
                cpu=not torch.accelerator.is_available(),
                dynamo_backend="no",
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                # With the same time-out NCCL's watchdog would end the process before gloo's lets it name the lost one.
                kwargs_handlers=[InitProcessGroupKwargs(timeout=(2 if torch.cuda.is_available() else 1) * timeout)],
            )
        except ValueError as error:
            raise UsageError(f"the launch: {' '.join(str(error).split())}") from None
        kind = self.accelerator.distributed_type.value
        if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU"):
            raise UsageError(f"the launch: distgan uses DDP, but Accelerate is configured for {kind}")
        self.rank = self.accelerator.process_index
        self.world_size = self.accelerator.num_processes
        self.is_main_process = self.rank == 0
        self.device = self.accelerator.device
        if config.precision == "fp16" and self.device.type != "cuda":
            raise UsageError(f"precision: fp16 needs a CUDA GPU, and this run is on {self.device.type}; use bf16")
        launched = int(os.environ.get("WORLD_SIZE", 1))
        if launched != self.world_size:
            raise UsageError(
                f"the launcher started {launched} processes, but Accelerate sees {self.world_size}: each would be a "
                "separate run; check ACCELERATE_USE_CPU and the number of devices"
            )
        # Host-side collectives use gloo: they never wait for a GPU.
        self.cpu_group: Any = dist.new_group(backend="gloo", timeout=timeout) if self.world_size > 1 else None
        self._pending: tuple[Any, Tensor] | None = None

    def run_on_main(self, work: Callable[[], T]) -> T:
        """Run `work` on the main process and broadcast its result; all processes raise what it raises."""
        outcome: list[Any] = [None, None]
        if self.is_main_process:
            try:
                outcome[0] = work()
            except DistganError as error:
                outcome[1] = error
            except OSError as error:
                outcome[1] = RunError(format_os_error(error))
        if self.cpu_group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self.cpu_group)
        if outcome[1] is not None:
            outcome[1].on_all_ranks = True
            raise outcome[1]
        return outcome[0]

    def run_on_all(self, work: Callable[[], T]) -> T:
        """Run `work` on every process; all processes raise what the first failing one raises."""
        result: Any = None
        failure: tuple[bool, str] | None = None
        try:
            result = work()
        except (DistganError, OSError) as error:
            message = format_os_error(error) if isinstance(error, OSError) else str(error)
            failure = isinstance(error, UsageError), message
        for rank, failed in enumerate(self.all_gather_object(failure)):
            if failed is not None:
                usage, message = failed
                message = f"process {rank}: {message}" if rank else message
                error = UsageError(message) if usage else RunError(message)
                error.on_all_ranks = True
                raise error
        return result

    def all_gather_object(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        values: list[Any] = [value] * self.world_size
        if self.cpu_group is not None:
            dist.all_gather_object(values, value, group=self.cpu_group)
        return values

    def check_same_on_all_ranks(self, what: str, value: object) -> None:
        """Raises RunError on all processes if `value` differs between them."""
        values = self.all_gather_object(value)
        different = [rank for rank, other in enumerate(values) if other != values[0]]
        if different:
            error = RunError(f"{what} of process 0 and of process {different[0]} differ")
            error.on_all_ranks = True
            raise error

    def prepare_ddp(self, network: nn.Module, *inputs: Tensor | None) -> None:
        """Set up a network that Accelerate wrapped for DDP; one that is not wrapped stays as it is.

        D has two forwards before one backward: buffers are not broadcast, they stay as each forward left them. And
        DDP rebuilds its buckets after the first backward: a dummy backward here makes it reduce gradients in the same
        order before and after a resume. With more than two processes the position of a gradient in its bucket decides
        the order of its sum, and a resumed run would differ in the last bit.
        """
        raw = self.accelerator.unwrap_model(network)
        if raw is network:
            return
        if isinstance(network, nn.parallel.DistributedDataParallel):
            network.broadcast_buffers = False  # type: ignore[assignment] - as an argument it is deprecated
        before = {name: tensor.clone() for name, tensor in raw.state_dict().items()}
        output = network(*inputs)
        parts = output.values() if isinstance(output, Mapping) else [output]
        torch.stack([part.sum() for part in parts]).sum().backward()
        raw.zero_grad()
        raw.load_state_dict(before)

    def all_reduce_sum(self, value: int) -> int:
        """The sum over processes."""
        tensor = torch.tensor(value)
        if self.cpu_group is not None:
            dist.all_reduce(tensor, group=self.cpu_group)
        return int(tensor)

    def all_reduce_max(self, value: int) -> int:
        """The maximum over processes."""
        tensor = torch.tensor(value)
        if self.cpu_group is not None:
            dist.all_reduce(tensor, dist.ReduceOp.MAX, self.cpu_group)
        return int(tensor)

    def delayed_all_reduce_max(self, flag: int) -> int:
        """The maximum over processes of the flags of the previous call (of this call, on a single process).

        The all-reduce is asynchronous and its result comes one call later: all processes see it in the same iteration
        and none waits for it.
        """
        if self.cpu_group is None:
            return flag
        result = 0
        if self._pending is not None:
            work, tensor = self._pending
            work.wait()
            result = int(tensor)
        tensor = torch.tensor(flag)
        work: Any = dist.all_reduce(tensor, dist.ReduceOp.MAX, self.cpu_group, True)  # type: ignore[call-overload]
        self._pending = work, tensor
        return result

    def drain_pending(self) -> None:
        """Wait for the all-reduce that `delayed_all_reduce_max` started last, and drop its result."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None

    def to_pinned(self, values: np.ndarray) -> Tensor:
        """A tensor in pinned memory if the device copies from there asynchronously, else on the array's memory."""
        tensor = torch.from_numpy(values)
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def shutdown(self) -> None:
        self.drain_pending()
        self.accelerator.end_training()

    def peer_failure(self, error: Exception, latest: str) -> RunError:
        """The error to raise after a collective failed: names the processes that exited or hang.

        Each remaining process sets a key in the launcher's store; one that does not within five seconds is named.
        """
        missing = "another process"
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"alive/{self.rank}", "1")
            deadline = time.monotonic() + 5
            keys = {rank: f"alive/{rank}" for rank in range(self.world_size)}
            while time.monotonic() < deadline and not store.check(list(keys.values())):
                time.sleep(0.1)
            lost = [str(rank) for rank, key in keys.items() if not store.check([key])]
            missing = f"process {', '.join(lost)}" if lost else missing
        except (RuntimeError, dist.DistError):
            missing = "process 0" if self.rank else missing  # it hosts the store
        cause = (str(error).splitlines() or [""])[0][:200]
        return RunError(f"process {self.rank}: {missing} is unreachable (exited or hung); {latest} ({cause})")
