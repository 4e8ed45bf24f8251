// The table of several runs, which page/table.py made: sorted by a click on a column's head, groups of seeds open.

const COLLATOR = new Intl.Collator("en", { numeric: true });

// Values of one kind of card are together; what is missing comes last in both directions.
function compare(a, b, direction) {
  const missing = (cell) => cell.value === null || cell.value === undefined;
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  if ((a.mark ?? "") !== (b.mark ?? "")) return COLLATOR.compare(a.mark ?? "", b.mark ?? "");
  const numbers = typeof a.value === "number" && typeof b.value === "number";
  return direction * (numbers ? a.value - b.value : COLLATOR.compare(a.value, b.value));
}

// Rows in the order of a column; -1 is that of their names.
function sortRows(rows, column, direction) {
  const cell = (row) => (column < 0 ? { value: row.name } : row.cells[column]);
  return [...rows].sort((a, b) => compare(cell(a), cell(b), direction));
}

function tableCell(cell, kind) {
  const mark = cell.mark ? element("sup", { title: `card ${cell.mark}` }, cell.mark) : null;
  const attributes = { class: [cell.best ? "best" : "", kind === "text" ? "words" : ""].join(" ").trim() || null };
  return element("td", attributes, cell.text, mark, cell.note ? note(cell.note) : null);
}

// The name of a row, which of a group is a button that shows and hides its runs: `toggle`, null for a single run.
function rowName(row, toggle, inside, open) {
  const run = row.runs.length === 1 ? runs[row.runs[0]] : null;
  const name = run ? [swatch(run.color), row.name] : [row.name];
  const pressed = { class: "open", "aria-expanded": open, onclick: toggle };
  const shown = toggle ? button(pressed, ...name) : element("span", {}, ...name);
  return element("th", { scope: "row", class: inside ? "inside" : null }, shown, row.note ? note(row.note) : null);
}

function overview() {
  const { columns, rows, notes } = data.table;
  const open = new Set();
  const body = element("tbody");
  let sorted = { column: null, direction: 1 };

  function draw() {
    const inOrder = (some) => (sorted.column === null ? some : sortRows(some, sorted.column, sorted.direction));
    const line = (row, toggle, inside) => {
      const cells = row.cells.map((cell, i) => tableCell(cell, columns[i].kind));
      return element("tr", { class: inside ? "inside" : null }, rowName(row, toggle, inside, open.has(row)), ...cells);
    };
    const lines = inOrder(rows).flatMap((row) => {
      const children = open.has(row) ? inOrder(row.children).map((child) => line(child, null, true)) : [];
      return [line(row, row.children.length ? () => flip(row) : null, false), ...children];
    });
    body.replaceChildren(...lines);
    heads.forEach((head, i) => {
      const direction = sorted.direction > 0 ? "ascending" : "descending";
      head.setAttribute("aria-sort", i - 1 === sorted.column ? direction : "none");
    });
  }

  // The button is drawn anew: the focus goes to the new one.
  function flip(row) {
    if (!open.delete(row)) open.add(row);
    draw();
    const groups = (sorted.column === null ? rows : sortRows(rows, sorted.column, sorted.direction)).filter(
      (one) => one.children.length,
    );
    body.querySelectorAll("button.open")[groups.indexOf(row)].focus();
  }

  // The first click puts the better values first, the second turns the order.
  function sortBy(column) {
    const first = columns[column]?.better === "higher" ? -1 : 1;
    sorted = { column, direction: sorted.column === column ? -sorted.direction : first };
    draw();
  }

  const head = (label, column, kind) => {
    // a line may break after a point or a "_" of a key
    const parts = label.split(/(?<=[._])/).flatMap((part) => [part, element("wbr")]);
    const press = button({ class: "sort", onclick: () => sortBy(column) }, ...parts);
    return element("th", { scope: "col", class: kind === "text" ? "words" : null }, press);
  };
  const heads = [head("Run", -1, "text"), ...columns.map(({ label, kind }, i) => head(label, i, kind))];
  const caption = element("caption", { class: "unseen" }, "Overview");
  const grid = element("table", { id: "overview" }, caption, element("thead", {}, tr(...heads)), body);
  draw();
  const lines = notes.map((text) => element("p", { class: "dim small" }, text));
  return element("div", { class: "panel" }, scroller("Overview", grid), element("div", { class: "notes" }, ...lines));
}
