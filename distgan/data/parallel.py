"""A map by threads that work a few items ahead and keep the order."""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ParallelMap(Iterator[Result], Generic[Item, Result]):
    """`function` of each of `items`, in their order, computed by `threads` threads up to 2 `threads` items ahead.

    Without threads, the caller computes each result when it asks for it. An error of `function` is raised where its
    result is due, and ends the iteration.
    """

    def __init__(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        threads: int,
        interrupted: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        """`interrupted` makes a context manager, inside of which the running calls of `function` end soon."""
        self.function = function
        self.items = iter(items)
        self.threads = threads
        self.interrupted = interrupted
        self.pool = ThreadPoolExecutor(threads or 1, thread_name_prefix="distgan-read")  # its threads start with calls
        self.ahead: deque[Future[Result]] = deque()
        self.closed = False

    def __next__(self) -> Result:
        if self.closed:
            raise StopIteration
        try:
            if not self.threads:
                return self.function(next(self.items))
            for item in itertools.islice(self.items, 2 * self.threads + 1 - len(self.ahead)):
                self.ahead.append(self.pool.submit(self.function, item))
            if not self.ahead:
                raise StopIteration
            return self.ahead.popleft().result()
        except BaseException:  # the end of the items too
            self.close()
            raise

    def close(self) -> None:
        """End the iteration; waits for the calls that are running."""
        if not self.closed:
            self.closed = True
            with self.interrupted():
                self.pool.shutdown(cancel_futures=True)
