// The worst classes, or bins of a condition, of the newest card that has them: a table for each run.

const MOST_BINS = 12;

function binsOf(run) {
  const { by, classes_from, images, distance, rows } = run.bins;
  const cell = (value) => element("td", {}, format(value));
  const few = (row) => element("td", { colspan: 5 }, `too few images, metrics need ${row.too_few}`);
  const values = (row) => {
    const ratio = element("td", {}, row.ratio === null ? "–" : `${format(Number(row.ratio.toPrecision(3)))} ×`);
    return [ratio, cell(row.value), cell(row.floor), cell(row.precision), cell(row.recall)];
  };
  const scores = (row) => (row.too_few === null ? values(row) : [few(row)]);
  const cells = (row) => [th("row", row.name), ...scores(row), cell(row.generated), cell(row.reference)];
  const lines = rows.map((row) => tr(...cells(row)));
  const show = (count) => lines.forEach((line, i) => (line.hidden = i >= count));
  show(MOST_BINS);
  const all = button({ onclick: () => (show(lines.length), all.remove()) }, `show all ${lines.length}`);
  const metrics = ["ratio", distance ?? "distance", "real against real", "precision", "recall"];
  const columns = [by, ...metrics, "generated", "real images"];
  const head = tr(...columns.map((name) => th("col", name)));
  const where = images === null ? [] : [place(images)];
  const words = [...where, classes_from === "classifier" ? "by the class that the classifier sees" : ""];
  const title = element("span", {}, ...(single ? ["The newest card with bins"] : nameOf(run)));
  const about = element("span", { class: "small dim" }, words.filter(Boolean).join(" · "));
  const extra = element("span", { class: "extra" }, about, lines.length > MOST_BINS ? all : null);
  return panel(title, extra, scroller(`Worst of ${run.name}`, table(`Worst of ${run.name}`, [head], lines)));
}

function bins() {
  const found = runs.filter((run) => run.bins);
  const title = found.every((run) => run.bins.by === "class") ? "Worst classes" : "Worst bins";
  const panels = found.map(binsOf);
  section("bins", title, panels.length ? element("div", { class: "tables wide" }, ...panels) : null);
}
