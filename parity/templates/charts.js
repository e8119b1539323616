"use strict";
// Reading side of parity/report.py's `pack`, numbers as text, and the charts. Text from the data
// reaches the page through textContent and setAttribute only.

const STATS = ["min", "max", "mean", "std", "rms", "absmax", "nan", "inf", "headroom"];
const MEASURES = [["rel_rmse", "relative RMSE"], ["floor", "floor"], ["excess", "excess"], ["peak_excess", "peak excess"],
  ["rmse", "RMSE"], ["max_abs", "largest difference"], ["max_at", "at index"], ["cosine", "cosine"], ["psnr", "PSNR, dB"]];
const UNJUDGED = { missing: "M0 6L6 0", uncertain: "M0 6L6 0M0 0L6 6", skipped: "M0 3L6 3" };

async function decode(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const { head, columns } = await new Response(stream).json();
  const words = (key) => { const [list, codes] = columns[key]; return (i) => list[codes[i]]; };
  const read = { row: words("range.row"), range: words("range.verdict") };
  for (const key of ["name", "stage", "shape", "dtype", "verdict", "reason", "floor_by", "max_at"]) read[key] = words(key);
  const rows = [];
  head.entries.forEach((entry, which) => {
    entry.start = rows.length;
    for (let n = 0; n < entry.rows; n++) rows.push(rowOf(rows.length, which, entry, columns, read));
  });
  return { ...head, rows };
}

function rowOf(i, which, entry, columns, read) {
  const name = read.name(i), parts = /^block\.(\d{2,})\.(img|txt)\.([a-z0-9_]+)$/.exec(name);
  const row = { i, which, entry, name, block: parts ? Number(parts[1]) : null, stream: parts ? parts[2] : null,
    kind: parts ? parts[3] : name, source: Boolean(columns.flags[i] & 1), propagated: Boolean(columns.flags[i] & 2),
    reference: {}, candidate: {}, range: null };
  for (const key of ["stage", "shape", "dtype", "verdict", "reason", "floor_by", "max_at"]) row[key] = read[key](i);
  for (const [key] of MEASURES) if (columns[key] && key !== "max_at") row[key] = columns[key][i];
  for (const key of STATS) {
    row.reference[key] = columns["reference." + key][i];
    const value = columns["candidate." + key][i];
    row.candidate[key] = value === "=" ? row.reference[key] : value;
  }
  const at = (key) => columns["range." + key][i];
  if (read.row(i)) row.range = { row: read.row(i), verdict: read.range(i), low: at("low"), high: at("high"), factor: at("factor") };
  return row;
}

// NaN is what does not apply; a figure that is not a number counts as infinite.
function number(value) {
  if (value === null || value === undefined) return NaN;
  if (typeof value === "number") return value;
  return value === "-inf" ? -Infinity : Infinity;
}
const excess = (row) => (row.excess === null && row.verdict === "diverged" ? Infinity : number(row.excess));
const stepOf = (value, edges) => { const k = edges.findIndex((edge) => value <= edge); return k < 0 ? edges.length : k; };

function format(value) {
  if (value === null || value === undefined || value === "") return "—";
  if (typeof value === "string") return { nan: "NaN", inf: "∞", "-inf": "−∞" }[value] || value;
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(3).replace("e+", "e").replace(/-/g, "−");
  return String(Number.isInteger(value) ? value : Number(value.toPrecision(size > 0.9 && size <= 1 ? 12 : 5))).replace("-", "−");
}
const times = (row) => (typeof row.excess === "number" ? (row.excess < 10 ? row.excess.toFixed(2) : row.excess.toPrecision(3).replace(/e\+?/, "e")) + "×" : format(row.excess));

function short(value) {
  const size = Math.abs(value), sign = value < 0 ? "−" : "";
  if (size === 0) return "0";
  if (size < 0.01 || size >= 1e15) {
    const power = Math.floor(Math.log10(size) + 1e-9), lead = Number((size / 10 ** power).toPrecision(2));
    return sign + (lead === 1 ? "" : lead + "·") + "10" + [...String(power)].map((c) => "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"["-0123456789".indexOf(c)]).join("");
  }
  const [unit, suffix] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([u]) => size >= u) || [1, ""];
  return sign + Number((size / unit).toPrecision(3)) + suffix;
}

function make(tag, attributes = {}, parent = null, text = null) {
  const vector = /^(svg|g|rect|path|line|circle|text|title|pattern|defs)$/.test(tag);
  const node = vector ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function canvas(id, height, label) {
  const box = document.getElementById(id), width = Math.max(260, box.clientWidth);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  box.replaceChildren(svg);
  return { svg, width, height };
}

function blockTicks(count, room) {
  const step = [1, 2, 5, 10, 15, 20, 50, 100, 1000].find((s) => count / s <= room) || count;
  const ticks = [];
  for (let t = 0; t < count; t += step) if (count - 1 - t >= 0.6 * step || t === count - 1) ticks.push(t);
  return count > 0 && !ticks.includes(count - 1) ? [...ticks, count - 1] : ticks;
}

const logScale = (values, pad) => {
  const usable = values.filter((v) => Number.isFinite(v) && v > 0);
  let low = usable.length ? Math.min(...usable) / pad : 0.1, high = usable.length ? Math.max(...usable) * pad : 10;
  if (high / low < 30) { const middle = Math.sqrt(low * high); low = Math.min(low, middle / 6); high = Math.max(high, middle * 6); }
  const first = Math.ceil(Math.log10(low)), last = Math.floor(Math.log10(high)), ticks = [];
  const step = Math.max(1, Math.ceil((last - first + 1) / 6));
  for (let e = first - (last - first < 2); e <= last; e += step) for (const m of last - first < 2 ? [1, 2, 5] : [1]) ticks.push(m * 10 ** e);
  const at = (v) => (Math.log(Math.min(Math.max(v, low), high)) - Math.log(low)) / (Math.log(high) - Math.log(low));
  return { at, ticks: ticks.filter((v) => v >= low && v <= high) };
};

const signedScale = (values) => {
  const finite = values.filter(Number.isFinite), largest = Math.max(1e-30, ...finite.map(Math.abs));
  const linear = largest < 30 ? largest * 3 : 1, bend = (v) => Math.sign(v) * Math.log10(1 + Math.abs(v) / linear);
  const low = bend(Math.min(0, ...finite)) * 1.12 - 0.02, high = bend(Math.max(0, ...finite)) * 1.12 + 0.02, ticks = [0];
  const last = Math.floor(Math.log10(largest * 1.05));
  const steps = largest < 30 ? [largest > 12 ? 10 : largest > 5 ? 5 : 10 ** last] : [0, 1, 2].map((k) => 10 ** (last - k * Math.max(1, Math.ceil(last / 3)))).filter((v) => v >= 10);
  for (const v of steps) ticks.push(v, -v);
  return { at: (v) => (bend(v) - low) / (high - low), ticks: ticks.filter((v) => bend(v) >= low && bend(v) <= high) };
};

// A panel over blocks: x(block), y(value), grid and axes drawn. `sides` leaves room for what is outside the blocks.
function frame(id, label, count, scale, sides = false) {
  const view = canvas(id, 250, label), { svg, width } = view, left = 44, right = width - 10, top = 12, bottom = 218;
  const gap = sides ? 34 : 0, wide = (right - left - 2 * gap) / Math.max(count, 1);
  const x = (block) => left + gap + (block + 0.5) * wide, y = (value) => bottom - scale.at(value) * (bottom - top);
  for (const value of scale.ticks) {
    make("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }, svg);
    make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, svg, short(value));
  }
  const ticks = blockTicks(count, Math.min(8, (right - left) / 45)).map((b) => [x(b), b]);
  if (sides) ticks.push([left + gap / 2, "in"], [right - gap / 2, "out"]);
  for (const [at, text] of ticks) make("text", { x: at, y: bottom + 15, "text-anchor": "middle" }, svg, text);
  make("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }, svg);
  make("text", { x: (left + right) / 2, y: bottom + 30, "text-anchor": "middle" }, svg, "block");
  return { ...view, x, y, left, right, top, bottom, gap };
}

function line(panel, points, name) {
  let path = "", pen = "M";
  for (const [block, value] of points) {
    // "h0" gives a point between two gaps a length of zero, which the round cap makes visible.
    if (Number.isFinite(value)) { path += `${pen}${panel.x(block).toFixed(1)} ${panel.y(value).toFixed(1)}${pen === "M" ? "h0" : ""}`; pen = "L"; } else pen = "M";
    if (Math.abs(value) === Infinity) make("text", { class: "bad", x: panel.x(block), y: panel.top + 8, "text-anchor": "middle" }, panel.svg, "×");
    if (points.length < 12 && Number.isFinite(value)) make("circle", { class: name.split(" ")[0], cx: panel.x(block), cy: panel.y(value), r: 2.5 }, panel.svg);
  }
  make("path", { class: name, d: path }, panel.svg);
}

function drawHeatmap(data, rows, entry, open) {
  const kinds = [...new Set(rows.filter((r) => r.stream).map((r) => `${r.stream}.${r.kind}`))].sort((a, b) => (a.slice(0, 3) < b.slice(0, 3) ? -1 : a.slice(0, 3) > b.slice(0, 3) ? 1 : 0));
  const deep = 15, left = 92, { svg, width } = canvas("heatmap", kinds.length ? kinds.length * deep + 34 : 1, `Excess of ${rows.length} checkpoints by kind and block; the table below has the same figures`);
  const wide = (width - left - 2) / Math.max(entry.blocks, 1), defs = make("defs", {}, svg);
  for (const [verdict, d] of Object.entries(UNJUDGED)) {
    const pattern = make("pattern", { id: "hatch-" + verdict, width: 6, height: 6, patternUnits: "userSpaceOnUse" }, defs);
    make("rect", { width: 6, height: 6, class: "blank" }, pattern);
    make("path", { class: "hatch", d }, pattern);
  }
  kinds.forEach((kind, k) => make("text", { x: left - 6, y: k * deep + 11, "text-anchor": "end" }, svg, kind));
  const frames = make("g");
  for (const row of rows) {
    if (!row.stream) continue;
    const k = kinds.indexOf(`${row.stream}.${row.kind}`), box = { x: left + row.block * wide, y: k * deep, width: wide, height: deep - 1 };
    const cell = make("rect", { ...box, "data-row": row.i, class: "cell " + cellClass(row, data.edges) }, svg);
    if (row.verdict in UNJUDGED) cell.setAttribute("fill", `url(#hatch-${row.verdict})`);
    make("title", {}, cell, `${row.name}: ${row.verdict}, excess ${times(row)}${row.source ? ", source" : ""}`);
    // Two lines, so that the frame shows on light and on dark cells.
    if (row.source) for (const [inset, name] of [[0.7, "frame"], [2, "frame inner"]].slice(0, wide > 8 ? 2 : 1)) {
      make("rect", { x: box.x + inset, y: box.y + inset, width: Math.max(0.1, wide - 2 * inset), height: deep - 1 - 2 * inset, class: name }, frames);
    }
    if (excess(row) === Infinity && wide > 8) make("text", { class: "strong", x: box.x + wide / 2, y: box.y + 11, "text-anchor": "middle", "pointer-events": "none" }, frames, "×");
  }
  svg.append(frames);
  for (const b of blockTicks(entry.blocks, Math.min(12, width / 60))) make("text", { x: left + (b + 0.5) * wide, y: kinds.length * deep + 13, "text-anchor": "middle" }, svg, b);
  if (kinds.length) make("text", { x: (left + width) / 2, y: kinds.length * deep + 29, "text-anchor": "middle" }, svg, "block");
  svg.onclick = (event) => { if (event.target.dataset.row) open(Number(event.target.dataset.row)); };
  drawOthers(data, rows, open);
}

const cellClass = (row, edges) => (row.verdict in UNJUDGED ? "" : Number.isNaN(excess(row)) ? "blank" : "h" + stepOf(excess(row), edges));

function drawOthers(data, rows, open) {
  const others = document.getElementById("others"), key = document.getElementById("key");
  others.replaceChildren(...rows.filter((row) => !row.stream).slice(0, 60).map((row) => {
    const button = make("button", { type: "button", class: row.source ? "source" : "" });
    make("i", { class: cellClass(row, data.edges) || "blank" }, button);
    make("bdi", {}, button, row.name);
    make("span", { class: "meta" }, button, row.verdict in UNJUDGED ? row.verdict : times(row));
    button.onclick = () => open(row.i);
    return button;
  }));
  const swatch = (name, text) => { const span = make("span"); make("i", { class: name }, span); span.append(text); return span; };
  const [match, suspect] = data.limits, e = data.edges.map((v) => short(Number(v.toPrecision(2))));
  const judge = (k) => (data.edges[k] <= match || k === 0 ? "match" : k < 8 && data.edges[k] <= suspect ? "suspect" : "diverged");
  key.replaceChildren(...e.map((edge, k) => swatch("h" + k, `≤ ${edge} ${judge(k)}`)), swatch("h8", `> ${e[7]} diverged`),
    ...Object.keys(UNJUDGED).map((verdict) => {
      const span = make("span"), svg = make("svg", { "aria-hidden": "true" }, span);
      make("rect", { width: "100%", height: "100%", fill: `url(#hatch-${verdict})` }, svg);
      span.append(verdict);
      return span;
    }), "framed: source");
}

function drawExcess(data, rows, entry) {
  const [match, suspect] = data.limits, scale = logScale([...rows.map(excess), match / 10, suspect * 3], 1.5);
  const panel = frame("excess", "Excess of each checkpoint over blocks", entry.blocks, scale, true);
  const first = rows.findIndex((row) => row.stream);
  for (const value of [match, suspect]) make("line", { class: "limit", x1: panel.left, x2: panel.right, y1: panel.y(value), y2: panel.y(value) }, panel.svg);
  const say = (value, words) => make("text", { class: "strong", x: panel.left + 4, y: panel.y(value) - 4 }, panel.svg, words);
  const words = [`suspect above ${short(match)}`, `diverged above ${short(suspect)}`];
  // Over many decades the two lines come too close for a line of words between them.
  if (panel.y(match) - panel.y(suspect) < 14) say(suspect, words.join(", "));
  else [match, suspect].forEach((value, i) => say(value, words[i]));
  rows.forEach((row, k) => {
    const value = excess(row), x = row.stream ? panel.x(row.block) : k < first || first < 0 ? panel.left + panel.gap / 2 : panel.right - panel.gap / 2;
    if (value === Infinity) make("text", { class: "bad", x, y: panel.top + 8, "text-anchor": "middle" }, panel.svg, "×");
    if (!Number.isFinite(value)) return;
    const dot = make("circle", { class: row.stream || "other", cx: x, cy: panel.y(value), r: 2.2 }, panel.svg);
    make("title", {}, dot, `${row.name}: ${times(row)}`);
    if (row.source) make("circle", { class: "source", cx: x, cy: panel.y(value), r: 4.5 }, panel.svg);
  });
}

function drawGrowth(rows, entry) {
  const out = rows.filter((row) => row.kind === "out" && row.stream), marks = out.filter((row) => row.range);
  const top = (row) => Math.max(Math.abs(number(row.range.low)), Math.abs(number(row.range.high)));
  const values = out.flatMap((row) => [number(row.reference.absmax), number(row.candidate.absmax)]);
  const panel = frame("growth", "Largest magnitude of the residual after each block", entry.blocks, logScale([...values, ...marks.map(top)], 1.6));
  for (const stream of ["img", "txt"]) for (const side of ["reference", "candidate"]) {
    line(panel, out.filter((row) => row.stream === stream).map((row) => [row.block, number(row[side].absmax)]), `${stream} ${side}`);
  }
  for (const row of marks) {
    const y = panel.y(top(row)), late = row.block > entry.blocks / 2;
    make("line", { class: "documented", x1: panel.x(row.block) - 8, x2: panel.x(row.block) + 8, y1: y, y2: y }, panel.svg);
    make("text", { class: "strong", x: panel.x(row.block) + (late ? -12 : 12), y: y + (late ? -4 : 12), "text-anchor": late ? "end" : "start" }, panel.svg, short(top(row)));
  }
  if (!out.length) make("text", { x: panel.width / 2, y: 110, "text-anchor": "middle" }, panel.svg, "no residual at this level of detail");
}

function drawKind(rows, entry, kind) {
  const mine = rows.filter((row) => row.stream && row.kind === kind), of = (stream) => mine.filter((row) => row.stream === stream);
  const error = frame("error", `Relative RMSE and floor of ${kind} over blocks`, entry.blocks, logScale(mine.flatMap((row) => [number(row.rel_rmse), number(row.floor)]), 1.8));
  const all = mine.flatMap((row) => [row.reference.min, row.reference.max, row.candidate.min, row.candidate.max, row.range?.low, row.range?.high].map(number));
  const range = frame("range", `Smallest and largest value of ${kind} over blocks`, entry.blocks, signedScale(all));
  for (const stream of ["img", "txt"]) {
    line(error, of(stream).map((row) => [row.block, number(row.floor)]), `${stream} floor`);
    line(error, of(stream).map((row) => [row.block, number(row.rel_rmse)]), stream);
    for (const side of ["reference", "candidate"]) for (const end of ["min", "max"]) {
      line(range, of(stream).map((row) => [row.block, number(row[side][end])]), `${stream} ${side}`);
    }
  }
  const half = Math.max(6, (range.x(1) - range.x(0)) / 2);
  for (const row of mine) for (const end of row.range ? [row.range.low, row.range.high] : []) {
    make("line", { class: "documented", x1: range.x(row.block) - half, x2: range.x(row.block) + half, y1: range.y(number(end)), y2: range.y(number(end)) }, range.svg);
  }
}
