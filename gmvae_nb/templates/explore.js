const by = id => document.getElementById(id);
const make = (tag, text, attributes) => {
  const e = Object.assign(document.createElement(tag), attributes);
  if (text !== undefined) e.textContent = text;
  return e;
};
const say = text => { by("said").textContent = text; };
const count = n => n.toLocaleString("en");
const counted = (n, word) => `${count(n)} ${word}${n === 1 ? "" : "s"}`;
const are = n => n === 1 ? "is" : "are";

// ---- What the page was packed with: see "How a cell is packed" on the page of gmvae_nb
async function unpack() {
  const text = by("cells").textContent.trim(),
    packed = Uint8Array.from(atob(text), c => c.charCodeAt(0)),
    stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate")),
    bytes = await new Response(stream).arrayBuffer(),
    length = new DataView(bytes).getUint32(0, true),
    data = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length))),
    kinds = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array };
  let at = 4 + length;
  data.blocks = data.blocks.map(([kind, n]) => {
    const block = bytes.slice(at, at + n * kinds[kind].BYTES_PER_ELEMENT);
    at += block.byteLength;
    return new kinds[kind](block);
  });
  return data;
}

// ---- Colours
const VIRIDIS = ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30",
  "fde725"].map(rgb);
const dark = matchMedia("(prefers-color-scheme: dark)");
function rgb(text) {
  const v = parseInt(text.replace("#", ""), 16);
  return [v >> 16, v >> 8 & 255, v & 255];
}
// many is what differs most from the ground: dark on white, bright on black
function ramp(t) {
  const s = (dark.matches ? t : 1 - t) * (VIRIDIS.length - 1),
    i = Math.min(Math.floor(s), VIRIDIS.length - 2);
  return VIRIDIS[i].map((v, j) => Math.round(v + (s - i) * (VIRIDIS[i + 1][j] - v)));
}
const css = c => `rgb(${c.join()})`;
const ground = () => rgb(getComputedStyle(document.documentElement).getPropertyValue("--map"));

function dot(colour) { // no style attribute: the page allows none
  const i = make("i", "", { className: "dot" });
  i.style.background = colour;
  return i;
}

// ---- Text that leaves the page
function csv(rows) { // as in gmvae_nb/tables.py: no text is a formula
  const number = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/,
    formula = /^'*[-=+@\t\r\n\uff1d\uff0b\uff0d\uff20]/;
  const cell = value => {
    let text = String(value);
    if (!number.test(text) && formula.test(text)) text = "'" + text;
    return /[",\r\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  return rows.map(row => row.map(cell).join() + "\n").join("");
}
function download(name, text) {
  const a = make("a", "", {
    href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: name,
  });
  document.body.append(a);
  a.click();
  a.remove();
  setTimeout(() => URL.revokeObjectURL(a.href), 60000);
}
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make("textarea", "", { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

// ---- The table of markers: it needs none of the cells
function markers(colourBy, onPage) {
  const table = by("markers-table");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows],
    cluster = by("markers-cluster"), part = by("markers-gene"),
    value = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent.trim(),
    shown = () => [...body.rows].filter(row => !row.hidden);
  const filter = () => {
    const text = part.value.trim().toLowerCase();
    for (const row of rows)
      row.hidden = cluster.value !== "" && value(row, 0) !== cluster.value
        || !value(row, 2).toLowerCase().includes(text);
    const listed = shown().length;
    say(`${counted(listed, "marker")} ${are(listed)} listed`);
  };
  cluster.addEventListener("change", filter);
  part.addEventListener("input", filter);
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => head.firstElementChild.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const number = rows.every(row => !isNaN(value(row, i)));
    const compare = number ? (a, b) => value(a, i) - value(b, i)
      : (a, b) => value(a, i).localeCompare(value(b, i));
    body.append(...rows.sort((a, b) => sign * compare(a, b)));
  }));
  by("markers-csv").addEventListener("click", () => download("markers.csv", csv([
    heads.map(head => head.dataset.name),
    ...shown().map(row => heads.map((_, i) => value(row, i))),
  ])));
  body.addEventListener("click", e => {
    const gene = e.target.closest("button");
    if (gene) colourBy(gene.textContent);
  });
  for (const button of body.querySelectorAll("button"))
    button.disabled = !onPage(button.textContent);
}

// ---- The maps
function explore(data) {
  const n = data.cells, blocks = data.blocks, total = blocks[data.total];
  const hidden = data.groups.map(() => new Set()), shown = new Uint8Array(n).fill(1);
  const chosen = new Uint8Array(n), shade = new Uint16Array(n);
  // a name as it is written, and for what was typed also without case
  const genes = new Map(data.genes.map((g, i) => [g.name, i])), typed = new Map();
  for (const g of data.genes) {
    const name = g.name.trim().toLowerCase();
    typed.set(name, [...typed.get(name) ?? [], g.name]);
  }
  let n_chosen = 0, colours = [], order = null, now = null, hovered = -1, lasso = false;

  // a mixed order, the same each time, so that no group hides another
  const mixed = Uint32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1, seed = 1; i > 0; i--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = seed % (i + 1);
    [mixed[i], mixed[j]] = [mixed[j], mixed[i]];
  }

  const numberAt = (number, i) => blocks[number.block][i] * number.unit;
  const geneAt = (gene, i) => Math.log1p(1e4 * blocks[gene.block][i] / Math.max(total[i], 1));

  const maps = data.maps.map((m, k) => {
    const figure = by(`map${k}`), [canvas, marks] = figure.querySelectorAll("canvas");
    const map = { figure, canvas, marks, place: blocks[m.block], title: m.title,
      view: { x: .5, y: .5, k: 1 }, grid: null, labels: [] };
    map.grid = gridOf(map.place);
    return map;
  });

  // cells by the square that they lie in, for the one under the pointer
  function gridOf(place) {
    const start = new Uint32Array(64 * 64 + 1), cells = new Uint32Array(n),
      square = i => (place[2 * i + 1] >> 10) * 64 + (place[2 * i] >> 10);
    for (let i = 0; i < n; i++) start[square(i) + 1]++;
    for (let s = 0; s < 64 * 64; s++) start[s + 1] += start[s];
    const next = start.slice();
    for (let i = 0; i < n; i++) cells[next[square(i)]++] = i;
    return { start, cells };
  }
  const side = map => map.canvas.width;
  const toX = (map, x) => ((x / 65535 - map.view.x) * map.view.k + .5) * side(map);
  const toY = (map, y) => ((1 - y / 65535 - map.view.y) * map.view.k + .5) * side(map);
  const fromX = (map, x) => ((x / side(map) - .5) / map.view.k + map.view.x) * 65535;
  const fromY = (map, y) => (1 - (y / side(map) - .5) / map.view.k - map.view.y) * 65535;

  function nearest(map, x, y, reach) {
    const { grid, place } = map, px = fromX(map, x), py = fromY(map, y),
      r = reach / side(map) / map.view.k * 65535,
      square = v => Math.max(0, Math.min(63, Math.floor(v / 1024)));
    let best = -1, least = r * r;
    for (let b = square(py - r); b <= square(py + r); b++)
      for (let a = square(px - r); a <= square(px + r); a++)
        for (let j = grid.start[b * 64 + a]; j < grid.start[b * 64 + a + 1]; j++) {
          const i = grid.cells[j], dx = place[2 * i] - px, dy = place[2 * i + 1] - py;
          if (shown[i] && dx * dx + dy * dy < least) [best, least] = [i, dx * dx + dy * dy];
        }
    return best;
  }

  // discs with soft edges, straight into the pixels: 60,000 cells in some ten milliseconds
  function paint(map) {
    const size = side(map), pen = map.canvas.getContext("2d"), g = ground(),
      image = pen.createImageData(size, size), px = image.data, { place, view } = map,
      ratio = size / map.canvas.clientWidth || 1;
    new Uint32Array(px.buffer).fill((255 << 24 | g[2] << 16 | g[1] << 8 | g[0]) >>> 0);
    const r = ratio * Math.min(7, Math.max(1.1, 90 / Math.sqrt(n)) * Math.sqrt(view.k)),
      half = Math.ceil(r), width = 2 * half + 1, disc = [];
    for (let y = -half; y <= half; y++)
      for (let x = -half; x <= half; x++) {
        const part = Math.max(0, Math.min(1, r + .5 - Math.hypot(x, y)));
        if (part > 0) disc.push([y * size + x << 2, part]);
      }
    const at = Int32Array.from(disc, d => d[0]), part = Float32Array.from(disc, d => d[1]);
    const table = colours.map(c => [c, c.map((v, j) => Math.round(.18 * v + .82 * g[j]))]);
    const put = (i, c) => {
      const x = Math.round(toX(map, place[2 * i])), y = Math.round(toY(map, place[2 * i + 1]));
      if (x < half || y < half || x >= size - half || y >= size - half) return;
      const middle = y * size + x << 2;
      for (let d = 0; d < at.length; d++) {
        const p = middle + at[d], a = part[d];
        px[p] += a * (c[0] - px[p]);
        px[p + 1] += a * (c[1] - px[p + 1]);
        px[p + 2] += a * (c[2] - px[p + 2]);
      }
    };
    for (const i of order) if (shown[i] && !chosen[i]) put(i, table[shade[i]][n_chosen ? 1 : 0]);
    if (n_chosen) for (const i of order) if (shown[i] && chosen[i]) put(i, table[shade[i]][0]);
    pen.putImageData(image, 0, 0);
    pen.font = `600 ${13 * ratio}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineWidth = 4 * ratio;
    pen.lineJoin = "round";
    pen.strokeStyle = css(g);
    pen.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    const taken = [], tall = 15 * ratio;
    for (const [name, at_x, at_y] of map.labels) { // of the largest group first
      const wide = pen.measureText(name).width / 2 + 3 * ratio, y = toY(map, at_y);
      const x = Math.max(wide, Math.min(size - wide, toX(map, at_x)));
      if (taken.some(t => Math.abs(t[0] - x) < t[2] + wide && Math.abs(t[1] - y) < tall)) continue;
      taken.push([x, y, wide]);
      pen.strokeText(name, x, y);
      pen.fillText(name, x, y);
    }
  }

  // the ring around a cell, the lasso, and what is known of the cell
  function mark(map, path) {
    const size = map.marks.width, pen = map.marks.getContext("2d"),
      ratio = size / map.marks.clientWidth || 1;
    pen.clearRect(0, 0, size, size);
    pen.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    pen.lineWidth = 2 * ratio;
    if (hovered >= 0) {
      pen.beginPath();
      pen.arc(toX(map, map.place[2 * hovered]), toY(map, map.place[2 * hovered + 1]),
        8 * ratio, 0, 7);
      pen.stroke();
    }
    if (path && path.length) {
      pen.setLineDash([6 * ratio, 4 * ratio]);
      pen.beginPath();
      for (const [x, y] of path) pen.lineTo(x, y);
      pen.closePath();
      pen.stroke();
      pen.setLineDash([]);
    }
  }
  function facts(i) {
    const rows = data.groups.map(g => [g.title, g.names[blocks[g.block][i]]]);
    for (const x of data.numbers) rows.push([x.title, words(x, numberAt(x, i))]);
    if (now.kind === "gene") {
      const c = blocks[now.of.block][i];
      rows.push([now.of.name, counted(c, "count")]);
    }
    return rows;
  }
  const words = (x, v) => x.unit === 1 ? count(v) : v.toFixed(x.digits);
  function hover(i, map, aloud) {
    if (i !== hovered) {
      hovered = i;
      maps.forEach(m => mark(m));
    }
    maps.forEach(m => { if (m !== map) m.figure.querySelector(".tip").hidden = true; });
    if (!map) return;
    const tip = map.figure.querySelector(".tip");
    tip.hidden = i < 0;
    if (i < 0) return;
    const rows = facts(i), list = make("dl");
    for (const [name, value] of rows) {
      const dt = make("dt"), dd = make("dd");
      dt.append(make("bdi", name));
      dd.append(make("bdi", value));
      list.append(dt, dd);
    }
    const head = make("b");
    head.append(make("bdi", data.names[i]));
    tip.replaceChildren(head, list);
    const left = toX(map, map.place[2 * i]) / side(map) < .5;
    const top = toY(map, map.place[2 * i + 1]) / side(map) < .5;
    tip.style.inset = [top ? "auto" : "8px", left ? "8px" : "auto", top ? "8px" : "auto",
      left ? "auto" : "8px"].join(" ");
    if (aloud) say(`${data.names[i]}: ${rows.map(r => r.join(" ")).join(", ")}`);
  }

  // one painting for any number of changes between two frames
  let asked = false;
  function draw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      maps.forEach(map => { paint(map); mark(map); });
    });
  }
  function fit() {
    for (const map of maps) {
      const width = Math.round(map.figure.clientWidth * Math.min(devicePixelRatio || 1, 2));
      for (const c of [map.canvas, map.marks])
        if (width && c.width !== width) c.width = c.height = width;
    }
    draw();
  }

  // ---- Which cells are shown
  function look() {
    shown.fill(1);
    data.groups.forEach((g, k) => {
      if (!hidden[k].size) return;
      const codes = blocks[g.block];
      for (let i = 0; i < n; i++) if (hidden[k].has(codes[i])) shown[i] = 0;
    });
    const n_shown = shown.reduce((a, b) => a + b, 0);
    by("shown").textContent = n_shown < n ? `${count(n_shown)} of ${counted(n, "cell")} ${are(n_shown)} shown.` : "";
    by("show-all").hidden = n_shown === n;
    label();
    draw();
  }
  const median = list => list.sort((a, b) => a - b)[list.length >> 1];
  function label() {
    for (const map of maps) {
      map.labels = [];
      if (now.kind !== "group" || !now.of.on_map) continue;
      const codes = blocks[now.of.block], xs = now.of.names.map(() => []), ys = xs.map(() => []);
      for (let i = 0; i < n; i++) if (shown[i]) {
        xs[codes[i]].push(map.place[2 * i]);
        ys[codes[i]].push(map.place[2 * i + 1]);
      }
      now.of.names.forEach((name, g) => {
        const short = [...name].length > 24 ? [...name].slice(0, 23).join("") + "…" : name;
        const cells = xs[g].length;
        if (cells) map.labels.push([short, median(xs[g]), median(ys[g]), cells]);
      });
      map.labels.sort((a, b) => b[3] - a[3]);
    }
  }

  // ---- What the colours mean
  function colour(kind, index) {
    const of = data[kind + "s"][index];
    now = { kind, of, index };
    hover(-1);
    let high = 0;
    if (kind === "group") {
      colours = of.colours.map(rgb);
      shade.set(blocks[of.block]);
      order = mixed;
    } else {
      const value = kind === "gene" ? geneAt : numberAt, values = new Float32Array(n);
      for (let i = 0; i < n; i++) high = Math.max(high, values[i] = value(of, i));
      high = of.high || high || 1;
      for (let i = 0; i < n; i++) shade[i] = Math.round(255 * Math.min(1, values[i] / high));
      colours = Array.from({ length: 256 }, (_, i) => ramp(i / 255));
      if (kind === "gene") { // none is grey, one is a colour
        colours[0] = ground().map(v => Math.round(dark.matches ? v + .16 * (255 - v) : .86 * v));
        for (let i = 0; i < n; i++) if (values[i] > 0 && !shade[i]) shade[i] = 1;
      }
      order = byShade();
    }
    legend(high);
    label();
    draw();
    say(`coloured by ${of.title || of.name}`);
  }
  function byShade() { // the highest last, on top
    const next = new Uint32Array(257), sorted = new Uint32Array(n);
    for (let i = 0; i < n; i++) next[shade[i] + 1]++;
    for (let s = 0; s < 256; s++) next[s + 1] += next[s];
    for (const i of mixed) sorted[next[shade[i]]++] = i;
    return sorted;
  }
  function legend(high) {
    const of = now.of, box = by("legend"), buttons = [];
    by("legend-title").textContent = of.title || of.name;
    by("legend-hint").hidden = now.kind !== "group";
    if (now.kind !== "group") {
      const bar = make("div", "", { className: "ramp" }), ends = make("div", "", { className: "ends" });
      bar.style.background = `linear-gradient(90deg, ${
        [0, .125, .25, .375, .5, .625, .75, .875, 1].map(t => css(ramp(t))).join()})`;
      const digits = now.kind === "gene" ? 1 : of.digits;
      ends.append(make("span", "0"), make("span", of.note || ""),
        make("span", now.kind === "number" ? words(of, high) : high.toFixed(digits)));
      if (now.kind === "gene") {
        const found = blocks[of.block].reduce((a, c) => a + (c > 0), 0);
        ends.children[1].textContent = "log(1 + counts per 10,000)";
        box.replaceChildren(bar, ends, make("p",
          `Found in ${(100 * found / n).toFixed(1)} % of the cells; the others are grey.`, { className: "small" }));
      } else box.replaceChildren(bar, ends);
      return;
    }
    const cells = new Uint32Array(of.names.length), off = hidden[now.index];
    for (const c of blocks[of.block]) cells[c]++;
    of.names.forEach((name, g) => {
      const button = make("button", "", { type: "button" });
      button.append(dot(of.colours[g]), make("bdi", name),
        make("span", count(cells[g]), { className: "many" }));
      button.setAttribute("aria-pressed", !off.has(g));
      button.addEventListener("click", e => {
        if (e.shiftKey) of.names.forEach((_, other) => off[other === g ? "delete" : "add"](other));
        else off[off.has(g) ? "delete" : "add"](g);
        buttons.forEach((b, other) => b.setAttribute("aria-pressed", !off.has(other)));
        look();
        say(`${name} is ${off.has(g) ? "hidden" : "shown"}`);
      });
      buttons.push(button);
    });
    const none = make("button", "hide all", { type: "button", className: "plain" });
    none.addEventListener("click", () => {
      of.names.forEach((_, g) => off.add(g));
      buttons.forEach(b => b.setAttribute("aria-pressed", false));
      look();
    });
    box.replaceChildren(...buttons, none);
    const n_colours = new Set(of.colours).size;
    if (n_colours < of.names.length)
      box.append(make("p", `${count(of.names.length)} names share ${n_colours} colours.`,
        { className: "small" }));
  }

  // ---- Cells that were chosen
  function choose(test) {
    n_chosen = 0;
    for (let i = 0; i < n; i++) n_chosen += chosen[i] = shown[i] && test(i) ? 1 : 0;
    tell();
    draw();
  }
  function tell() {
    const list = [], cluster = data.groups[0], cells = new Uint32Array(cluster.names.length);
    for (let i = 0; i < n; i++) if (chosen[i]) {
      cells[blocks[cluster.block][i]]++;
      if (list.length < 500) list.push(data.names[i]);
    }
    const parts = [...cells.keys()].filter(g => cells[g]).sort((a, b) => cells[b] - cells[a])
      .map(g => `${count(cells[g])} of cluster ${cluster.names[g]}`);
    const text = n_chosen ? `${counted(n_chosen, "cell")} ${are(n_chosen)} selected: ${parts.join(", ")}.`
      : "No cell is selected.";
    by("selected").textContent = text;
    by("selection").hidden = !n_chosen;
    by("barcodes").value = list.join("\n") + (n_chosen > list.length ? "\n…" : "");
    say(text);
  }
  function chosenRows() {
    const rows = [["barcode", ...data.groups.map(g => g.title), ...data.numbers.map(x => x.title)]];
    for (let i = 0; i < n; i++) if (chosen[i])
      rows.push([data.names[i], ...data.groups.map(g => g.names[blocks[g.block][i]]),
        ...data.numbers.map(x => +numberAt(x, i).toFixed(4))]);
    return rows;
  }
  function within(map, path) { // even-odd rule
    const xs = path.map(p => fromX(map, p[0])), ys = path.map(p => fromY(map, p[1]));
    const low = [Math.min(...xs), Math.min(...ys)], high = [Math.max(...xs), Math.max(...ys)];
    return i => {
      const x = map.place[2 * i], y = map.place[2 * i + 1];
      if (x < low[0] || y < low[1] || x > high[0] || y > high[1]) return false;
      let inside = false;
      for (let a = 0, b = xs.length - 1; a < xs.length; b = a++)
        if (ys[a] > y !== ys[b] > y
            && x < (xs[b] - xs[a]) * (y - ys[a]) / (ys[b] - ys[a]) + xs[a]) inside = !inside;
      return inside;
    };
  }

  // ---- Mouse, finger and keys
  function zoom(map, factor, x, y) { // what lies at x, y stays there
    const s = side(map), view = map.view, k = Math.max(1, Math.min(60, view.k * factor));
    const dx = (x ?? s / 2) / s - .5, dy = (y ?? s / 2) / s - .5;
    view.x += dx / view.k - dx / k;
    view.y += dy / view.k - dy / k;
    view.k = k;
    move(map, 0, 0);
  }
  function move(map, dx, dy) { // in parts of the map
    const view = map.view, room = .5 - .5 / view.k;
    view.x = Math.max(.5 - room, Math.min(.5 + room, view.x - dx / view.k));
    view.y = Math.max(.5 - room, Math.min(.5 + room, view.y - dy / view.k));
    draw();
  }
  function home(map) {
    Object.assign(map.view, { x: .5, y: .5, k: 1 });
    draw();
  }
  for (const map of maps) {
    const top = map.marks, fingers = new Map();
    let path = null, moved = false;
    const at = e => {
      const box = top.getBoundingClientRect();
      return [(e.clientX - box.left) / box.width * side(map),
        (e.clientY - box.top) / box.height * side(map)];
    };
    top.addEventListener("pointerdown", e => {
      if (e.button) return;
      top.setPointerCapture(e.pointerId);
      fingers.set(e.pointerId, at(e));
      path = (lasso || e.shiftKey) && fingers.size === 1 ? [at(e)] : null;
      moved = false;
      hover(-1, map);
    });
    top.addEventListener("pointermove", e => {
      const here = at(e), before = fingers.get(e.pointerId);
      if (!before) return hover(nearest(map, ...here, reach()), map);
      moved ||= Math.hypot(here[0] - before[0], here[1] - before[1]) > 1;
      fingers.set(e.pointerId, here);
      if (path) {
        path.push(here);
        mark(map, path);
      } else if (fingers.size === 2) {
        const other = [...fingers].find(([id]) => id !== e.pointerId)[1],
          apart = p => Math.hypot(p[0] - other[0], p[1] - other[1]) || 1;
        zoom(map, apart(here) / apart(before), (here[0] + other[0]) / 2, (here[1] + other[1]) / 2);
      } else move(map, (here[0] - before[0]) / side(map), (here[1] - before[1]) / side(map));
    });
    const reach = () => 14 * side(map) / top.clientWidth;
    const up = e => {
      fingers.delete(e.pointerId);
      if (!moved) hover(nearest(map, ...at(e), reach()), map);
      if (path && path.length > 2) choose(within(map, path));
      if (path) mark(map);
      path = null;
    };
    top.addEventListener("pointerup", up);
    top.addEventListener("pointercancel", up);
    top.addEventListener("pointerleave", e => { if (e.pointerType === "mouse") hover(-1, map); });
    top.addEventListener("blur", () => hover(-1, map));
    top.addEventListener("wheel", e => {
      e.preventDefault();
      zoom(map, Math.exp(-e.deltaY * (e.deltaMode ? .05 : .0015)), ...at(e));
    }, { passive: false });
    top.addEventListener("keydown", e => {
      const step = .1, keys = {
        ArrowLeft: () => move(map, step, 0), ArrowRight: () => move(map, -step, 0),
        ArrowUp: () => move(map, 0, step), ArrowDown: () => move(map, 0, -step),
        "+": () => zoom(map, 1.4), "=": () => zoom(map, 1.4), "-": () => zoom(map, 1 / 1.4),
        0: () => home(map), Escape: () => choose(() => false),
        Enter: () => hover(nearest(map, side(map) / 2, side(map) / 2, side(map)), map, true),
      };
      if (!keys[e.key] || e.ctrlKey || e.metaKey || e.altKey) return;
      e.preventDefault();
      keys[e.key]();
    });
    const press = (name, f) =>
      map.figure.parentElement.querySelector(`[data-do=${name}]`).addEventListener("click", f);
    press("in", () => zoom(map, 1.6));
    press("out", () => zoom(map, 1 / 1.6));
    press("whole", () => home(map));
    press("view", () => choose(i => {
      const x = toX(map, map.place[2 * i]), y = toY(map, map.place[2 * i + 1]);
      return x >= 0 && y >= 0 && x <= side(map) && y <= side(map);
    }));
  }
  for (const [id, on] of [["mode-move", false], ["mode-lasso", true]])
    by(id).addEventListener("click", () => {
      lasso = on;
      by("mode-move").setAttribute("aria-pressed", !on);
      by("mode-lasso").setAttribute("aria-pressed", on);
      document.body.classList.toggle("lasso", on);
    });
  by("show-all").addEventListener("click", () => {
    hidden.forEach(set => set.clear());
    if (now.kind === "group") legend();
    look();
  });
  by("copy").addEventListener("click", async () => {
    await copy(data.names.filter((_, i) => chosen[i]).join("\n"));
    say(`${counted(n_chosen, "barcode")} ${n_chosen === 1 ? "was" : "were"} copied`);
  });
  by("cells-csv").addEventListener("click", () => download("cells.csv", csv(chosenRows())));
  by("clear").addEventListener("click", () => choose(() => false));

  // ---- Colour by what, by menu or by the name of a gene
  const menu = by("colour-by"), search = by("gene");
  for (const kind of ["group", "number"])
    data[kind + "s"].forEach((of, i) => menu.append(make("option", of.title, { value: `${kind} ${i}` })));
  for (const g of data.genes) by("genes").append(make("option", undefined, { value: g.name }));
  menu.addEventListener("change", () => {
    const [kind, i] = menu.value.split(" ");
    search.value = "";
    by("gene-note").textContent = "";
    colour(kind, +i);
  });
  const onPage = name => genes.has(name);
  function colourBy(name) {
    const alike = typed.get(name.trim().toLowerCase()) ?? [],
      i = genes.get(name) ?? genes.get(name.trim())
        ?? (alike.length === 1 ? genes.get(alike[0]) : undefined);
    let note = "";
    if (i === undefined && alike.length)
      note = `${name.trim()} may be ${alike.join(" or ")}: write it as one of them.`;
    else if (i === undefined && name.trim())
      note = `${name.trim()} is not among the ${counted(data.genes.length, "gene")} of this page; `
        + "gmvae_report with --genes adds it.";
    by("gene-note").textContent = note;
    if (i === undefined) return;
    search.value = data.genes[i].name;
    menu.value = "gene";
    colour("gene", i);
    by("maps").scrollIntoView({ block: "nearest" });
  }
  menu.append(make("option", "a gene", { value: "gene", disabled: true }));
  search.addEventListener("change", () => colourBy(search.value));
  search.addEventListener("keydown", e => { if (e.key === "Enter") colourBy(search.value); });

  for (const e of document.querySelectorAll("[data-live]")) e.hidden = false;
  for (const map of maps) map.figure.querySelector("img").hidden = true;
  dark.addEventListener("change", () => colour(now.kind, now.index));
  new ResizeObserver(fit).observe(document.body);
  colour("group", 0);
  fit();
  markers(colourBy, onPage);
  document.documentElement.dataset.ready = "maps";
}

(async () => {
  try {
    explore(await unpack());
  } catch (error) { // the pictures stay
    by("said").textContent = `This browser cannot draw the maps (${error.message}); `
      + "the pictures below show them.";
    by("said").className = "remark";
    for (const e of document.querySelectorAll("[data-live=table]")) e.hidden = false;
    markers(() => {}, () => false);
    document.documentElement.dataset.ready = "pictures";
  }
})();
