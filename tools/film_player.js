const STEP_NAMES = [
  "the recipe", "+ centres from the data", "+ exact bound", "+ warm-up",
  "+ small offsets for w", "no w at all",
];
const SWITCHES = [
  // the order of a film's key, after K
  ["K", "K, components", DATA.Ks.map((K) => [`${K}`, `${K}`])],
  ["reach", "w moves the components", [
    ["far", "as far as in 80 dimensions"], ["near", "as far as in 2 dimensions"],
    ["offsets", "hardly, at the start"], ["off", "never: no w"]]],
  ["start", "components start", [
    ["random", "anywhere"], ["data", "at groups of cells"],
    ["warm-up", "at groups, after a warm-up"]]],
  ["bound", "bound", [["paper", "the paper's"], ["exact", "exact"]]],
  ["lam", "\u03bb, free nats", [["0", "0"], ["1", "log K"]]],
];
// as in nbs/matplotlibrc
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#666666", "#9060f0"];
const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const SIDE = 360, LAST = DATA.steps.length - 1;

const number = (text, at, n) => {
  let value = 0;
  for (let i = at; i < at + n; i++) value = 64 * value + DIGITS.indexOf(text[i]);
  return value;
};

// a film: for each frame its cells, components and scores, all in units of the picture
const opened = {};
function film(key) {
  if (opened[key]) return opened[key];
  const [half, ...frames] = DATA.films[key];
  const on = (v) => SIDE * (0.5 + v / half / 2);
  opened[key] = frames.map(([cells, parts, usage, ari]) => {
    const frame = { cells: [], parts: [], usage, ari };
    for (let i = 0; i < cells.length; i += 3) {
      const bits = number(cells, i, 3);
      const [x, y, k] = [bits >> 11, (bits >> 4) & 127, bits & 15];
      frame.cells.push([SIDE * x / 127, SIDE * (1 - y / 127), k]);
    }
    for (let i = 0; i < parts.length; i += 12) {
      const part = [0, 2, 4, 6, 8, 10].map((j) => number(parts, i + j, 2) / 4095);
      const mean = part.slice(0, 2).map((v) => on(4 * half * (v - 0.5)));
      const radii = part.slice(2).map((v) => SIDE * v * 1.5);
      frame.parts.push([mean[0], SIDE - mean[1], ...radii]);
    }
    return frame;
  });
  return opened[key];
}

function element(name, attributes = {}, ...children) {
  const svg = ["svg", "circle", "ellipse", "g", "title"].includes(name);
  const e = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  e.append(...children);
  return e;
}

// between two frames: places in between, components of the nearer one
const mixed = (a, b, t) => a.map((v, i) => v + t * (b[i] - v));
function at(frames, time) {
  const i = Math.min(Math.floor(time), LAST - 1), t = time - i;
  const [a, b] = [frames[i], frames[i + 1]], near = t < 0.5 ? a : b;
  return {
    cells: a.cells.map((c, n) => [...mixed(c.slice(0, 2), b.cells[n], t), near.cells[n][2]]),
    parts: a.parts.map((p, k) => mixed(p, b.parts[k], t)),
    usage: near.usage, ari: near.ari,
  };
}

function draw(svg, frame, colouring, small) {
  const used = new Set(frame.cells.map((c) => c[2]));
  const colour = (n, k) => COLOURS[{
    component: k, type: +DATA.types[n], batch: +DATA.batch[n] }[colouring] % 8];
  const shapes = [];
  frame.parts.forEach(([x, y, rx, ry, Rx, Ry], k) => {
    const stroke = used.has(k) ? (colouring === "component" ? COLOURS[k % 8] : "currentColor") : "#999999";
    const place = { cx: x.toFixed(1), cy: y.toFixed(1), stroke };
    const strong = used.has(k) ? 1 : 0.5;
    if (!small && Rx > rx + 2)
      shapes.push(element("ellipse", { ...place, rx: Rx.toFixed(1), ry: Ry.toFixed(1), fill: "none",
        "stroke-dasharray": "5 4", "stroke-opacity": 0.6 * strong, "stroke-width": 1.2 }));
    shapes.push(element("ellipse", { ...place, rx: rx.toFixed(1), ry: ry.toFixed(1),
      fill: used.has(k) ? stroke : "none",
      "fill-opacity": 0.1, "stroke-opacity": strong, "stroke-width": small ? 5 : 2 }));
  });
  frame.cells.forEach(([x, y, k], n) => {
    const c = colour(n, k), ring = colouring === "component" && k > 7;
    shapes.push(element("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: small ? 9 : 3.4,
      fill: ring ? "none" : c, stroke: c, "stroke-width": ring ? 1.5 : 0.5, "fill-opacity": 0.85 }));
  });
  svg.replaceChildren(...shapes);
}

const CSS = `
.gm-film { margin: 1rem 0; max-width: 44rem; }
.gm-film .gm-story { display: grid; grid-template-columns: repeat(3, 1fr); gap: .4rem; }
@media (min-width: 800px) { .gm-film .gm-story { grid-template-columns: repeat(6, 1fr); } }
.gm-film button, .gm-film select { font: inherit; color: inherit; background: transparent;
  border: 1px solid #8888; border-radius: .3rem; }
.gm-film select option { color: #222; background: #fff; }
.gm-film .gm-story button { padding: .25rem; font-size: .78rem; line-height: 1.25;
  text-align: center; display: flex; flex-direction: column; justify-content: flex-start; }
.gm-film .gm-story svg { width: 100%; aspect-ratio: 1; display: block; }
.gm-film [aria-pressed=true] { outline: 2px solid #1f77d0; }
.gm-film :is(button, select, input):focus-visible { outline: 3px solid #d98200; }
.gm-film .gm-main { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: .7rem; }
.gm-film .gm-view { flex: 1 1 18rem; max-width: 26rem; }
.gm-film .gm-view > svg { width: 100%; aspect-ratio: 1; border: 1px solid #8886;
  border-radius: .3rem; overflow: hidden; }
.gm-film .gm-time { display: flex; gap: .6rem; align-items: center; }
.gm-film .gm-time input { flex: 1; min-width: 0; accent-color: #1f77d0; }
.gm-film .gm-side { flex: 1 1 13rem; font-size: .85rem; }
.gm-film label { display: block; margin-bottom: .4rem; }
.gm-film select { display: block; width: 100%; padding: .15rem .3rem; }
.gm-film output { display: block; min-height: 3.2em; font-size: .9rem; }
.gm-film .gm-legend span { display: inline-block; margin-right: .7em; }
.gm-film .gm-legend i { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .3em; }
`;

function mount(root) {
  const now = { time: LAST, colouring: "component" };
  [now.K, now.reach, now.start, now.bound, now.lam] = DATA.story[0].split("/");
  const key = () => SWITCHES.map(([name]) => now[name]).join("/");

  const view = element("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img" });
  const said = element("output", { "aria-live": "polite" });
  const legend = element("div", { class: "gm-legend" });
  const slider = element("input", { type: "range", min: 0, max: LAST, step: 1, "aria-label": "time of the training" });
  const play = element("button", { type: "button" }, "\u25b6 play");
  const menus = {};
  const side = element("div", { class: "gm-side" });
  const colourings = [["component", "component"], ["type", "cell type"], ["batch", "batch"]];
  for (const [name, title, choices] of [...SWITCHES, ["colouring", "colour of the cells", colourings]]) {
    const options = choices.map(([value, text]) => element("option", { value }, text));
    menus[name] = element("select", { name }, ...options);
    menus[name].addEventListener("change", () => { now[name] = menus[name].value; show(); });
    side.append(element("label", {}, title, menus[name]));
  }
  const story = DATA.story.map((of, i) => {
    const last = film(of)[LAST];
    const small = element("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, "aria-hidden": "true" });
    draw(small, last, "component", true);
    const scores = element("span", {}, "K", element("sub", {}, "eff"),
      ` ${last.usage.toFixed(1)}, ARI ${last.ari.toFixed(2)}`);
    const b = element("button", { type: "button" }, small, `${i + 1} ${STEP_NAMES[i]}`, scores);
    b.addEventListener("click", () => {
      [now.K, now.reach, now.start, now.bound, now.lam] = of.split("/");
      now.time = LAST;
      show();
    });
    return b;
  });

  function show() {
    const frames = film(key()), frame = at(frames, now.time), near = Math.round(now.time);
    draw(view, frame, now.colouring, false);
    const step = DATA.story.indexOf(key());
    story.forEach((b, i) => b.setAttribute("aria-pressed", i === step));
    for (const name in menus) menus[name].value = now[name];
    slider.value = near;
    const when = `after ${DATA.steps[near]} mini-batches`;
    slider.setAttribute("aria-valuetext", when);
    const what = step < 0 ? "your own settings" : `${step + 1} ${STEP_NAMES[step]}`;
    const usage = `effective number of components ${frame.usage.toFixed(1)} of ${now.K}`;
    const text = `${what}, ${when}: ${usage}, ARI with the cell types ${frame.ari.toFixed(2)}`;
    if (said.textContent !== text) said.textContent = text;
    view.setAttribute("aria-label", `${DATA.types.length} cells and ${now.K} components in the plane of x. ${text}`);
    const names = { component: [], type: DATA.names, batch: ["control", "stimulated"] }[now.colouring];
    legend.replaceChildren(...names.map((name, i) =>
      element("span", {}, element("i", { style: `background:${COLOURS[i]}` }), name)));
  }

  let running = 0;
  function stop() { cancelAnimationFrame(running); running = 0; play.textContent = "\u25b6 play"; }
  play.addEventListener("click", () => {
    if (running) return stop();
    play.textContent = "\u23f8 pause";
    let before = null;
    if (now.time >= LAST) now.time = 0;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const tick = (t) => {
      now.time = Math.min(LAST, now.time + (before === null ? 0 : (t - before) / 900));
      before = t;
      if (calm) { // frames, without movement between them
        const exact = now.time;
        now.time = Math.floor(exact); show(); now.time = exact;
      } else show();
      if (now.time >= LAST) return stop();
      running = requestAnimationFrame(tick);
    };
    running = requestAnimationFrame(tick);
  });
  slider.addEventListener("input", () => { stop(); now.time = +slider.value; show(); });

  const time = element("div", { class: "gm-time" }, play, slider);
  root.replaceChildren(
    element("style", {}, CSS),
    element("div", { class: "gm-story", role: "group", "aria-label": "steps of the cure" }, ...story),
    element("div", { class: "gm-main" }, element("div", { class: "gm-view" }, view, time, said, legend), side));
  root.classList.add("gm-film");
  show();
}

const start = () => document.querySelectorAll("[data-gmvae-film]").forEach(mount);
if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
