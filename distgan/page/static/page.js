// The page from its top to its end: what the runs come to, samples, charts, tables.

function duration(minutes) {
  if (minutes < 1) return `${Math.round(minutes * 60)} s`;
  const whole = Math.round(minutes);
  return whole < 60 ? `${whole} min` : `${Math.floor(whole / 60)} h ${String(whole % 60).padStart(2, "0")} min`;
}

// What a run comes to: [label, value, note].
function facts(run) {
  const last = (name) => run.series[name]?.[1].at(-1);
  const epoch = `epoch ${format(run.epoch)}${run.epochs ? ` of ${format(run.epochs)}` : ""}`;
  const found = [["Images seen", format(run.images), run.total_images ? `of ${format(run.total_images)}` : epoch]];
  const minutes = run.clock[1].at(-1);
  if (minutes > 0) found.push(["Training time", duration(minutes), "without pauses"]);
  const rate = last("images_per_second");
  if (Number.isFinite(rate))
    found.push(["Images/s", format(Math.round(rate)), `median ${format(Math.round(run.median_rate))}`]);
  const means = [last("d_real"), last("d_fake")];
  if (means.every(Number.isFinite))
    found.push(["D(x) / D(G(z))", means.map((mean) => mean.toFixed(2)).join(" / "), "last"]);
  for (const [name, best] of Object.entries(run.best).slice(0, 3))
    found.push([`Best ${name}`, format(best.value), best.epoch ? `epoch ${format(best.epoch)}` : place(best.images)]);
  const warnings = run.events.filter((event) => event.kind === "warning").length;
  const where = warnings ? element("a", { href: "#events" }, "see below") : "none logged";
  return [...found, ["Warnings", format(warnings), where]];
}

function header() {
  const top = document.getElementById("top");
  const updated = Math.max(...runs.map((run) => run.updated ?? 0));
  const date = new Date(updated * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  const { config, environment } = runs[0];
  const words = [];
  if (single) {
    const { "model.name": model, loss, "data.shards": shards } = config.values;
    const { device, processes, commit } = environment;
    if (model) words.push(`${model} with ${loss} on ${shards}`);
    if (device) words.push(`${processes} process${processes === 1 ? "" : "es"}, ${device}`);
    if (commit) words.push(`commit ${commit.slice(0, 12)}`);
  }
  if (updated) words.push(`last line logged ${date}`);
  top.append(element("h1", {}, single ? runs[0].name : `${runs.length} runs compared`));
  top.append(element("p", { class: "dim" }, words.join(" · ")));
  top.append(single ? tiles(facts(runs[0])) : overview());
}

function tiles(found) {
  const boxes = found.map(([label, value, words]) => {
    const parts = [element("dt", {}, label), element("dd", {}, value), element("dd", { class: "note" }, words)];
    return element("div", { class: "panel tile" }, ...parts);
  });
  return element("dl", { class: "tiles" }, ...boxes);
}

// Buttons for all charts: runs, the x-axis, smoothing, zoom.
function tools() {
  const shown = runs.map((run) => {
    const toggle = () => {
      if (!view.hiddenRuns.delete(run)) view.hiddenRuns.add(run);
      press.setAttribute("aria-pressed", !view.hiddenRuns.has(run));
      redrawAll();
    };
    const attributes = { "aria-pressed": "true", title: "Show or hide this run in the charts", onclick: toggle };
    const press = button(attributes, ...nameOf(run));
    return press;
  });
  const axes = ["images", "minutes"].map((axis) => {
    const choose = () => {
      view.axis = axis;
      axes.forEach((other) => other.setAttribute("aria-pressed", other === press));
      setDomain(null);
    };
    const press = button({ "aria-pressed": axis === view.axis, onclick: choose }, axis);
    return press;
  });
  const hint = "Moving averages over a twentieth of each curve; the raw curves stay, faint";
  const toggleSmooth = () => {
    view.smooth = !view.smooth;
    smooth.setAttribute("aria-pressed", view.smooth);
    redrawAll();
  };
  const smooth = button({ id: "smooth", "aria-pressed": "false", title: hint, onclick: toggleSmooth }, "smooth");
  const reset = button({ id: "reset", disabled: "", onclick: () => setDomain(null) }, "reset zoom");
  document.addEventListener("zoomed", () => (reset.disabled = view.domain === null));
  const keys = "drag: zoom · double-click: reset · on a focused chart: arrows, +, −, 0";
  const bar = element(
    "div",
    {},
    ...(single ? [] : shown),
    element("span", { class: "choice", role: "group", "aria-label": "x-axis" }, ...axes),
    smooth,
    reset,
    element("span", { class: "dim small", id: "keys" }, keys),
  );
  document.getElementById("tools").append(bar);
}

// The curves of a chart: of each run those of `names` that it has.
function curvesOf(names) {
  return runs.flatMap((run) => {
    const known = names.filter((name) => run.series[name]);
    return known.map((name) => {
      const i = names.indexOf(name);
      const [images, values] = run.series[name];
      const minutes = images.map(run.minutes);
      const label = data.labels[name] ?? name;
      const best = run.best[name];
      return {
        run,
        values,
        at: (axis) => (axis === "images" ? images : minutes),
        color: single ? `var(--c${i % 8})` : run.color,
        dash: DASHES[(single ? Math.floor(i / 8) : i) % DASHES.length],
        label: single ? label : names.length > 1 ? `${run.name} ${label}` : run.name,
        best: best ? { ...best, at: run.at(best.images), label: best.value === winner(name) } : null,
      };
    });
  });
}

function charts() {
  const color = (run) => (single ? "var(--warn)" : run.color);
  const mark = (run) => (event) => ({ ...event, run, at: run.at(event.images), tall: single, color: color(run) });
  const events = runs.flatMap((run) => run.events.map(mark(run)));
  for (const { id, title, charts } of data.sections) {
    const boxes = charts.map(({ names, ...rest }) => new Chart({ ...rest, events, series: curvesOf(names) }).box);
    section(id, title, element("div", { class: "charts" }, ...boxes));
  }
}

function about() {
  const columns = single ? "tables" : "tables wide";
  const cards = [single ? scores() : null, comparison("The newest metric card", (run) => run.card)].filter(Boolean);
  section("cards", "Metric cards", cards.length ? element("div", { class: columns }, ...cards) : null);
  events();
  const changed = single ? new Set(runs[0].config.changed) : null;
  const config = comparison("Configuration", (run) => run.config.values, changed);
  const environment = comparison("Environment", (run) => run.environment);
  const settings = [config, environment].filter(Boolean);
  section("config", "Configuration and environment", element("div", { class: columns }, ...settings));
  const thinned =
    data.thinned &&
    `curves of more than ${format(data.thinned)} points keep the smallest and the largest value of each interval`;
  const notes = [`distgan ${data.version}`, runs.map((run) => run.path).join(", "), thinned].filter(Boolean);
  document.getElementById("foot").append(element("p", { class: "dim small" }, notes.join(" · ")));
}

header();
tools();
samples();
charts();
bins();
about();
