// The heatmap on a canvas: a row a kind of checkpoint, a column a block, layer or step. Pointer and arrows say a cell, a
// click and Enter open it. What it draws is in the table of figures behind it as well.

const cellTone = (row, edges) => (row.verdict in UNJUDGED || Number.isNaN(excess(row)) ? "blank-soft" : "h" + stepOf(excess(row), edges));
const cellMark = (row) => (row.exact && row.verdict === "match" ? "=" : row.exact && row.mismatches ? "≠" : excess(row) === Infinity ? "×" : "");
const cellWords = (row) => `${row.name}: ${row.verdict}${row.verdict in UNJUDGED ? "" : `, ${row.exact ? "" : "excess "}${times(row)}`}${row.source ? ", source" : ""}`;

// The heatmap that is shown: where its cells are. Its functions serve pointer, keys and whoever drives the page.
const grid = { cells: new Map(), order: [], at: null, geometry: null, data: null, open: null, chosen: null };
const cellKey = (index, kind) => index + " " + kind;
function cellMiddle(i) {
  const row = grid.data.rows[i], { left, wide, deep, first, kinds, name } = grid.geometry, { x, y } = document.getElementById("heatmap").firstChild.getBoundingClientRect();
  return { x: x + left + (row.index - first + 0.5) * wide, y: y + (kinds.indexOf(name(row)) + 0.5) * deep };
}

function drawHeatmap(data, section, rows, { open, chosen }) {
  const box = document.getElementById("heatmap"), several = section.streams.length > 1, name = (row) => (several ? `${row.stream}.${row.kind}` : row.kind);
  const order = section.streams.map(([stream]) => stream), kinds = [...new Set([...rows].sort((a, b) => order.indexOf(a.stream) - order.indexOf(b.stream)).map(name))];
  const deep = kinds.length > 6 ? 16 : 24, left = 104, width = Math.max(260, box.clientWidth), wide = (width - left - 8) / Math.max(section.count, 1);
  const { ctx } = sheet(box, width, kinds.length * deep + 34), geometry = { left, wide, deep, first: section.first, kinds, name, ctx, edges: data.edges };
  Object.assign(grid, { cells: new Map(rows.map((row) => [cellKey(row.index, name(row)), row])), geometry, data, open, chosen });
  grid.order = rows;
  if (!rows.includes(grid.at)) grid.at = null;
  for (const [k, kind] of kinds.entries()) write(ctx, kind.length > 16 ? kind.slice(0, 15) + "…" : kind, left - 6, k * deep + deep / 2 + 3.5, { align: "right" });
  // Of cells narrower than a pixel the worst is drawn last.
  const worst = wide < 1.5 ? [...rows].sort((a, b) => (excess(a) || 0) - (excess(b) || 0)) : rows;
  for (const row of worst) fillCell(geometry, row);
  for (const row of rows) if (row.source) frameSource(geometry, row);
  if (rows.includes(chosen)) frameCell(geometry, chosen, [["focus", 0, 3]]);
  for (const b of indexTicks(section, Math.min(20, width / 60))) write(ctx, String(b), left + (b - section.first + 0.5) * wide, kinds.length * deep + 13, { align: "center" });
  write(ctx, section.unit, (left + width) / 2, kinds.length * deep + 29, { align: "center" });
  const label = `Excess of ${rows.length} checkpoints by kind and ${section.unit}`;
  Object.entries({ tabindex: 0, role: "application", "aria-roledescription": "heatmap", "aria-describedby": "heatmapkeys",
    "aria-label": label, "data-cells": rows.length, "data-chosen": rows.includes(chosen) ? chosen.name : "" }).forEach(([key, value]) => box.setAttribute(key, value));
  tableBehind(box, "Figures: " + label, () => heatTable(section, rows, kinds, name));
}

function heatTable(section, rows, kinds, name) {
  const indices = [...new Set(rows.map((row) => row.index))].sort((a, b) => a - b), cell = (row) => (!row ? "" : row.verdict in UNJUDGED ? row.verdict : times(row));
  return [[section.unit, ...kinds], indices.map((index) => [index, ...kinds.map((kind) => cell(grid.cells.get(cellKey(index, kind))))])];
}

const cellBox = ({ left, wide, deep, first, kinds, name }, row) => [left + (row.index - first) * wide, kinds.indexOf(name(row)) * deep, Math.max(wide, 1), deep - 1];

function fillCell(geometry, row) {
  const { ctx, wide, deep, edges } = geometry, [x, y, w, h] = cellBox(geometry, row), mark = wide > 8 ? cellMark(row) : "";
  ctx.fillStyle = colour(cellTone(row, edges));
  ctx.fillRect(x, y, wide > 4 ? w - 0.6 : w, h);
  if (row.verdict in UNJUDGED && wide > 2) hatch(ctx, row.verdict, x, y, wide > 4 ? w - 0.6 : w, h);
  if (mark) write(ctx, mark, x + w / 2, y + deep / 2 + 3, { align: "center", ink: mark === "=" ? "match" : "panel" });
}

// Verdicts that are not a colour: strokes as in the key.
function hatch(ctx, verdict, x, y, width, height) {
  ctx.save();
  ctx.beginPath();
  ctx.rect(x, y, width, height);
  ctx.clip();
  ctx.translate(x - (x % 6), y - (y % 6));
  Object.assign(ctx, { strokeStyle: colour("blank"), lineWidth: 1 });
  const path = new Path2D(UNJUDGED[verdict]);
  for (let across = 0; across < width + 12; across += 6) for (let down = 0; down < height + 12; down += 6) {
    ctx.save();
    ctx.translate(across, down);
    ctx.stroke(path);
    ctx.restore();
  }
  ctx.restore();
}

function frameCell(geometry, row, lines) {
  const [x, y, w, h] = cellBox(geometry, row), { ctx } = geometry;
  for (const [ink, inset, thick] of lines) {
    Object.assign(ctx, { strokeStyle: colour(ink), lineWidth: thick });
    ctx.strokeRect(x + inset, y + inset, Math.max(0.5, w - 2 * inset), h - 2 * inset);
  }
}

// Two lines, so that it is seen on light and on dark cells; of narrow cells the upper and lower edge alone, or frames
// would cover the colour.
function frameSource(geometry, row) {
  const [x, y, w, h] = cellBox(geometry, row), { ctx, wide } = geometry;
  if (wide > 8) return frameCell(geometry, row, [["ink", 0.7, 1.4], ["panel", 2, 1.1]]);
  ctx.fillStyle = colour("ink");
  for (const edge of [y, y + h - 2]) ctx.fillRect(x, edge, w, 2);
  ctx.fillStyle = colour("panel");
  for (const edge of [y + 2, y + h - 3]) ctx.fillRect(x, edge, w, 1);
}

function cellUnder(event) {
  const { left, wide, deep, first, kinds } = grid.geometry, { x, y } = document.getElementById("heatmap").firstChild.getBoundingClientRect();
  const kind = kinds[Math.floor((event.clientY - y) / deep)], index = first + Math.floor((event.clientX - x - left) / wide);
  return kind === undefined ? null : grid.cells.get(cellKey(index, kind)) || null;
}

// The cell that arrows go to: the next one of the same row or column that is there.
function cellBeside(row, key) {
  const { kinds, name, first } = grid.geometry, step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  if (!step) return null;
  if (!row) return grid.chosen && grid.order.includes(grid.chosen) ? grid.chosen : grid.order.find((one) => one.source) || grid.order[0];
  let index = row.index, k = kinds.indexOf(name(row));
  for (let n = 0; n < 4000; n++) {
    index += step[0];
    k += step[1];
    if (index < first || k < 0 || k >= kinds.length) return row;
    const found = grid.cells.get(cellKey(index, kinds[k]));
    if (found) return found;
  }
  return row;
}

function watchHeatmap() {
  const box = document.getElementById("heatmap"), said = document.getElementById("heatmapcell");
  const say = (row) => { said.textContent = row ? cellWords(row) : ""; };
  const again = () => drawHeatmapAgain(grid.at);
  box.addEventListener("mousemove", (event) => {
    const row = grid.geometry && cellUnder(event);
    box.classList.toggle("at", Boolean(row));
    if (row) tip.show(event, [["", cellWords(row)]]); else tip.hide();
  });
  box.addEventListener("mouseleave", tip.hide);
  box.addEventListener("click", (event) => { const row = grid.geometry && cellUnder(event); if (row) grid.open(row.i); });
  box.addEventListener("keydown", (event) => {
    const to = event.ctrlKey || event.altKey || event.metaKey ? null : cellBeside(grid.at, event.key);
    if (to) { event.preventDefault(); grid.at = to; say(to); again(); }
    if ((event.key === "Enter" || event.key === " ") && grid.at) { event.preventDefault(); grid.open(grid.at.i); }
  });
  box.addEventListener("blur", () => { grid.at = null; say(null); again(); });
}

// The frame of the cell that the keys are at is drawn over a clean copy.
const drawHeatmapAgain = (() => {
  let clean = null, of = null;
  return (row) => {
    if (!grid.geometry) return;
    const { ctx } = grid.geometry, { canvas } = ctx;
    if (of !== ctx) { of = ctx; clean = new OffscreenCanvas(canvas.width, canvas.height); clean.getContext("2d").drawImage(canvas, 0, 0); }
    ctx.save();
    ctx.resetTransform();
    ctx.clearRect(0, 0, canvas.width, canvas.height);
    ctx.drawImage(clean, 0, 0);
    ctx.restore();
    if (row) frameCell(grid.geometry, row, [["panel", -1, 3], ["focus", 0, 2.4]]);
  };
})();
