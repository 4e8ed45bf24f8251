// What the page is made of: the data that page/build.py wrote into it, the colours of the runs and their clocks.

const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const single = runs.length === 1;

runs.forEach((run, i) => {
  run.color = i < 8 ? `var(--c${i})` : `hsl(${(i * 137.5) % 360} 60% 50%)`;
  // Minutes of training at a number of images: between the points of the clock, which begins at 0.
  run.minutes = (images) => {
    const [xs, minutes] = run.clock;
    const near = nearest(xs, images);
    const i = Math.max(1, xs[near] < images ? near + 1 : near);
    if (i >= xs.length) return minutes.at(-1);
    return minutes[i - 1] + ((images - xs[i - 1]) / (xs[i] - xs[i - 1])) * (minutes[i] - minutes[i - 1]);
  };
  run.at = (images) => (axis) => (axis === "images" ? images : run.minutes(images));
});

const place = (images, epoch) => `${format(images)} images${epoch ? `, epoch ${format(epoch)}` : ""}`;

// The name of a run, beside its colour if there are several.
const nameOf = (run) => (single ? [run.name] : [swatch(run.color), run.name]);

function section(id, title, ...children) {
  const heading = element("h2", { id: `${id}-title` }, title);
  const box = element("section", { id, "aria-labelledby": `${id}-title` }, heading, ...children);
  if (children.some((child) => child)) document.getElementById("main").append(box);
}
