// Tables: metrics of cards, keys and values of the runs side by side, warnings.

function text(value) {
  if (value === null || value === undefined) return "–";
  return typeof value === "string" ? value || '""' : JSON.stringify(value);
}

const note = (words) => element("span", { class: "note" }, words);
const panel = (title, extra, ...children) =>
  element(
    "section",
    { class: "panel" },
    element("div", { class: "tablehead" }, element("h3", {}, title), extra),
    ...children,
  );

// The best value of a metric over all runs.
function winner(name) {
  const values = runs.map((run) => run.best[name]?.value).filter((value) => value !== undefined);
  return data.better[name] === "lower" ? Math.min(...values) : Math.max(...values);
}

// Metrics as rows, with the best and the last value of each run; the best of a row is marked.
function scores() {
  const names = [...new Set(runs.flatMap((run) => run.scores))];
  if (!names.length) return null;
  const cell = (found, mark) => {
    if (!found) return element("td", {}, "–");
    const where = found.epoch ? `epoch ${format(found.epoch)}` : place(found.images);
    return element("td", { class: mark ? "best" : null }, format(found.value), note(where));
  };
  const rows = names.map((name) => {
    const direction = element(
      "span",
      { class: "dim small" },
      data.better[name] ? ` ${data.better[name]} is better` : "",
    );
    const cells = runs.flatMap((run) => {
      const best = run.best[name];
      return [cell(best, best?.value === winner(name)), cell(run.last[name], false)];
    });
    return tr(th("row", name, direction), ...cells);
  });
  const spans = runs.map((run) => element("th", { scope: "colgroup", colspan: 2 }, ...nameOf(run)));
  const labels = runs.flatMap(() => [th("col", "best"), th("col", "last")]);
  const head = [single ? null : tr(element("td"), ...spans), tr(th("col", "Metric"), ...labels)].filter(Boolean);
  return panel("Best and last", null, scroller("Best and last metrics", table("Best and last metrics", head, rows)));
}

// Keys and values, a column for each run, from `column(run)`. Marked are the keys in `changed` (of a single run, those
// that are not at their default), else those in which the runs differ; a box hides the others.
function comparison(title, column, changed = null) {
  const columns = runs.map(column);
  const keys = [...new Set(columns.flatMap((one) => Object.keys(one)))];
  if (!keys.length) return null;
  const differs = (key) => new Set(columns.map((one) => JSON.stringify(one[key]))).size > 1;
  const marked = new Set(keys.filter((key) => (changed ? changed.has(key) : differs(key))));
  const rows = keys.map((key) => tr(th("row", key), ...columns.map((one) => element("td", {}, text(one[key])))));
  rows.forEach((row, i) => row.classList.toggle("changed", marked.has(keys[i])));
  const choice = marked.size > 0 && marked.size < keys.length;
  const update = () => rows.forEach((row, i) => (row.hidden = only.checked && !marked.has(keys[i])));
  const only = element("input", { type: "checkbox", onchange: update });
  only.checked = choice;
  update();
  const words = changed ? " changed from the defaults only" : " differences only";
  const label = choice ? element("label", { class: "small dim" }, only, words) : null;
  const head = single ? [] : [tr(th("col", "Key"), ...runs.map((run) => th("col", ...nameOf(run))))];
  return panel(title, label, scroller(title, table(title, head, rows, "text")));
}

function events() {
  const all = runs.flatMap((run) => run.events.map((event) => ({ ...event, run })));
  all.sort((a, b) => a.images - b.images);
  const items = all.map(({ run, kind, text, images, epoch }) => {
    const where = element("span", { class: "where small" }, place(images, epoch));
    const badge = element("span", { class: "badge" }, kind);
    return element("li", {}, where, element("span", {}, badge, ` ${single ? "" : `${run.name}: `}${text}`));
  });
  const list = items.length ? element("ul", { class: "panel events" }, ...items) : null;
  section("events", "Warnings and changes", list);
}
