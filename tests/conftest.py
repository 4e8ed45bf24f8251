"""Fixtures of all tests."""

import signal
from collections.abc import Iterator

import pytest
import torch

from shared import folder_of_images, small_disk, tiny, trained  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def default_signals() -> Iterator[None]:
    """What a process on a terminal has, and the processes that tests start inherit.

    A background job of a script ignores SIGINT, and one under nohup or some CI runners other signals.
    """
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGUSR1: signal.SIG_DFL,
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def seed() -> None:
    """A test that draws random tensors draws the same ones in every run."""
    torch.manual_seed(0)
