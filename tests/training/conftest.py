"""Fixtures of runs whose iterations are compiled or captured."""

from typing import Any

import pytest
from gpu.recorded_graph import RecordedCapture
from torch._dynamo.utils import counters

from distgan.training import build, loop
from distgan.training.captured import CapturedIteration
from distgan.training.iteration import Iteration


@pytest.fixture
def captures(monkeypatch) -> list[RecordedCapture]:
    """Lets a run with `graph` go on a CPU; the captures of its loops."""
    made: list[RecordedCapture] = []

    def capture(iteration: Iteration) -> CapturedIteration:
        made.append(RecordedCapture(iteration))
        return CapturedIteration(iteration, made[-1])

    monkeypatch.setattr(build, "check_graph", lambda config, device: None)
    monkeypatch.setattr(loop, "CapturedIteration", capture)
    return made


@pytest.fixture
def graphs(monkeypatch) -> list[int]:
    """How many graphs were compiled by the end of each iteration from now on."""
    found: list[int] = []
    call = Iteration.__call__

    def count(self: Iteration, *arguments: Any) -> Any:
        outcome = call(self, *arguments)
        found.append(counters["stats"]["unique_graphs"])
        return outcome

    monkeypatch.setattr(Iteration, "__call__", count)
    counters.clear()
    return found
