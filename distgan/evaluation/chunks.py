"""Work in chunks on all processes: it ends on all of them when one fails, or is asked to stop."""

from collections.abc import Callable

from distgan.distributed.processes import Distributed

CHECK_EVERY = 4
"""Chunks of a process between two checks."""


class Stopped(Exception):
    """The work was given up on all processes, because one was asked to stop."""


def run_chunks(processes: Distributed, count: int, work: Callable[[int], None], stop: Callable[[], bool]) -> None:
    """Call `work(chunk)` for the chunks below `count` with chunk % world_size == rank, in order.

    Called by all processes. All of them raise what the first failing one raises, or Stopped soon after `stop()` is
    true on one of them.
    """
    failure: Exception | None = None
    ended = 0
    turns = -(-count // processes.world_size)
    for turn in range(turns):
        chunk = turn * processes.world_size + processes.rank
        is_last = turn == turns - 1
        if failure is None and chunk < count:
            try:
                work(chunk)
            except Exception as error:  # raised below: the others wait for this process until then
                failure = error
        if is_last or turn % CHECK_EVERY == CHECK_EVERY - 1:
            ended = processes.all_reduce_max(2 if failure else int(not is_last and stop()))
            if ended:
                break

    def outcome() -> None:
        if failure is not None:
            raise failure

    processes.run_on_all(outcome)
    if ended:
        raise Stopped
