"""The processes of a run: their start, what they agree on, and how a run is asked to stop."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from distgan import RunError, UsageError, format_os_error

T = TypeVar("T")
TIMEOUT_SECONDS = float(os.environ.get("DISTGAN_TIMEOUT_SECONDS", 600))


class Distributed:
    """The processes that `accelerate launch` started (one, where nothing was launched), seen from one of them."""

    def __init__(self, precision: str, *, tensorboard_dir: Path | None = None) -> None:
        if precision == "fp16" and not torch.cuda.is_available():
            raise UsageError("precision: fp16 needs a CUDA GPU; bf16 works on a CPU too")
        timeout = timedelta(seconds=TIMEOUT_SECONDS)
        try:  # Everything that Accelerate would else take from its environment is said here.
            self.accelerator = Accelerator(
                mixed_precision=precision,
                cpu=not torch.accelerator.is_available(),
                dynamo_backend="no",
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                log_with="tensorboard" if tensorboard_dir else None,
                project_dir=tensorboard_dir,
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout)],
            )
        except ValueError as error:
            raise UsageError(f"the launch: {' '.join(str(error).split())}") from None
        kind = self.accelerator.distributed_type.value
        if kind not in ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU"):
            raise UsageError(f"the launch: distgan runs on DistributedDataParallel, Accelerate was set up for {kind}")
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.main = self.rank == 0
        self.device = self.accelerator.device
        launched = int(os.environ.get("WORLD_SIZE", 1))
        if launched != self.world:
            raise UsageError(
                f"the launcher started {launched} processes, Accelerate sees {self.world}: each would be a run of its "
                "own. Is ACCELERATE_USE_CPU set, or a device missing?"
            )
        # What the hosts tell each other goes over gloo: it never waits for a GPU.
        self.hosts: Any = dist.new_group(backend="gloo", timeout=timeout) if self.world > 1 else None
        self._pending: tuple[Any, Tensor] | None = None

    def on_main(self, work: Callable[[], T]) -> T:
        """The result of `work` on the main process, for all; what it raises is raised in all."""
        outcome: list[Any] = [None, None]
        if self.main:
            try:
                outcome[0] = work()
            except (UsageError, RunError) as error:
                outcome[1] = error
            except OSError as error:
                outcome[1] = RunError(format_os_error(error))
        if self.hosts is not None:
            dist.broadcast_object_list(outcome, src=0, group=self.hosts)
        if outcome[1] is not None:
            outcome[1].on_all_ranks = True
            raise outcome[1]
        return outcome[0]

    def agreed(self, work: Callable[[], T]) -> T:
        """What `work` gives to this process; raised in all what it raises in any."""
        result: Any = None
        kind, error = "", ""
        try:
            result = work()
        except (UsageError, RunError, OSError) as fault:
            kind = "input" if isinstance(fault, UsageError) else "failed"
            error = format_os_error(fault) if isinstance(fault, OSError) else str(fault)
        for rank, (its_kind, its_error) in enumerate(self.everybodys((kind, error))):
            if its_kind:
                what = f"process {rank}: {its_error}" if rank else its_error
                raised = UsageError(what) if its_kind == "input" else RunError(what)
                raised.on_all_ranks = True
                raise raised
        return result

    def everybodys(self, value: T) -> list[T]:
        """What each process holds, by rank."""
        values: list[Any] = [value] * self.world
        if self.hosts is not None:
            dist.all_gather_object(values, value, group=self.hosts)
        return values

    def same(self, what: str, value: object) -> None:
        """Stop where the processes hold different values of `value`."""
        values = self.everybodys(value)
        odd = [rank for rank, other in enumerate(values) if other != values[0]]
        if odd:
            failed = RunError(f"{what} of process 0 and of process {odd[0]} differ")
            failed.on_all_ranks = True
            raise failed

    def settle(self, network: nn.Module, *inputs: Tensor | None) -> None:
        """Make a wrapped network fix the order in which it sums gradients over processes, with a backward for nothing.

        DistributedDataParallel lays its buckets out anew after the first backward. With more than two processes the
        place of a gradient in its bucket decides the order of its sum, so that a continued run would differ from an
        undisturbed one in the last bit.
        """
        inner = self.accelerator.unwrap_model(network)
        if inner is network:
            return
        # BatchNorm's buffers stay as each forward left them: D has two forwards before one backward. In newer versions
        # of torch this switch is a property of another name.
        network.broadcast_buffers = False  # type: ignore[assignment]
        before = {name: tensor.clone() for name, tensor in inner.state_dict().items()}
        network(*inputs).sum().backward()
        inner.zero_grad()
        inner.load_state_dict(before)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes of a tensor on the device."""
        if self.world == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.world

    def total(self, value: int) -> int:
        """The sum over processes."""
        tensor = torch.tensor(value)
        if self.hosts is not None:
            dist.all_reduce(tensor, group=self.hosts)
        return int(tensor)

    def most_soon(self, flag: int) -> int:
        """The highest flag that any process raised at its last call: asked now, answered at the next call.

        The exchange runs behind the iteration, so that all processes learn of a stop at the same iteration and
        none waits for it.
        """
        if self.hosts is None:
            return flag
        answer = 0
        if self._pending is not None:
            work, tensor = self._pending
            work.wait()
            answer = int(tensor)
        tensor = torch.tensor(flag)
        work: Any = dist.all_reduce(tensor, dist.ReduceOp.MAX, self.hosts, True)  # type: ignore[call-overload]
        self._pending = work, tensor
        return answer

    def average_statistics(self, networks: Iterable[nn.Module]) -> None:
        """Give all processes the mean of the running statistics that each BatchNorm collected from its own images.

        After every iteration: what a checkpoint holds, and what a run continues with, is then the same everywhere.
        """
        if self.world == 1:
            return
        modules = [module for network in networks for module in network.modules() if type(module) is nn.BatchNorm2d]
        buffers = [b for module in modules for b in (module.running_mean, module.running_var) if b is not None]
        if not buffers:
            return
        flat = self.mean(torch.cat([b.flatten() for b in buffers]))
        for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view_as(buffer))

    def wait(self) -> None:
        if self.hosts is not None:
            dist.barrier(group=self.hosts)

    def lost(self, error: Exception) -> RunError:
        """What to say when an exchange broke off: which processes are gone, or hang.

        Each that is left signs in at the launcher's store; who does not within five seconds is named.
        """
        missing = "another process"
        try:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"left/{self.rank}", "1")
            deadline = time.monotonic() + 5
            keys = {rank: f"left/{rank}" for rank in range(self.world)}
            while time.monotonic() < deadline and not store.check(list(keys.values())):
                time.sleep(0.1)
            gone = [str(rank) for rank, key in keys.items() if not store.check([key])]
            missing = f"process {', '.join(gone)} (counted from 0)" if gone else missing
        except (RuntimeError, dist.DistError):
            missing = "process 0" if self.rank else missing  # the store went with it
        what = (str(error).splitlines() or [""])[0][:200]
        return RunError(f"process {self.rank}: {missing} is gone or hangs; the last checkpoint stands ({what})")

    def forget(self) -> None:
        """Drop the answer that `most_soon` still owes."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None

    def end(self) -> None:
        self.forget()
        self.accelerator.end_training()


def follow_launcher() -> None:
    """Have Linux send this process a SIGTERM when `accelerate launch` ends before it.

    A launcher of one process passes no signal on: ended by one, it would leave the run behind, with the device and
    the run folder.
    """
    try:
        launched = b"accelerate" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return  # not Linux
    if launched:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Stop:
    """Whether somebody asked this process to stop: SIGTERM, SIGUSR1, Ctrl-C, a file, or the end of its launcher.

    A handler only sets a flag; the loop saves at its own pace. A second Ctrl-C ends the process at once.
    The file is `stop` in the run folder or in $DISTGAN_CONTROL_DIR, seen by the main process within `look_seconds`.
    """

    def __init__(self, folders: Iterable[Path], look_seconds: float = 2.0) -> None:
        self.reason: str | None = None
        self.files = [folder / "stop" for folder in folders]
        self.look_seconds, self._looked = look_seconds, time.monotonic()
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self._before = {number: signal.signal(number, self._on_signal) for number in numbers}
        follow_launcher()

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.reason = self.reason or signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def asked(self) -> bool:
        if self.reason is None and self.files and time.monotonic() - self._looked > self.look_seconds:
            self._looked = time.monotonic()
            self.reason = next((f"the file {file}" for file in self.files if file.exists()), None)
        return self.reason is not None
