"""How a run is asked to stop: signals, a file, the end of its launcher."""

import ctypes
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

from distgan.errors import INTERRUPTED, RunError, format_os_error

CONTROL_DIR = "DISTGAN_CONTROL_DIR"
"""Environment variable: the folder of the files that launch/train.sbatch and the run exchange."""


class StopRequest:
    """Whether this process was asked to stop: SIGTERM, SIGUSR1, Ctrl-C, a file, or the end of its launcher.

    A signal handler only sets a flag; the loop saves a checkpoint and stops. A second Ctrl-C ends the process at once,
    with exit code 130.
    The file is `stop` in one of `folders`; it is polled every `poll_seconds`.
    """

    def __init__(self, folders: Iterable[Path], poll_seconds: float = 2.0) -> None:
        self.reason: str | None = None
        self.files = [folder / "stop" for folder in folders]
        self.poll_seconds = poll_seconds
        self._polled = time.monotonic()
        self._interrupted = False
        signals = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self._previous = {number: signal.signal(number, self._on_signal) for number in signals}
        exit_with_launcher()

    def close(self) -> None:
        """Restore the signal handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            os.write(2, f"{INTERRUPTED}; run the same command to resume from the latest checkpoint, if any\n".encode())
            os._exit(130)
        self._interrupted = self._interrupted or number == signal.SIGINT
        self.reason = self.reason or signal.Signals(number).name

    def requested(self) -> bool:
        """Whether a stop was requested; `reason` then says how."""
        if self.reason is None and self.files and time.monotonic() - self._polled > self.poll_seconds:
            self._polled = time.monotonic()
            self.reason = next((f"the file {file}" for file in self.files if file.exists()), None)
        return self.reason is not None


class Requeue:
    """The files by which a run tells launch/train.sbatch what to do, in the folder $DISTGAN_CONTROL_DIR, if it is set.

    The user's stop file in the run folder ends a run for good, one in that folder is the cluster's.
    """

    def __init__(self) -> None:
        folder = os.environ.get(CONTROL_DIR)
        self.folder = Path(folder) if folder else None

    def folders(self, run_dir: Path) -> list[Path]:
        """Where a stop file may be."""
        return [run_dir, self.folder] if self.folder else [run_dir]

    def saved(self, images_seen: int) -> None:
        """A checkpoint is on disk."""
        self.write("saved", images_seen)

    def stopped(self, images_seen: int, reason: str, run_dir: Path) -> None:
        """The run stopped before its end: it is to be requeued, unless the user asked for it by a file."""
        if str(run_dir / "stop") in reason:
            (run_dir / "stop").unlink(missing_ok=True)
        else:
            self.write("stopped", images_seen)

    def write(self, name: str, images_seen: int) -> None:
        """Raises RunError."""
        if self.folder:
            try:
                (self.folder / name).write_text(f"{images_seen}\n")
            except OSError as error:
                raise RunError(f"${CONTROL_DIR}: {format_os_error(error)}") from None


def exit_with_launcher() -> None:
    """Have Linux send this process SIGTERM when `accelerate launch` dies before it (PR_SET_PDEATHSIG).

    A launcher of one process passes no signals on: if it is terminated, the run would keep the GPU and the run folder.
    """
    try:
        launched = b"accelerate" in Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        return  # not Linux
    if launched:
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)
