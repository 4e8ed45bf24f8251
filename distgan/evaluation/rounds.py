"""Work in chunks on all processes: it ends on all of them when one fails, or is asked to stop."""

from collections.abc import Callable

from distgan.distributed.processes import Distributed

CHECK_EVERY = 4
"""Chunks of a process between two checks."""


class Stopped(Exception):
    """The work was given up on all processes, because one was asked to stop."""


def run_in_rounds(processes: Distributed, count: int, work: Callable[[int], None], stop: Callable[[], bool]) -> None:
    """Call `work(i)` for the i below `count` with i % world_size == rank, in order; called by all processes.

    All processes raise what the first failing one raises, or Stopped soon after `stop()` is true on one of them.
    """
    failure: Exception | None = None
    rounds, flag = -(-count // processes.world_size), 0
    for number in range(rounds):
        i, last = number * processes.world_size + processes.rank, number == rounds - 1
        if failure is None and i < count:
            try:
                work(i)
            except Exception as error:  # raised below: the others wait for this process until then
                failure = error
        if last or number % CHECK_EVERY == CHECK_EVERY - 1:
            flag = processes.all_reduce_max(2 if failure else int(not last and stop()))
            if flag:
                break

    def outcome() -> None:
        if failure is not None:
            raise failure

    processes.run_on_all(outcome)
    if flag:
        raise Stopped
