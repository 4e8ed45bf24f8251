"""The page of a run: what is in it, what it leaves out, and how it behaves in Chromium."""

import base64
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import distgan.commands.report
from browser import Browser, chromium
from distgan.errors import UsageError
from distgan.evaluation.card import better
from distgan.images import save_picture
from distgan.page import grids as page_grids
from distgan.page.build import build_page, group_of, sections, write_page
from distgan.page.data import clock, thin


def write_run(folder: Path, *, lines: int = 40, grids: int = 3, fid: float = 10.0, size: int = 24, **config) -> Path:
    """A run folder with curves, a metric card every tenth line, a warning, a changed key and grids."""
    rows = []
    for i in range(1, lines + 1):
        images, epoch = 1000 * i, i // 10 + 1
        row = {"images": images, "epoch": epoch, "d_loss": 1 / i, "g_loss": 2 + 1 / i, "d_real": 0.8, "d_fake": 0.2}
        rows.append({**row, "images_per_second": 500.0, "memory_gb": 1.5, "skipped": 0, "time": 1.7e9 + 2 * i})
        if i % 10 == 0:
            scores = {"fid": fid + (i - 30) ** 2 / 100, "recall": i / 100, "odd": i}
            rows.append({"images": images, "epoch": epoch, "card": {"metrics": scores, "extractor": {"name": "cnn"}}})
    rows.insert(20, {"images": 20_000, "warning": "D(x) - D(G(z)) is 0.9"})
    rows.insert(25, {"images": 25_000, "override": {"seed": [0, 1]}})
    (folder / "samples").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.yaml").write_text(yaml.safe_dump({"epochs": 4, "seed": 0, "loss": "bce", **config}))
    (folder / "environment.json").write_text(json.dumps({"device": "cpu", "libraries": {"torch": "2"}}))
    for i in range(grids):
        save_picture(np.full((size, size, 3), 40 * i % 256, np.uint8), folder / "samples" / f"fake-{i + 1:04d}.png")
    save_picture(np.full((size, size, 3), 255, np.uint8), folder / "samples" / "real.png")
    return folder


def data_of(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found
    return json.loads(found[1])


def picture(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_what_a_run_wrote_is_on_its_page(tmp_path):
    page = data_of(build_page([write_run(tmp_path / "run", batch=32)]))
    (run,) = page["runs"]
    assert (run["name"], run["images"], run["epoch"], run["epochs"]) == ("run", 40_000, 5, 4)
    assert run["series"]["d_loss"] == [[1000 * i for i in range(1, 41)], [float(f"{1 / i:.6g}") for i in range(1, 41)]]
    assert "skipped" not in run["series"], "it is 0 throughout"
    assert run["series"]["fid"] == [[10_000, 20_000, 30_000, 40_000], [14, 11, 10, 11]]
    assert run["best"] == {
        "fid": {"images": 30_000, "value": 10, "epoch": 4},
        "recall": {"images": 40_000, "value": 0.4, "epoch": 5},
    }
    assert run["last"]["odd"]["value"] == 40 and page["better"] == {"fid": "lower", "recall": "higher", "odd": None}
    assert run["card"] == {"extractor.name": "cnn"}
    assert [(event["kind"], event["images"]) for event in run["events"]] == [("warning", 20_000), ("override", 25_000)]
    assert run["events"][1]["text"] == "seed 0 → 1"
    assert [grid["epoch"] for grid in run["grids"]["fakes"]] == [1, 2, 3] and run["grids"]["note"] == ""
    assert run["environment"]["libraries.torch"] == "2" and run["config"]["changed"] == ["batch", "epochs"]
    assert [section["id"] for section in page["sections"]] == ["metrics", "training", "speed"]


def test_a_page_names_no_host_and_forbids_requests(tmp_path):
    page = build_page([write_run(tmp_path / "run")])
    urls = set(re.findall(r"""\b(?:https?:)?//[\w.-]+\.\w+[^\s"'`)]*""", page))
    assert urls == {"http://www.w3.org/2000/svg"}, "the name space of SVG is no address"
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:" in page
    assert "<link" not in page.replace('<link rel="icon" href="data:,">', "") and " src=" not in page


def test_text_of_a_run_cannot_end_the_script(tmp_path):
    folder = write_run(tmp_path / "<i>run", model="</script><script>alert(1)</script>", loss="{{data}}")
    page = build_page([folder])
    assert page.count("</script>") == 2 and "<title>&lt;i&gt;run - distgan</title>" in page
    assert data_of(page)["runs"][0]["config"]["values"]["model"] == "</script><script>alert(1)</script>"


def test_values_that_json_lacks_become_gaps(tmp_path):
    folder = write_run(tmp_path / "run")
    with open(folder / "metrics.jsonl", "a") as file:
        card = '{"metrics": {"fid": -Infinity}, "extractor": {"name": "cnn"}, "kl": Infinity}'
        file.write(f'{{"images": 41000, "d_loss": NaN, "card": {card}}}\n')
    (run,) = data_of(build_page([folder]))["runs"]
    assert run["series"]["d_loss"][1][-1] is None and run["last"]["fid"]["value"] is None
    assert run["best"]["fid"]["value"] == 10 and run["card"]["kl"] is None


def test_a_line_that_is_being_written_is_left_out_and_a_corrupt_one_named(tmp_path):
    folder = write_run(tmp_path / "run", lines=2)
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines + '{"images": 99')
    assert data_of(build_page([folder]))["runs"][0]["images"] == 2000 + 23_000  # that of the changed key
    for line in ('{"images": 99', "[]", '{"epoch": 1}', '{"images": "9"}'):
        (folder / "metrics.jsonl").write_text(f"{lines}{line}\n{lines}")
        with pytest.raises(UsageError, match=r"metrics.jsonl: line 5 is not"):
            build_page([folder])


def test_scalars_that_belong_together_share_a_chart():
    names = "d_loss g_loss d_real d_fake logit_real logit_fake penalty/r1 penalty/r2 g_lr d_lr memory_gb r1".split()
    charts = {chart["title"]: chart["names"] for one in sections(sorted(names), ["fid"]) for chart in one["charts"]}
    assert charts == {
        "fid": ["fid"],
        "Losses": ["d_loss", "g_loss"],
        "D(x) and D(G(z))": ["d_real", "d_fake"],
        "logit_real, fake": ["logit_real", "logit_fake"],
        "penalty": ["penalty/r1", "penalty/r2"],
        "r1": ["r1"],
        "Learning rates": ["d_lr", "g_lr"],
        "Peak memory of a process, GB": ["memory_gb"],
    }
    assert group_of("d_grad_norm") == group_of("g_grad_norm") == "grad_norm"


def test_long_curves_keep_their_spikes():
    values = [math.sin(i / 500) for i in range(20_000)]
    values[12_345], values[54], values[77] = 9.0, -9.0, math.nan
    images, kept = thin((list(range(20_000)), values), 2000)
    assert len(images) <= 2002 and images == sorted(images) and (images[0], images[-1]) == (0, 19_999)
    assert kept[images.index(12_345)] == 9 and kept[images.index(54)] == -9
    assert thin(([1, 2], [3.0, 4.0])) == ([1, 2], [3.0, 4.0])


def test_the_clock_counts_training_only():
    assert clock(([600, 1200, 1800], [10.0, 5.0, 0.0])) == ([0, 600, 1200, 1800], [0, 1, 3, 3])


@pytest.mark.parametrize(
    ("name", "direction"),
    [("fid", "lower"), ("KID", "lower"), ("fid_std", None), ("frechet (digits)", "lower"), ("modes", "higher")]
    + [("missing_classes", "lower"), ("inception_score", "higher"), ("real_share", "higher"), ("hiss", None)]
    + [("kd_classifier", "lower"), ("kd_std_classifier", None), ("confident", "higher")],
)
def test_better_is_known_by_the_metrics_name(name, direction):
    assert better(name) == direction


def test_many_grids_are_reduced_and_the_page_says_so(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", lines=1, grids=25, size=500)
    grids = data_of(build_page([folder]))["runs"][0]["grids"]
    sizes = [picture(grid["src"]).size for grid in grids["fakes"]]
    assert sizes == [(384, 384)] * 24 + [(500, 500)] and picture(grids["real"]).size == (500, 500)
    assert grids["note"].startswith("All 25 grids, all but the newest reduced to 384 pixels")
    monkeypatch.setattr(page_grids, "MAX_GRIDS", 10)
    grids = data_of(build_page([folder]))["runs"][0]["grids"]
    assert [grid["epoch"] for grid in grids["fakes"]] == [1, 5, 9, 13, 17, 21, 25]
    assert grids["note"].startswith("7 of 25 grids")


def test_half_epochs_come_in_order(tmp_path):
    folder = write_run(tmp_path / "run", grids=2)
    (folder / "samples" / "fake-0002.png").rename(folder / "samples" / "fake-0001_5.png")
    (folder / "samples" / "fake-mine.png").write_bytes(b"not one of the run's")
    grids = data_of(build_page([folder]))["runs"][0]["grids"]
    assert [grid["epoch"] for grid in grids["fakes"]] == [1, 1.5]


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    folders = [write_run(tmp_path / name, lines=1) for name in ("a/run", "b/run", "other")]
    assert [run["name"] for run in data_of(build_page(folders))["runs"]] == ["a/run", "b/run", "other"]
    with pytest.raises(UsageError, match="given twice"):
        build_page([folders[0], folders[0]])


def test_a_run_writes_its_page_and_the_command_compares_two(trained, tmp_path, capsys):
    run = trained("--epochs", 2)
    before = (run / "report.html").read_text()
    data = data_of(before)["runs"][0]
    assert data["images"] == 160 and [grid["epoch"] for grid in data["grids"]["fakes"]] == [1, 2]
    with Image.open(run / "samples" / "fake-0002.png") as image:
        assert picture(data["grids"]["fakes"][1]["src"]).tobytes() == image.tobytes()
    other = trained("--epochs", 1, "--report.page", "false", name="other")
    assert not (other / "report.html").exists()
    out = tmp_path / "both.html"
    assert distgan.commands.report.main([str(run), str(other), "--out", str(out)]) == 0
    assert f"{out}: 2 run(s)" in capsys.readouterr().out
    assert [one["name"] for one in data_of(out.read_text())["runs"]] == ["run", "other"]
    assert distgan.commands.report.main([str(run)]) == 0 and (run / "report.html").read_text() == before


def test_what_the_command_refuses(tmp_path, capsys):
    run = write_run(tmp_path / "run", lines=1)
    (tmp_path / "empty").mkdir()
    assert distgan.commands.report.main([str(tmp_path / "empty")]) == 2
    assert "neither metrics.jsonl nor config.yaml is there; give a run folder" in capsys.readouterr().err
    assert distgan.commands.report.main([str(run), "--out", str(tmp_path / "none" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    (run / "environment.json").write_text("{")
    assert distgan.commands.report.main([str(run)]) == 2
    assert "environment.json is corrupt" in capsys.readouterr().err


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def page(tmp_path) -> Path:
    return write_page(write_run(tmp_path / "run"))


@pytest.fixture
def comparison(tmp_path) -> Path:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", lines=20, grids=2, fid=12, loss="hinge")]
    (tmp_path / "report.html").write_text(build_page(folders))
    return tmp_path / "report.html"


def check_quiet(browser: Browser, page: Path) -> None:
    """Nothing on the console, and no request but for the file itself and what is in it."""
    assert browser.logs("browser") == []
    assert set(browser.requested()) == {page.resolve().as_uri(), "data:"}
    assert browser.run("return document.documentElement.scrollWidth <= innerWidth"), "wider than the window"


def ticks(browser: Browser, chart: int = 0, axis: str = "x") -> list[str]:
    script = "return [...document.querySelectorAll('svg.plot')[arguments[0]].querySelectorAll(arguments[1])]"
    return browser.run(f"{script}.map((text) => text.textContent)", chart, f".{axis}-axis text")


def click(browser: Browser, selector: str) -> None:
    browser.run("document.querySelector(arguments[0]).click()", selector)


def place_of(browser: Browser, selector: str) -> tuple[int, int]:
    """The left edge and the middle of an element, after scrolling to it."""
    script = "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'center'});"
    left, middle = browser.run(
        f"{script} const r = e.getBoundingClientRect(); return [r.left, r.top + r.height / 2]", selector
    )
    return int(left), int(middle)


def drag(browser: Browser, selector: str, start: int, end: int) -> None:
    x, y = place_of(browser, selector)
    browser.pointer(
        *({"type": "pointerMove", "x": x + start, "y": y}, {"type": "pointerDown"}),
        *({"type": "pointerMove", "x": x + end, "y": y}, {"type": "pointerUp"}),
    )


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (380, False)])
def test_a_page_opens_without_errors_and_requests(browser, page, comparison, width, dark):
    colors = set()
    for path in (page, comparison):
        browser.open(path, width=width, dark=dark)
        browser.wait("return document.querySelectorAll('svg.plot path.curve').length > 6")
        colors.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
        check_quiet(browser, path)
    assert colors == ({"rgb(17, 20, 24)"} if dark else {"rgb(246, 247, 249)"})


@pytest.mark.browser
def test_the_slider_changes_the_picture(browser, page):
    browser.open(page)
    source = "return document.querySelector('img.generated').src"
    grids = [grid["src"] for grid in data_of(page.read_text())["runs"][0]["grids"]["fakes"]]
    assert browser.run(source) == grids[2]
    browser.run("document.getElementById('epoch').focus()")
    browser.press("\ue012")  # the left arrow
    assert browser.run(source) == grids[1]
    assert browser.run("return document.querySelector('.player output').textContent") == "epoch 2"
    browser.press("\ue012")
    assert browser.run(source) == grids[0]
    click(browser, "#play")
    browser.wait("return document.querySelector('img.generated').src === arguments[0]", grids[2])
    browser.wait("return document.getElementById('play').textContent.includes('play')")
    check_quiet(browser, page)


@pytest.mark.browser
def test_dragging_zooms_all_charts_and_a_double_click_resets_them(browser, page):
    browser.open(page)
    whole = ticks(browser), ticks(browser, 5)
    assert whole[0][0] == "0" and whole[0][-1] == "40k"
    drag(browser, "#training svg.plot", 150, 250)
    zoomed = ticks(browser), ticks(browser, 5)
    assert zoomed[0] != whole[0] and zoomed[1] != whole[1] and "0" not in zoomed[0] + zoomed[1]
    assert not browser.run("return document.getElementById('reset').disabled")
    x, y = place_of(browser, "#training svg.plot")
    press = {"type": "pointerDown"}, {"type": "pointerUp"}
    browser.pointer({"type": "pointerMove", "x": x + 200, "y": y}, *press, *press)
    assert (ticks(browser), ticks(browser, 5)) == whole
    check_quiet(browser, page)


@pytest.mark.browser
def test_charts_are_read_and_zoomed_by_the_keyboard(browser, page):
    browser.open(page)
    browser.run("document.querySelector('#training svg.plot').focus()")
    browser.press("\ue012", "\ue012")
    assert browser.run("return document.getElementById('live').textContent") == (
        "39,000 images: d_loss 0.02564, g_loss 2.026"
    )
    whole = ticks(browser)
    browser.press("+", "+")
    assert ticks(browser) != whole and "40k" in ticks(browser)
    browser.press("0")
    assert ticks(browser) == whole


@pytest.mark.browser
def test_log_scale_smoothing_minutes_and_tables(browser, page):
    browser.open(page)
    losses = 3  # after fid, recall and odd
    linear = ticks(browser, losses, "y")
    browser.run("document.querySelector('#training .head button').click()")
    assert linear[0] == "0" and ticks(browser, losses, "y")[:2] == ["0.05", "0.1"]
    assert browser.run("return document.querySelectorAll('path.faint').length") == 0
    click(browser, "#smooth")
    assert browser.run("return document.querySelectorAll('#training path.faint').length") == 4
    click(browser, ".choice button:last-child")
    assert ticks(browser)[-1] == "1.0"  # 40,000 images at 500 a second are 1.33 minutes
    click(browser, "#training details summary")
    rows = browser.wait("return document.querySelectorAll('#training table tbody tr').length")
    assert rows == 40
    check_quiet(browser, page)


@pytest.mark.browser
def test_runs_are_compared_in_colours_of_their_own(browser, comparison):
    browser.open(comparison)
    strokes = "return [...document.querySelector('#training svg.plot').querySelectorAll('path.curve')]"
    colors = f"{strokes}.map((path) => path.getAttribute('stroke'))"
    assert browser.run(colors) == ["var(--c0)", "var(--c0)", "var(--c1)", "var(--c1)"]
    click(browser, "#tools button")  # hides the first run
    assert browser.run(colors) == ["var(--c1)", "var(--c1)"]
    assert ticks(browser)[-1] == "20k"
    texts = "return [...document.querySelectorAll('td.best')].map((cell) => cell.firstChild.textContent)"
    assert browser.run(texts) == ["10", "11", "0.4", "0.4"], "the best run of each metric, where better is known"
    shown = "return [...document.querySelectorAll('#config table')[0].querySelectorAll('tbody tr:not([hidden]) th')]"
    assert browser.run(f"{shown}.map((cell) => cell.textContent)") == ["loss"], "differences only"
    check_quiet(browser, comparison)


def bin_of(name: str, value: float, *, floor: float = 2.0, recall: float = 0.5, generated: int = 50) -> dict:
    metrics = {"fd_cnn": value, "precision": 0.8, "recall": recall}
    counts = {"generated": generated, "reference": 60}
    return {"class": name, "low": 0, "high": 0, "metrics": metrics, "floor": {"fd_cnn": floor}, "counts": counts}


def write_bins(folder: Path, name: str, rows: list[dict], time: str, **more) -> None:
    (folder / "cards").mkdir(exist_ok=True)
    card = {"metrics": {"fd_cnn": 3.0}, "generator": {"images": 7000}, "by": "class", "bins": rows, "time": time}
    (folder / "cards" / name).write_text(json.dumps(card | more))


def test_the_worst_classes_of_the_newest_card_come_first(tmp_path):
    folder = write_run(tmp_path / "run")
    few = {**bin_of("few", 0, generated=3), "metrics": {}, "floor": {}, "too_few": 20}
    rare = {**few, "class": "rare", "counts": {"generated": 3, "reference": 4}}
    no_distance = {**bin_of("recall", 0, recall=0.1), "metrics": {"recall": 0.1}, "floor": {}}
    rows = [rare, no_distance, bin_of("good", 2.2), bin_of("bad", 30), bin_of("steep", 9, floor=0.5), few]
    write_bins(folder, "a.json", rows, "2026-02-01T00:00:00+00:00", classes_from="labels")
    write_bins(folder, "b.json", [bin_of("old", 1)], "2026-01-01T00:00:00+00:00")
    (run,) = data_of(build_page([folder]))["runs"]
    found = run["bins"]
    assert [row["name"] for row in found["rows"]] == ["few", "steep", "bad", "good", "recall", "rare"]
    assert [row["ratio"] for row in found["rows"]] == [None, 18, 15, 1.1, None, None]
    assert (found["by"], found["images"], found["distance"]) == ("class", 7000, "fd_cnn")
    with open(folder / "metrics.jsonl", "a") as file:
        card = {"metrics": {"fd_cnn": 1.0}, "time": "2026-03-01T00:00:00+00:00", "by": "energy"}
        card["bins"] = [{**bin_of("", 4), "low": 1.0, "high": 2.5}]
        del card["bins"][0]["class"]
        file.write(json.dumps({"images": 42_000, "card": card}) + "\n")
    (run,) = data_of(build_page([folder]))["runs"]
    assert (run["bins"]["images"], run["bins"]["rows"][0]["name"]) == (42_000, "1 to 2.5")
    assert "bins" not in run["card"], "they have a table of their own"
    (folder / "cards" / "c.json").write_text("{")
    with pytest.raises(UsageError, match="c.json is not a metric card; remove it, and evaluate again"):
        build_page([folder])


def test_a_run_without_bins_has_no_table_of_them(tmp_path):
    assert data_of(build_page([write_run(tmp_path / "run")]))["runs"][0]["bins"] is None


@pytest.mark.browser
def test_the_worst_classes_are_shown_twelve_first(browser, tmp_path):
    folder = write_run(tmp_path / "run")
    rows = [bin_of(f"class {i}", i + 1) for i in range(20)]
    write_bins(folder, "a.json", rows, "2026-02-01T00:00:00+00:00", classes_from="classifier")
    page = write_page(folder)
    browser.open(page)
    shown = "return [...document.querySelectorAll('#bins tbody tr:not([hidden]) th')].map((cell) => cell.textContent)"
    assert browser.run(shown) == [f"class {i}" for i in range(19, 7, -1)]
    assert browser.run("return document.querySelector('#bins tbody td').textContent") == "10 ×"
    assert "by the class that the classifier sees" in browser.run("return document.querySelector('#bins').textContent")
    click(browser, "#bins button")
    assert len(browser.run(shown)) == 20
    check_quiet(browser, page)


COLUMN = "return [...document.querySelectorAll('#overview tbody tr')].map((row) => row.cells[arguments[0]].{})"
SORTED = "return [...document.querySelectorAll('#overview thead th')].map((head) => head.getAttribute('aria-sort'))"


@pytest.mark.browser
def test_the_table_of_runs_is_sorted_and_its_groups_open(browser, tmp_path):
    folders = [write_run(tmp_path / f"r{i}", fid=fid, seed=i, epochs=1) for i, fid in enumerate((12, 9, 15))]
    folders += [write_run(tmp_path / "other", fid=10, epochs=1, loss="hinge"), write_run(tmp_path / "none", lines=5)]
    (tmp_path / "report.html").write_text(build_page(folders))
    browser.open(tmp_path / "report.html")
    names = f"{COLUMN.format('firstElementChild.textContent')}"
    heads = browser.run("return [...document.querySelectorAll('#overview thead th')].map((head) => head.textContent)")
    assert heads[:5] == ["Run", "epochs", "loss", "seed", "best fid"], "differing keys, then the metrics"
    assert browser.run(names, 0) == ["r*", "other", "none"] and set(browser.run(SORTED)) == {"none"}
    browser.run("document.querySelectorAll('#overview .sort')[4].focus()")
    browser.press("\ue007")  # Enter
    assert browser.run(names, 0) == ["other", "r*", "none"], "the mean of 12, 9 and 15 is worse than 10"
    assert browser.run(SORTED)[4] == "ascending"
    click(browser, "#overview button.open")
    assert browser.run(names, 0) == ["other", "r*", "r1", "r0", "r2", "none"], "within their group"
    assert browser.run("return document.activeElement.getAttribute('aria-expanded')") == "true"
    browser.run("document.querySelectorAll('#overview .sort')[4].click()")
    assert browser.run(names, 0) == ["r*", "r2", "r0", "r1", "other", "none"], "what is missing stays last"
    assert browser.run(SORTED)[4] == "descending"
    click(browser, "#overview .sort")
    assert browser.run(names, 0) == ["none", "other", "r*", "r0", "r1", "r2"]
    check_quiet(browser, tmp_path / "report.html")
