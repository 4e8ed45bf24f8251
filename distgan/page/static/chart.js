// Line charts in SVG. Drag zooms the x-axis of all charts, double-click resets; arrow keys read values.

const MARGIN = { top: 8, right: 14, bottom: 26, left: 54 };
const DASHES = ["", "6 3", "2 3", "9 3 2 3"];

// What all charts of the page share: the visible range of x, the point read, and the switches.
const view = { charts: [], domain: null, hover: null, smooth: false, axis: "images", hiddenRuns: new Set() };
const redrawAll = () => view.charts.forEach((chart) => chart.draw());
const setHover = (x) => {
  view.hover = x;
  view.charts.forEach((chart) => chart.drawHover());
};
function setDomain(domain) {
  view.domain = domain;
  redrawAll();
  document.dispatchEvent(new Event("zoomed"));
}

// {title, series: [{label, color, dash, run, at(axis) -> xs, values, best: {images, value} or null}], range, points,
//  events: [{run, at(axis) -> x, text, color, tall}]}: marks on the x-axis, and lines over the whole height if `tall`
class Chart {
  constructor(options) {
    Object.assign(this, options);
    this.log = false;
    this.id = `chart${view.charts.length}`;
    const positive = this.series.some((one) => one.values.some((value) => value > 0));
    const hint = "Logarithmic y-axis; values of 0 or less are not drawn";
    this.logButton = button({ "aria-pressed": "false", title: hint, onclick: () => this.toggleLog() }, "log");
    this.logButton.disabled = !positive;
    this.legend = element("div", { class: "legend" });
    const name = { "aria-label": this.summary(), "aria-describedby": "keys" };
    this.svg = shape("svg", { class: "plot", role: "img", tabindex: 0, id: this.id, ...name });
    const values = scroller(`${this.title}: values`);
    const details = element("details", {}, element("summary", {}, "Values as a table"), values);
    details.addEventListener("toggle", () => details.open && values.replaceChildren(this.table()));
    const title = element("h3", { id: `${this.id}-title` }, this.title);
    const head = element("div", { class: "head" }, title, this.logButton);
    const labelled = { class: "panel chart", "aria-labelledby": `${this.id}-title` };
    this.box = element("section", labelled, head, this.legend, this.svg, details);
    this.makeLegend();
    this.listen();
    view.charts.push(this);
    new ResizeObserver(() => this.draw()).observe(this.svg);
  }

  summary() {
    const parts = this.series.map((one) => {
      const known = one.values.filter((value) => value !== null);
      if (!known.length) return `${one.label}: no values`;
      const low = known.reduce((a, b) => Math.min(a, b)),
        high = known.reduce((a, b) => Math.max(a, b));
      return `${one.label}: last ${format(known.at(-1))}, from ${format(low)} to ${format(high)}`;
    });
    return `${this.title}, over images seen. ${parts.join("; ")}`;
  }

  visible() {
    return this.series.filter((one) => !view.hiddenRuns.has(one.run));
  }

  toggleLog() {
    this.log = !this.log;
    this.logButton.setAttribute("aria-pressed", this.log);
    this.draw();
  }

  makeLegend() {
    for (const one of this.series) {
      one.output = element("b");
      this.legend.append(element("span", {}, swatch(one.color, one.dash), `${one.label} `, one.output));
    }
  }

  // The range of x over all series of the page, or the zoomed one.
  xDomain() {
    if (view.domain) return view.domain;
    const ends = view.charts.flatMap((chart) => chart.visible().map((one) => one.at(view.axis).at(-1)));
    return [0, Math.max(1e-9, ...ends.filter((end) => end !== undefined))];
  }

  yDomain(shown, [x0, x1]) {
    let low = Infinity,
      high = -Infinity;
    for (const one of shown) {
      one.drawn.forEach((value, i) => {
        if (value === null || one.xs[i] < x0 || one.xs[i] > x1 || (this.log && value <= 0)) return;
        low = Math.min(low, value);
        high = Math.max(high, value);
      });
    }
    if (low > high) return this.log ? [0.1, 1] : [0, 1];
    if (this.range && !this.log && !view.domain && low >= this.range[0] && high <= this.range[1]) return this.range;
    if (this.log) return [low / 1.15, high * 1.15];
    const pad = (high - low || Math.abs(high) || 1) * 0.06;
    return [(low >= 0 && low - pad < 0) || (low >= 0 && low < high - low) ? 0 : low - pad, high + pad];
  }

  draw() {
    const width = this.svg.clientWidth,
      height = this.svg.clientHeight;
    if (!width) return;
    const shown = this.visible();
    for (const one of shown) {
      one.xs = one.at(view.axis);
      one.drawn = view.smooth && !this.points ? smoothed(one.values) : one.values;
    }
    const [x0, x1] = this.xDomain(),
      [y0, y1] = this.yDomain(shown, [x0, x1]);
    const right = width - MARGIN.right,
      bottom = height - MARGIN.bottom;
    const y = this.log ? Math.log : (value) => value;
    this.x = (value) => MARGIN.left + ((value - x0) / (x1 - x0)) * (right - MARGIN.left);
    this.xInverse = (pixel) => x0 + ((pixel - MARGIN.left) / (right - MARGIN.left)) * (x1 - x0);
    this.y = (value) => bottom - ((y(value) - y(y0)) / (y(y1) - y(y0))) * (bottom - MARGIN.top);
    this.bottom = bottom;
    this.svg.replaceChildren();
    const clip = shape("clipPath", { id: `${this.id}-clip` });
    clip.append(
      shape("rect", {
        x: MARGIN.left - 1,
        y: MARGIN.top - 8,
        width: Math.max(0, width - MARGIN.left),
        height: bottom - MARGIN.top + 12,
      }),
    );
    this.svg.append(clip);
    this.drawAxes([x0, x1], [y0, y1], right, bottom);
    const group = shape("g", { "clip-path": `url(#${this.id}-clip)` });
    this.svg.append(group);
    this.drawEvents(group);
    for (const one of shown) this.drawCurve(group, one, [x0, x1]);
    for (const one of shown) if (one.best && (!this.log || one.best.value > 0)) this.drawBest(group, one);
    this.overlay = shape("g", {});
    this.svg.append(this.overlay);
    this.drawHover();
  }

  drawAxes([x0, x1], [y0, y1], right, bottom) {
    const across = linearTicks(x0, x1, Math.max(2, Math.floor((right - MARGIN.left) / 70)));
    const up = this.log ? { ticks: logTicks(y0, y1), step: 1 } : linearTicks(y0, y1, 5);
    const axisY = shape("g", { class: "y-axis" }),
      axisX = shape("g", { class: "x-axis" });
    let last = Infinity;
    for (const tick of up.ticks) {
      const at = this.y(tick),
        step = this.log ? Math.min(1, tick) : up.step;
      axisY.append(shape("line", { class: "gridline", x1: MARGIN.left, x2: right, y1: at, y2: at }));
      if (last - at < 14) continue;
      last = at;
      axisY.append(shape("text", { x: MARGIN.left - 8, y: at + 4, "text-anchor": "end" }, formatTick(tick, step)));
    }
    axisX.append(shape("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }));
    for (const tick of across.ticks) {
      const at = this.x(tick),
        anchor = at > right - 16 ? "end" : "middle";
      axisX.append(shape("line", { class: "axis", x1: at, x2: at, y1: bottom, y2: bottom + 4 }));
      axisX.append(
        shape(
          "text",
          { x: anchor === "end" ? right + 8 : at, y: bottom + 18, "text-anchor": anchor },
          formatTick(tick, across.step),
        ),
      );
    }
    this.svg.append(axisY, axisX);
  }

  drawEvents(group) {
    for (const event of this.events) {
      if (view.hiddenRuns.has(event.run)) continue;
      const at = this.x(event.at(view.axis)),
        base = this.bottom;
      const mark = shape("path", {
        fill: event.color,
        d: `M${at - 4},${base} L${at + 4},${base} L${at},${base - 7} Z`,
      });
      mark.append(shape("title", {}, event.text));
      if (event.tall) group.append(shape("line", { class: "event", x1: at, x2: at, y1: MARGIN.top, y2: base }));
      group.append(mark);
    }
  }

  drawCurve(group, one, domain) {
    const faint = one.drawn !== one.values;
    if (faint) group.append(shape("path", { ...this.pathOf(one, one.values, domain), class: "curve faint" }));
    group.append(shape("path", { ...this.pathOf(one, one.drawn, domain), class: "curve" }));
    const lone = (i) => [i - 1, i + 1].every((j) => one.values[j] === undefined || one.values[j] === null);
    one.drawn.forEach((value, i) => {
      if (value === null || (this.log && value <= 0) || !(lone(i) || (this.points && one.values.length <= 60))) return;
      group.append(shape("circle", { cx: this.x(one.xs[i]), cy: this.y(value), r: 2.6, fill: one.color }));
    });
  }

  pathOf(one, values, [x0, x1]) {
    let d = "",
      pen = "M";
    values.forEach((value, i) => {
      if (value === null || (this.log && value <= 0)) {
        pen = "M";
        return;
      }
      if (one.xs[i + 1] < x0 || one.xs[i - 1] > x1) return;
      d += `${pen}${this.x(one.xs[i]).toFixed(1)},${this.y(value).toFixed(1)}`;
      pen = "L";
    });
    return { d, stroke: one.color, "stroke-dasharray": one.dash };
  }

  drawBest(group, one) {
    const cx = this.x(one.best.at(view.axis)),
      cy = this.y(one.best.value);
    group.append(shape("circle", { class: "best", cx, cy, r: 6, fill: "none", stroke: one.color, "stroke-width": 2 }));
    if (!one.best.label) return;
    const anchor = cx > this.svg.clientWidth - 110 ? "end" : cx < MARGIN.left + 50 ? "start" : "middle";
    const above = cy > MARGIN.top + 30;
    group.append(
      shape(
        "text",
        { class: "halo", x: cx, y: above ? cy - 12 : cy + 21, "text-anchor": anchor },
        `best ${format(one.best.value)}`,
      ),
    );
  }

  // The crosshair and the values in the legend: those nearest to the point read, if the curve goes so far, or the last.
  drawHover() {
    if (!this.overlay) return;
    this.overlay.replaceChildren();
    const shown = this.visible(),
      at = view.hover,
      [x0, x1] = this.xDomain(),
      slack = (x1 - x0) / 25;
    let cross = null;
    for (const one of this.series) {
      if (!shown.includes(one) || !one.values.length) {
        one.output.textContent = "";
        continue;
      }
      const i = at === null ? one.values.length - 1 : nearest(one.xs, at);
      const value = at === null || (at >= one.xs[0] - slack && at <= one.xs.at(-1) + slack) ? one.drawn[i] : null;
      one.output.textContent = format(value);
      if (at === null || value === null || (this.log && value <= 0)) continue;
      if (cross === null || Math.abs(one.xs[i] - at) < Math.abs(cross - at)) cross = one.xs[i];
      const cx = this.x(one.xs[i]);
      if (cx < MARGIN.left - 1 || cx > this.svg.clientWidth) continue;
      this.overlay.append(
        shape("circle", {
          cx,
          cy: this.y(value),
          r: 3.6,
          fill: one.color,
          stroke: "var(--card)",
          "stroke-width": 1.5,
        }),
      );
    }
    if (cross === null) return;
    const x = this.x(cross),
      flip = x > this.svg.clientWidth - 120;
    if (x < MARGIN.left - 1 || x > this.svg.clientWidth) return;
    this.overlay.prepend(shape("line", { class: "cross", x1: x, x2: x, y1: MARGIN.top, y2: this.bottom }));
    this.overlay.append(
      shape(
        "text",
        {
          class: "halo",
          x: flip ? x - 8 : x + 8,
          y: MARGIN.top + 10,
          "text-anchor": flip ? "end" : "start",
        },
        `${format(view.axis === "images" ? cross : Number(cross.toFixed(1)))} ${view.axis}`,
      ),
    );
  }

  listen() {
    let from = null;
    const pixel = (event) => event.clientX - this.svg.getBoundingClientRect().left;
    const inside = (value) => Math.max(MARGIN.left, Math.min(this.svg.clientWidth - MARGIN.right, value));
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      from = inside(pixel(event));
      this.svg.setPointerCapture(event.pointerId);
    });
    this.svg.addEventListener("pointermove", (event) => {
      const to = inside(pixel(event));
      setHover(this.xInverse(to));
      if (from === null) return;
      this.overlay.append(
        shape("rect", {
          class: "select",
          x: Math.min(from, to),
          y: MARGIN.top,
          width: Math.abs(to - from),
          height: this.bottom - MARGIN.top,
        }),
      );
    });
    this.svg.addEventListener("pointerup", (event) => {
      if (from === null) return;
      const ends = [from, inside(pixel(event))].sort((a, b) => a - b);
      from = null;
      if (ends[1] - ends[0] > 6) setDomain(ends.map(this.xInverse));
    });
    this.svg.addEventListener("pointercancel", () => {
      from = null;
      setHover(null);
    });
    this.svg.addEventListener("pointerleave", () => from === null && setHover(null));
    this.svg.addEventListener("blur", () => setHover(null));
    this.svg.addEventListener("dblclick", () => setDomain(null));
    this.svg.addEventListener("keydown", (event) => this.onKey(event));
  }

  onKey(event) {
    const [x0, x1] = this.xDomain(),
      xs = this.visible().find((one) => one.xs.length)?.xs;
    const zoom = { "+": 0.5, "=": 0.5, "-": 2 }[event.key];
    if (event.key === "0" || event.key === "Escape") setDomain(null);
    else if (zoom) {
      const middle = view.hover ?? (x0 + x1) / 2,
        half = ((x1 - x0) / 2) * zoom;
      view.domain = null;
      const [low, high] = this.xDomain(),
        ends = [Math.max(low, middle - half), Math.min(high, middle + half)];
      setDomain(ends[0] === low && ends[1] === high ? null : ends);
    } else if (xs && (event.key === "ArrowLeft" || event.key === "ArrowRight")) {
      const step = event.key === "ArrowLeft" ? -1 : 1;
      const i = view.hover === null ? xs.length - 1 : nearest(xs, view.hover) + step;
      setHover(xs[Math.max(0, Math.min(xs.length - 1, i))]);
      const read = this.visible()
        .map((one) => `${one.label} ${one.output.textContent}`)
        .join(", ");
      document.getElementById("live").textContent = `${format(view.hover)} ${view.axis}: ${read}`;
    } else return;
    event.preventDefault();
  }

  table() {
    const columns = this.series.map((one) => new Map(one.at("images").map((x, i) => [x, one.values[i]])));
    const rows = [...new Set(columns.flatMap((column) => [...column.keys()]))].sort((a, b) => a - b);
    const head = tr(...["images", ...this.series.map((one) => one.label)].map((label) => th("col", label)));
    const cells = (x) => columns.map((column) => element("td", {}, format(column.get(x))));
    return table(
      this.title,
      [head],
      rows.map((x) => tr(th("row", format(x)), ...cells(x))),
    );
  }
}
