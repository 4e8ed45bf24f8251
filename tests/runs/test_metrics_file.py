"""metrics.jsonl: what a kill leaves behind, what a resume drops, and the curves that the page and `plot` draw."""

import pytest

from distgan.errors import UsageError
from distgan.runs.metrics_file import MetricsFile, metric_curves, scalar_curves


@pytest.fixture
def file(tmp_path) -> MetricsFile:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.append({"images": 10, "epoch": 1, "d_loss": 0.5})
    file.append({"images": 10, "card": {"metrics": {"fid": 3.0, "kid": {"value": 0.25}, "note": "text"}}})
    file.append({"images": 20, "epoch": 2, "d_loss": 0.25, "finite": True})
    return file


def test_without_a_file_there_is_nothing(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.truncate(10)
    assert file.records() == [] and file.cards() == [] and not file.path.exists()


def test_a_resume_drops_what_came_later(file):
    kept = file.path.read_bytes().splitlines(keepends=True)[:2]
    file.truncate(19)
    assert file.path.read_bytes() == b"".join(kept)


@pytest.mark.parametrize("line", ['{"images": 1', "[]", '{"epoch": 1}', '{"images": "9"}', ""])
def test_a_corrupt_line_is_named_and_a_resume_drops_it(file, line):
    before = file.records()
    with open(file.path, "a") as end:
        end.write(line + "\n")
    with pytest.raises(UsageError, match=r"metrics.jsonl: line 4 is not a line of distgan's"):
        file.records()
    file.truncate(20)
    assert file.records() == before


@pytest.mark.parametrize("line", ['{"images": 1', '{"images": 15}'])
def test_the_next_line_does_not_join_one_that_a_kill_cut_off(file, line):
    before = file.records()
    with open(file.path, "a") as end:
        end.write(line)
    assert file.records() == before
    file.truncate(20)
    file.append({"images": 30})
    assert file.records() == [*before, {"images": 30}]


def test_curves_are_of_numbers(file):
    assert scalar_curves(file.records()) == {"d_loss": ([10, 20], [0.5, 0.25])}
    assert metric_curves(file.records()) == {"fid": ([10], [3.0]), "kid": ([10], [0.25])}
    assert file.cards() == [(10, file.records()[1]["card"])]
