"""The table of runs: what differs, groups of seeds, comparable cards, and its files for a paper."""

import csv
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

import distgan.commands.report
from distgan.errors import UsageError
from distgan.page.build import read_runs
from distgan.page.export import export_table
from distgan.page.groups import FREE, differing_keys, group_name
from distgan.page.scores import scores_of
from distgan.page.table import Cell, Table, build_table, letters
from distgan.page.words import duration, mean_and_deviation, number


def card_of(images: int, extractor: str = "cnn", seed: int = 0, **metrics: float) -> dict[str, Any]:
    return {
        "metrics": metrics,
        "extractor": {"name": extractor, "sha256": extractor[0] * 64, "resize": "none"},
        "data": {"manifest": "d" * 64},
        "counts": {"generated": 1000, "reference": 900},
        "generator": {"images": images, "ema": True, "truncation_psi": 1.0},
        "seed": seed,
        "code": {"version": "0.1.0", "commit": "c" * 40},
    }


def write_run(folder: Path, *scores: float, images: int = 0, cards: list[dict] | None = None, **config: Any) -> Path:
    """A run with a card every 1,000 images, whose fid are `scores`; `images` seen, by default as many as its length."""
    config = {"images": 4000, "seed": 0, "loss": "bce", **config}
    rows: list[dict[str, Any]] = [
        {"images": 1000 * i, "epoch": i, "card": card_of(1000 * i, fid=score)} for i, score in enumerate(scores, 1)
    ]
    rows += [{"images": card["generator"]["images"], "card": card} for card in cards or []]
    seen = images or config["images"]
    rows += [{"images": seen, "epoch": 4, "images_per_second": 100.0}, {"images": seen, "warning": "D won"}]
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"run_dir": str(folder), **config}))
    return folder


def table_of(*folders: Path) -> Table:
    return build_table(read_runs(folders))


def cells(table: Table, row: int, child: int | None = None) -> dict[str, Cell]:
    found = table.rows[row] if child is None else table.rows[row].children[child]
    return dict(zip((column.label for column in table.columns), found.cells, strict=True))


def test_a_row_tells_what_differs_and_what_a_run_came_to(tmp_path):
    one = write_run(tmp_path / "one", 30, 10.5, 20, loss="hinge", report={"page": False})
    two = write_run(tmp_path / "two", 40, 25, 12, seed=3)
    table = table_of(one, two)
    assert [row.name for row in table.rows] == ["one", "two"] and not any(row.children for row in table.rows)
    labels = ["loss", "seed", "best fid", "last fid", "images seen", "training time", "images/s", "warnings"]
    assert [column.label for column in table.columns] == labels, "not run_dir, nor what is reported"
    first = cells(table, 0)
    assert (first["loss"].text, first["seed"].text) == ("hinge", "0")
    assert (first["best fid"].text, first["best fid"].note, first["best fid"].best) == ("10.5", "epoch 2", True)
    assert (first["last fid"].text, first["last fid"].best) == ("20", False) and cells(table, 1)["last fid"].best
    assert (first["images seen"].text, first["training time"].text) == ("4,000", "40 s")
    assert (first["images/s"].text, first["warnings"].text) == ("100", "1")
    assert table.notes == [
        "Metrics: extractor cnn cccccccc, resize none, 1,000 generated and 900 real images, data dddddddd, EMA of G, "
        "psi 1, seed 0, distgan 0.1.0 cccccccc"
    ]


def test_seeds_form_a_group_with_mean_and_deviation(tmp_path):
    scores = {2: (9.0, 9.5), 0: (8.0, 8.25), 1: (7.0, 9.0)}
    folders = [write_run(tmp_path / f"run{seed}", *values, seed=seed) for seed, values in scores.items()]
    table = table_of(*folders, write_run(tmp_path / "wide", 5, batch=128))
    assert [(row.name, row.note, row.runs) for row in table.rows] == [("run*", "3 runs", [1, 2, 0]), ("wide", "", [3])]
    group = cells(table, 0)
    assert group["seed"].text == "0, 1, 2" and group["batch"].text == "64", "the default of a key that is not there"
    best = group["best fid"]
    assert (best.text, best.value, best.note) == ("8.0 ± 1.0", 8, "7 to 9, n = 3")
    assert best.numbers == {"std": 1, "min": 7, "max": 9, "n": 3}
    last = [9.5, 8.25, 9.0]
    assert group["last fid"].value == pytest.approx(statistics.mean(last))
    assert group["last fid"].numbers["std"] == pytest.approx(statistics.stdev(last))
    assert [child.name for child in table.rows[0].children] == ["run0", "run1", "run2"]
    assert cells(table, 0, child=1)["best fid"].text == "7" and group["warnings"].text == "3"
    assert cells(table, 1)["best fid"].best and not best.best


def test_runs_without_a_value_or_an_end_are_in_no_mean(tmp_path):
    folders = [
        write_run(tmp_path / "a0", 8, seed=0),
        write_run(tmp_path / "a1", 6, seed=1),
        write_run(tmp_path / "a2", seed=2),
        write_run(tmp_path / "a3", 100, seed=3, images=1000),
    ]
    table = table_of(*folders)
    (row,) = table.rows
    assert row.note == "4 runs, 1 no metrics, 1 unfinished"
    best = cells(table, 0)["best fid"]
    assert (best.value, best.note) == (7, "6 to 8, n = 2 of 4") and best.numbers["n"] == 2
    assert [child.note for child in row.children] == ["", "", "no metrics", "unfinished"]
    assert table.notes[-1] == "Excluded from means: a2: no metrics; a3: unfinished: 1,000 of 4,000 images."
    alone = cells(table_of(*folders[2:]), 0)["best fid"]
    assert (alone.text, alone.note, alone.value) == ("–", "n = 0 of 2", None)


def test_cards_that_are_not_comparable_are_not_ranked_together(tmp_path):
    other = [card_of(1000, "inception", fid=1.0)]
    folders = [
        write_run(tmp_path / "a", 9),
        write_run(tmp_path / "b", 8, lr=1),
        write_run(tmp_path / "c", cards=other, lr=2),
        write_run(tmp_path / "d0", 5, lr=3),
        write_run(tmp_path / "d1", 7, lr=3, seed=1),
        write_run(tmp_path / "d2", cards=other, lr=3, seed=2),
    ]
    table = table_of(*folders)
    found = [cells(table, i)["best fid"] for i in range(4)]
    assert [(cell.value, cell.mark, cell.best) for cell in found] == [
        (9, "a", False),
        (8, "a", False),
        (1, "b", False),
        (6, "a", True),
    ]
    assert found[3].numbers["n"] == 2, "the run that another extractor measured is not in the mean"
    assert table.notes[0].startswith("a: extractor cnn") and table.notes[1].startswith("b: extractor inception")
    assert "not comparable" in table.notes[2]


def test_cards_in_the_folder_make_curves_and_the_most_frequent_kind_counts(tmp_path):
    run = write_run(tmp_path / "run", 30, 20)
    (run / "cards").mkdir()
    stray = [card_of(3000, fid=10.0), card_of(2000, fid=21.0), card_of(3000, seed=1, fid=2.0), {"metrics": {"fid": 1}}]
    for i, card in enumerate(stray):
        (run / "cards" / f"{i}.json").write_text(json.dumps(card))
    (found,) = read_runs([run])
    assert found["series"]["fid"] == [[1000, 2000, 3000], [30, 20, 10]], "the run's own value at 2,000"
    assert found["best"]["fid"]["value"] == 10 and found["measured"]["fid"]["left_out"] == 1
    assert build_table([found]).notes[-1].startswith("run: 1 values of cards that are not comparable")
    (run / "cards" / "5.json").write_text("{")
    with pytest.raises(UsageError, match=r"5.json is not a metric card"):
        read_runs([run])


def test_a_metric_of_two_kinds_once_each_is_that_of_the_newer():
    scores = scores_of([(1000, card_of(1000, fid=3.0)), (2000, card_of(2000, seed=1, fid=4.0))])
    assert scores["fid"].curve == ([2000], [4.0]) and scores["fid"].left_out == 1


def test_the_length_of_a_run_in_epochs_is_that_of_its_dataset(tmp_path, tiny):
    words = {"images": None, "epochs": 2, "batch": 16, "data": {"shards": str(tiny)}}
    run = write_run(tmp_path / "run", 5)
    (run / "config.yaml").write_text(yaml.safe_dump(words))
    assert read_runs([run])[0]["total_images"] == 160
    (run / "config.yaml").write_text(yaml.safe_dump(words | {"data": {"shards": str(tiny), "lanes": 12}}))
    assert read_runs([run])[0]["total_images"] == 144, "12 lanes of 6 images"
    (run / "config.yaml").write_text(yaml.safe_dump(words | {"data": {"shards": "s3://bucket/set"}}))
    assert read_runs([run])[0]["total_images"] is None


def test_thirty_runs_show_differing_keys_only(tmp_path):
    folders = [write_run(tmp_path / f"{i}", 5, batch=16 * (1 + i % 10), seed=i // 10) for i in range(30)]
    runs = read_runs(folders)
    table = build_table(runs)
    assert differing_keys(runs) == ["batch"] and len(table.rows) == 10
    assert {len(row.children) for row in table.rows} == {3} and table.rows[0].name == "0, 10, 20"


def test_keys_that_change_what_runs_come_to_are_not_free():
    assert {"run_dir", "samples", "report", "evaluate", "data.threads", "import"} <= set(FREE)
    assert not {"epochs", "images", "data.shards", "init_from", "seed", "data"} & set(FREE)


MARKDOWN = """\
| run | loss | seed | best fid | last fid | images seen | training time | images/s | warnings |
| :-- | :-- | :-- | --: | --: | --: | --: | --: | --: |
| s\\* (2 runs) | bce | 0, 1 | **7.50 ± 0.71** (7 to 8, n = 2) | \
**7.50 ± 0.71** (7 to 8, n = 2) | 4,000 | 40 s | 100 | 2 |
| w\\|x | hinge | 0 | 9 (epoch 1) | 11 | 4,000 | 40 s | 100 | 1 |

Metrics: extractor cnn cccccccc, resize none, 1,000 generated and 900 real images, data dddddddd, EMA of G, psi 1, \
seed 0, distgan 0.1.0 cccccccc
"""


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Two seeds and another run."""
    write_run(tmp_path / "sweep" / "s1", 8, seed=1)
    write_run(tmp_path / "sweep" / "s0", 7)
    write_run(tmp_path / "sweep" / "w|x", 9, 11, loss="hinge")
    return tmp_path / "sweep"


def test_a_folder_of_runs_makes_a_page_and_a_markdown_table(sweep, tmp_path, capsys):
    write_run(sweep / "s1.1", 1, seed=1)
    (sweep / "notes").mkdir()
    table = tmp_path / "runs.md"
    words = [str(sweep), "--out", str(tmp_path / "page.html"), "--table", str(table)]
    assert distgan.commands.report.main(words) == 0
    assert table.read_text() == MARKDOWN
    out = capsys.readouterr().out
    assert "moved aside, left out: s1.1 " in out and "page.html: 3 run(s)" in out
    assert distgan.commands.report.main([str(sweep), "--table", str(tmp_path / "runs.txt")]) == 2
    assert "runs.txt must end in .md or .csv" in capsys.readouterr().err


def test_a_csv_file_has_groups_and_runs_in_numbers(sweep, tmp_path):
    text = export_table(table_of(*sorted(sweep.iterdir())), tmp_path / "runs.csv")
    rows = list(csv.DictReader(text.splitlines()))
    assert [(row["run"], row["group"]) for row in rows[:-1]] == [("s*", ""), ("s0", "s*"), ("s1", "s*"), ("w|x", "")]
    group = rows[0]
    assert float(group["best fid"]) == 7.5 and float(group["best fid std"]) == pytest.approx(0.5**0.5)
    assert (group["best fid n"], rows[1]["best fid images"]) == ("2", "1000")
    assert float(rows[3]["training time, minutes"]) == pytest.approx(40 / 60, rel=1e-5)
    assert rows[-1]["run"].startswith("# Metrics: extractor cnn")


@pytest.mark.parametrize(
    ("mean", "deviation", "text"),
    [(7.678, 0.4899, "7.68 ± 0.49"), (0.758, 0.00321, "0.7580 ± 0.0032"), (1234.5, 12.3, "1,234 ± 12")]
    + [(1234.5, 345, "1,234 ± 345"), (5, 0, "5 ± 0"), (3e-9, 2e-10, "3.000e-09 ± 2.0e-10"), (1, float("nan"), "–")],
)
def test_means_have_the_digits_of_their_deviation(mean, deviation, text):
    assert mean_and_deviation(mean, deviation) == text


def test_numbers_names_and_letters():
    texts = [number(value) for value in (0.0, 12.0, 1234.56, 0.123456, 1.5e-5, 2.5e9 + 0.5, None, float("inf"))]
    assert texts == ["0", "12", "1,235", "0.1235", "1.50e-5", "2.50e9", "–", "–"]
    assert [duration(minutes) for minutes in (0.5, 59, 61)] == ["30 s", "59 min", "1 h 01 min"]
    assert [group_name(names) for names in (["x"], ["a-0", "a-1"], ["0", "1"], list("0123"))] == [
        "x",
        "a-*",
        "0, 1",
        "0 … 3",
    ]
    assert [letters(i) for i in (0, 25, 26, 27)] == ["a", "z", "aa", "ab"]
