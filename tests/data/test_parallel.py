"""A map by threads: the order of the items, how far ahead it works, and how it ends."""

import contextlib
import threading
from collections.abc import Iterator

import pytest

from distgan.data.parallel import ParallelMap


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_the_order_of_the_items(threads):
    taken = []

    def items() -> Iterator[int]:
        for item in range(50):
            taken.append(item)
            yield item

    squares = ParallelMap(lambda item: item * item, items(), threads)
    assert next(squares) == 0
    assert len(taken) == 2 * threads + 1
    assert list(squares) == [item * item for item in range(1, 50)]
    assert next(squares, None) is None


@pytest.mark.parametrize("threads", [0, 2])
def test_an_error_is_raised_where_it_is_due_and_ends_the_iteration(threads):
    before = set(threading.enumerate())
    quotients = ParallelMap(lambda item: 6 // item, [3, 2, 0, 1], threads)
    assert [next(quotients), next(quotients)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(quotients)
    assert next(quotients, None) is None and set(threading.enumerate()) <= before


def test_closing_interrupts_the_running_calls_once_and_waits_for_them():
    stop, entered = threading.Event(), []

    @contextlib.contextmanager
    def interrupted() -> Iterator[None]:
        entered.append(set(threading.enumerate()))
        stop.set()
        yield

    before = set(threading.enumerate())
    waits = ParallelMap(lambda item: item == 0 or stop.wait(20), range(9), 2, interrupted)
    assert next(waits)
    waits.close()
    waits.close()
    assert len(entered) == 1 and set(threading.enumerate()) <= before
