"""How every command is run: its errors in one line, and its exit codes."""

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from distgan.errors import INTERRUPTED, DistganError, UsageError, format_os_error, shorten_values


def run_command(command: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command on `argv` (default: the command line's). Returns the exit code.

    0: done. 2: bad input, named in one line. 1: the run failed, named likewise. 130: Ctrl-C. A bug keeps its traceback.
    With several processes all of them fail; only rank 0 prints.
    """
    try:
        command(list(sys.argv[1:] if argv is None else argv))
    except DistganError as error:
        message = f"distgan: {shorten_values(str(error))}"
        report_to_launcher(message)
        # All processes of a node read the same arguments and files: what is wrong there is printed once per node.
        printer = not isinstance(error, UsageError) or os.environ.get("LOCAL_RANK", "0") == "0"
        if os.environ.get("RANK", "0") == "0" or (printer and not error.on_all_ranks):
            print(message, file=sys.stderr, flush=True)
        return error.exit_code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process ends: another Ctrl-C would change its exit code
        print(INTERRUPTED, file=sys.stderr, flush=True)
        return 130
    except UnicodeDecodeError as error:
        print(f"distgan: a text file is not UTF-8: {error}", file=sys.stderr, flush=True)
        return 2
    except BrokenPipeError:  # `distgan shards order ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"distgan: {shorten_values(format_os_error(error))}", file=sys.stderr, flush=True)
        return 1
    except MemoryError:
        print("distgan: out of memory", file=sys.stderr, flush=True)
        return 1
    return 0


def run_distributed(command: Callable[[list[str]], None], argv: Sequence[str] | None = None) -> int:
    """`run_command` for a command of several processes; one that failed ends at once."""
    code = run_command(command, argv)
    distributed = sys.modules.get("torch.distributed")
    if code and distributed is not None and distributed.is_initialized():
        os._exit(code)  # torch's exit handlers would wait for processes that have failed too
    return code


@contextlib.contextmanager
def interrupt_exits() -> Iterator[None]:
    """Ctrl-C ends the process at once, with exit code 130: for imports, which have nothing to clean up.

    As an exception it may reach C++ code that imports something, which aborts, or a callback that loses it.
    """

    def end(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:  # as it is for a background job of a script
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def report_to_launcher(message: str) -> None:
    """Leave the message where the launcher of several processes looks for it: it prints it last, as the root cause."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        error = {"message": message, "extraInfo": {"py_callstack": message, "timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(file).write_text(json.dumps({"message": error}))
