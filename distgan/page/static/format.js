// Elements of HTML and SVG, numbers as text, ticks of axes.
"use strict";

function element(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

const button = (attributes, ...children) => element("button", { type: "button", ...attributes }, ...children);
const th = (scope, ...children) => element("th", { scope }, ...children);
const tr = (...cells) => element("tr", {}, ...cells);

// A table of rows; `head` may be empty. `kind` is "text" for columns of text.
function table(caption, head, rows, kind = null) {
  const title = element("caption", { class: "unseen" }, caption);
  return element("table", { class: kind }, title, element("thead", {}, ...head), element("tbody", {}, ...rows));
}

// A box that scrolls, by the keyboard too.
function scroller(label, ...children) {
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, ...children);
}

function shape(name, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// A short line in the colour and the dashes of a curve.
function swatch(color, dash = "") {
  const svg = shape("svg", { class: "swatch", "aria-hidden": "true", style: `color: ${color}` });
  svg.append(shape("line", { x1: 0, y1: 5, x2: 18, y2: 5, "stroke-dasharray": dash }));
  return svg;
}

function format(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (value === 0 || (Number.isInteger(value) && size < 1e15)) return value.toLocaleString("en-US");
  if (size < 1e-3 || size >= 1e7) return value.toExponential(2).replace("e+", "e");
  return size >= 1000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(4)));
}

function formatTick(value, step) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  for (const [unit, name] of [
    [1e9, "G"],
    [1e6, "M"],
    [1e3, "k"],
  ]) {
    if (size >= unit && (unit > 1e3 || size >= 1e4 || step >= 100)) return Number((value / unit).toPrecision(6)) + name;
  }
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return decimals > 4 ? Number(value.toPrecision(3)).toExponential().replace("e+", "e") : value.toFixed(decimals);
}

function linearTicks(low, high, count) {
  const rough = (high - low) / count,
    power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return { ticks, step };
}

function logTicks(low, high) {
  const decades = Math.log10(high / low),
    every = Math.max(1, Math.ceil(decades / 6));
  const factors = decades < 1 ? [1, 2, 3, 4, 5, 6, 7, 8, 9] : decades < 3 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e += every)
    for (const factor of factors) ticks.push(Number((factor * 10 ** e).toPrecision(6)));
  return ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
}

// A moving average, exponential and unbiased, over about a twentieth of the curve.
function smoothed(values) {
  const weight = 1 - 1 / Math.max(2, values.length / 20);
  let sum = 0,
    norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + value;
    norm = weight * norm + 1;
    return sum / norm;
  });
}

// The index of the entry of the sorted `xs` that is nearest to x.
function nearest(xs, x) {
  let low = 0,
    high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < x) low = middle;
    else high = middle;
  }
  return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
}
