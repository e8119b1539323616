"use strict";
// Reading side of parity/rowpack.py, and its figures as text. Text from the data reaches the page through
// textContent, setAttribute and fillText only.

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
