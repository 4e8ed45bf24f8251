// Grids of generated images by epoch, and the real ones beside them.

function samples() {
  const pictured = runs.filter((run) => run.grids.fakes.length || run.grids.real);
  const epochs = [...new Set(runs.flatMap((run) => run.grids.fakes.map((grid) => grid.epoch)))].sort((a, b) => a - b);
  const pairs = pictured.map(makePair);
  const show = (epoch) => pairs.forEach((pair) => pair.show(epoch));
  const player = epochs.length > 1 ? makePlayer(epochs, show) : null;
  if (epochs.length === 1) show(epochs[0]);
  const boxes = element("div", { class: "grids" }, ...pairs.map((pair) => pair.box));
  const panel = pairs.length ? element("div", { class: "panel" }, player, boxes) : null;
  const notes = runs.filter((run) => run.grids.note).map((run) => (single ? "" : `${run.name}: `) + run.grids.note);
  section("samples", "Samples", panel, ...notes.map((words) => element("p", { class: "dim small" }, words)));
}

// The real grid of a run and the generated one; `show(epoch)` takes that of the epoch, or the last one before it.
function makePair(run) {
  const figure = (kind, src) => {
    const image = element("img", { class: kind, src, alt: `${run.name}: ${kind} images` });
    const label = element("figcaption", {}, kind);
    return { image, label, box: element("figure", {}, label, image) };
  };
  const { fakes, real } = run.grids;
  const figures = [real && figure("real", real), fakes.length ? figure("generated", fakes[0].src) : null];
  const show = (epoch) => {
    const fake = figures[1];
    if (!fake) return;
    const grid = fakes.findLast((one) => one.epoch <= epoch) ?? fakes[0];
    if (fake.image.src !== grid.src) fake.image.src = grid.src;
    fake.label.textContent = `generated, epoch ${format(grid.epoch)}`;
    fake.image.alt = `${run.name}: images ${fake.label.textContent}`;
  };
  const pair = element("div", { class: "pair" }, ...figures.filter(Boolean).map((one) => one.box));
  return { show, box: element("div", {}, single ? null : element("h3", {}, ...nameOf(run)), pair) };
}

// A slider over the epochs, and a button that moves it to the end.
function makePlayer(epochs, show) {
  let timer = null;
  const last = epochs.length - 1;
  const set = (i) => {
    slider.value = i;
    output.textContent = `epoch ${format(epochs[i])}`;
    slider.setAttribute("aria-valuetext", output.textContent);
    show(epochs[i]);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "▶ play";
  };
  const step = () => {
    set(Number(slider.value) + 1);
    if (Number(slider.value) === last) stop();
  };
  const start = () => {
    if (Number(slider.value) === last) set(0);
    play.textContent = "❚❚ pause";
    timer = setInterval(step, Math.max(120, Math.min(600, 12000 / epochs.length)));
  };
  const move = () => {
    stop();
    set(Number(slider.value));
  };
  const play = button({ id: "play", onclick: () => (timer === null ? start() : stop()) }, "▶ play");
  const name = "Epoch of the generated images";
  const slider = element("input", {
    type: "range",
    id: "epoch",
    min: 0,
    max: last,
    step: 1,
    "aria-label": name,
    oninput: move,
  });
  const output = element("output", { for: "epoch" });
  set(last);
  return element("div", { class: "player" }, play, slider, output);
}
