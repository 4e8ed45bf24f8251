"""A call in a process of its own: a damaged file can crash the C libraries that read LMDB and HDF5."""

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from distgan.errors import UsageError

T = TypeVar("T")


def call_apart(function: Callable[[], T], where: str) -> T:
    """What `function` returns or raises in a forked process.

    Raises UsageError, which names the file `where`, if the process crashes.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=send_result, args=(function, sender))
    process.start()
    sender.close()  # else `recv` waits for it forever
    try:
        returned, value = receiver.recv()
    except EOFError:
        raise UsageError(f"{where}: it is corrupt: reading it crashed the library that reads it") from None
    finally:
        receiver.close()
        process.kill()
        process.join()
    if not returned:
        raise value
    return value


def send_result(function: Callable[[], Any], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes, and the parent ends this one
    try:
        result = (True, function())
    except Exception as error:  # C libraries document no exceptions
        result = (False, error)
    sender.send(result)
