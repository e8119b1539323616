"use strict";
// Reading side of parity/rowpack.py, numbers as text, scales and axes. Text from the data reaches the
// page through textContent and setAttribute only.

const STATS = ["min", "max", "mean", "std", "rms", "absmax", "nan", "inf", "headroom"];
const MEASURES = [["rel_rmse", "relative RMSE"], ["floor", "floor"], ["excess", "excess"], ["peak_excess", "peak excess"],
  ["rmse", "RMSE"], ["max_abs", "largest difference"], ["max_at", "at index"], ["cosine", "cosine"], ["psnr", "PSNR, dB"], ["mismatches", "unequal values"]];
const UNJUDGED = { missing: "M0 6L6 0", uncertain: "M0 6L6 0M0 0L6 6", skipped: "M0 3L6 3" };
const WORDS = ["name", "stage", "shape", "dtype", "verdict", "reason", "floor_by", "max_at", "stream", "kind", "where", "parents"];

async function decode(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const { head, columns, panels } = await new Response(stream).json();
  const words = (key) => { const [list, codes] = columns[key]; return (i) => list[codes[i]]; };
  const read = Object.fromEntries([...WORDS, "range.row", "range.verdict"].map((key) => [key, words(key)]));
  const rows = [];
  head.entries.forEach((entry, which) => {
    entry.start = rows.length;
    for (let n = 0; n < entry.rows; n++) rows.push(rowOf(rows.length, which, entry, columns, read));
  });
  return { ...head, rows, panels };
}

function rowOf(i, which, entry, columns, read) {
  const row = { i, which, entry, source: Boolean(columns.flags[i] & 1), propagated: Boolean(columns.flags[i] & 2),
    reference: {}, candidate: {}, range: null };
  for (const key of WORDS) row[key] = read[key](i);
  for (const key of ["section", "index", "side"]) row[key] = columns[key][i];
  for (const [key] of MEASURES) if (columns[key] && key !== "max_at") row[key] = columns[key][i];
  for (const key of STATS) {
    row.reference[key] = columns["reference." + key][i];
    const value = columns["candidate." + key][i];
    row.candidate[key] = value === "=" ? row.reference[key] : value;
  }
  const at = (key) => columns["range." + key][i];
  if (read["range.row"](i)) row.range = { row: read["range.row"](i), verdict: read["range.verdict"](i), low: at("low"), high: at("high"), factor: at("factor") };
  return Object.assign(row, { exact: row.floor_by === "exact", repeats: row.stream !== "" });
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
const ratio = (row) => (typeof row.excess === "number" ? (row.excess < 10 ? row.excess.toFixed(2) : row.excess.toPrecision(3).replace(/e\+?/, "e")) + "×" : format(row.excess));

// What must be equal bit for bit has no excess to speak of.
const times = (row) => (!row.exact || row.verdict in UNJUDGED ? ratio(row) : row.verdict === "match" ? "equal" : row.mismatches ? `${row.mismatches.toLocaleString("en")} differ` : ratio(row));

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

// An empty picture in `box`, an element or its id.
function canvas(box, height, label) {
  if (typeof box === "string") box = document.getElementById(box);
  const width = Math.max(260, box.clientWidth);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  box.replaceChildren(svg);
  return { svg, width, height };
}

// Indices with a tick, the first and the last among them.
function indexTicks({ first, count }, room) {
  const step = [1, 2, 5, 10, 15, 20, 50, 100, 1000].find((s) => count / s <= room) || count, last = first + count - 1;
  const ticks = [];
  for (let t = Math.ceil(first / step) * step; t <= last; t += step) if (last - t >= 0.6 * step || t === last) ticks.push(t);
  if (count > 0 && !ticks.includes(last)) ticks.push(last);
  return count > 0 && ticks[0] - first >= 0.6 * step ? [first, ...ticks] : ticks;
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

// A panel over blocks, layers or steps: x(index), y(value), grid and axes drawn. `sides` leaves room for what does not
// repeat, `end` for words behind the lines.
function frame(box, label, section, scale, { sides = false, end = 0, height = 250 } = {}) {
  const view = canvas(box, height, label), { svg, width } = view, left = 46, right = width - 10 - end, top = 12, bottom = height - 32;
  const gap = sides ? 34 : 0, wide = (right - left - 2 * gap) / Math.max(section.count, 1);
  const x = (index) => left + gap + (index - section.first + 0.5) * wide, y = (value) => bottom - scale.at(value) * (bottom - top);
  for (const value of scale.ticks) {
    make("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }, svg);
    make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, svg, short(value));
  }
  const ticks = indexTicks(section, Math.min(10, (right - left) / 45)).map((b) => [x(b), b]);
  if (sides) ticks.push([left + gap / 2, "in"], [right - gap / 2, "out"]);
  for (const [at, text] of ticks) make("text", { x: at, y: bottom + 15, "text-anchor": "middle" }, svg, text);
  make("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }, svg);
  make("text", { x: (left + right) / 2, y: bottom + 30, "text-anchor": "middle" }, svg, section.unit);
  return { ...view, x, y, left, right, top, bottom, gap };
}

function line(panel, points, name) {
  let path = "", pen = "M";
  for (const [index, value] of points) {
    // "h0" gives a point between two gaps a length of zero, which the round cap makes visible.
    if (Number.isFinite(value)) { path += `${pen}${panel.x(index).toFixed(1)} ${panel.y(value).toFixed(1)}${pen === "M" ? "h0" : ""}`; pen = "L"; } else pen = "M";
    if (Math.abs(value) === Infinity) make("text", { class: "bad", x: panel.x(index), y: panel.top + 8, "text-anchor": "middle" }, panel.svg, "×");
    if (points.length < 12 && Number.isFinite(value) && !name.endsWith("floor")) make("circle", { class: name.split(" ")[0], cx: panel.x(index), cy: panel.y(value), r: 2.5 }, panel.svg);
  }
  make("path", { class: name, d: path }, panel.svg);
}
