// A chart over blocks, layers or steps with uPlot: lines, points, marks, bands; words at the pointer; a drag zooms all
// charts of a kind along the index, a double click shows the whole again.

const CHARTS = new Map();

// Draws into `box`, an element or its id.
//   section  {first, count, unit} of the index
//   scale    of `scales.js`
//   series   [{name, ink, values: [[index, value, row?], …], width, alpha, dash, points, quiet}], quiet ones without words
//   sides    room before the first and behind the last index, for what does not repeat (indices -1 and +1: "in", "out")
//   bands    [[upper, lower, ink], …] between two series
//   under, over  (pen) => drawing below and above the lines
//   nearest  words of the one point that is under the pointer, (series, index, value, row) => text; else of all series
//   open     what a click on a point with a row does
function chart(box, { label, section, scale, series, sides = false, bands = [], under, over, nearest, open, height = 250, end = 10, sync = "", xName, yName = short }) {
  if (typeof box === "string") box = document.getElementById(box);
  CHARTS.get(box)?.destroy();
  const width = Math.max(260, box.clientWidth), edge = sides ? Math.max(1, section.count * 0.05, (section.count * 30) / width) : 0, last = section.first + section.count - 1;
  const place = (index) => (index === -Infinity ? section.first - edge : index === Infinity ? last + edge : index);
  const xs = [...new Set([section.first, last, ...(sides ? [place(-Infinity), place(Infinity)] : []), ...series.flatMap((one) => one.values.map(([index]) => place(index)))])].sort((a, b) => a - b);
  const at = new Map(xs.map((x, k) => [x, k])), rows = series.map(() => []);
  // What is zero has no place on a logarithmic axis: it lies on the lower edge.
  const columns = series.map(({ values }, s) => {
    const column = new Array(xs.length).fill(null);
    for (const [index, value, row] of values) {
      const k = at.get(place(index));
      rows[s][k] = row;
      if (Number.isFinite(value)) column[k] = Math.min(Math.max(value, scale.low), scale.high);
    }
    return column;
  });
  const named = (x) => (xName ? xName(x) : sides && x < section.first ? "in" : sides && x > last ? "out" : String(x));
  const ticks = (u, axis, low, high) => {
    const first = Math.max(section.first, Math.ceil(low)), count = Math.min(last, Math.floor(high)) - first + 1;
    const inner = indexTicks({ first, count }, Math.min(10, width / 52));
    return [...(sides && low < section.first - edge / 2 ? [section.first - edge] : []), ...inner, ...(sides && high > last + edge / 2 ? [last + edge] : [])];
  };
  const outer = [section.first - 0.5 - (sides ? edge : 0), last + 0.5 + (sides ? edge : 0)];
  // Whole indices, so that a zoom never cuts one in two.
  const range = (u, low, high) => [low === null || low <= xs[0] ? outer[0] : Math.floor(low + 0.5) - 0.5, high === null || high >= xs[xs.length - 1] ? outer[1] : Math.ceil(high - 0.5) + 0.5];
  const axis = { stroke: colour("muted"), font: FONT, grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
  box.replaceChildren();
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", label);
  const plot = new uPlot({
    width, height, padding: [12, end, 0, 0], legend: { show: false }, bands: bandsOf(bands, series),
    scales: { x: { time: false, range }, y: { distr: scale.distr, asinh: scale.asinh, range: () => [scale.low, scale.high] } },
    axes: [{ ...axis, grid: { show: false }, size: 26, gap: 3, label: section.unit, labelSize: 14, labelGap: 0, labelFont: FONT, splits: ticks, values: (u, all) => all.map(named), space: 1 },
      { ...axis, size: 46, gap: 4, splits: () => scale.ticks, values: (u, all) => all.map(yName), space: 1, filter: (u, all) => all }],
    series: [{}, ...series.map((one) => lineOf(one, section.count))],
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false, dist: 5 }, sync: sync ? { key: sync, scales: ["x", null] } : undefined },
    hooks: {
      drawAxes: under ? [(u) => under(penOf(u, place))] : [],
      draw: [(u) => { const pen = penOf(u, place); series.forEach((one) => crosses(pen, one)); if (over) over(pen); }],
    },
  }, [xs, ...columns], box);
  CHARTS.set(box, plot);
  plot.over.addEventListener("mousemove", (event) => sayPoint(plot, event, { series, xs, columns, rows, nearest, named, unit: section.unit }));
  plot.over.addEventListener("mouseleave", tip.hide);
  if (open) plot.over.addEventListener("click", (event) => { const found = pointAt(plot, event, xs, columns, rows); if (found?.row) open(found.row.i); });
  const said = series.filter((one) => !one.quiet);
  tableBehind(box, "Figures: " + label, () => [[section.unit, ...said.map((one) => one.name)], xs.filter((x) => said.some((one) => one.values.some(([index]) => place(index) === x)))
    .map((x) => [named(x), ...said.map((one) => one.values.filter(([index]) => place(index) === x).map(([, value]) => format(value)).join(", ") || "—")])]);
  return plot;
}

function lineOf({ ink, width = 1.7, alpha = 1, dash, points, paths, fill }, count) {
  const only = points === "only", dots = only || (count < 12 && !dash && !paths && width > 0 && width < 4);
  return {
    stroke: colour(ink), width: only ? 0 : width, alpha, dash, cap: "round", paths: only ? () => null : paths, fill: fill ? colour(ink) : undefined,
    // Left to itself uPlot shows a point only where a line has none beside it to be drawn to.
    points: { ...(only || paths || width === 0 ? { show: only } : dots || (dash && count > 1) ? { show: !dash } : {}), size: only ? 5.5 : 5, fill: colour(ink), stroke: colour(ink), width: 0 },
  };
}

const bandsOf = (bands, series) => bands.map(([upper, lower, ink]) => ({ series: [upper, lower].map((one) => series.indexOf(one) + 1), fill: colour(ink).replace(/^rgb\((.*)\)$/, "rgba($1, 0.14)") }));

function trace(ctx, points) {
  ctx.beginPath();
  for (const [x, y] of points) ctx.lineTo(x, y);
}

// Draws in CSS pixels of the chart: x(index), y(value), lines, areas, rings, words.
function penOf(u, place) {
  const { ctx } = u, ratio = uPlot.pxRatio, { left, top, width, height } = u.bbox;
  const shown = (draw) => { ctx.save(); ctx.beginPath(); ctx.rect(left, top, width, height); ctx.clip(); ctx.scale(ratio, ratio); draw(); ctx.restore(); };
  return {
    x: (index) => u.valToPos(place(index), "x", true) / ratio, y: (value) => u.valToPos(value, "y", true) / ratio,
    left: left / ratio, right: (left + width) / ratio, top: top / ratio, bottom: (top + height) / ratio,
    line(x1, y1, x2, y2, style) { this.path([[x1, y1], [x2, y2]], style); },
    path(points, { ink, width: thick = 1, dash = [] }) {
      shown(() => { Object.assign(ctx, { strokeStyle: colour(ink), lineWidth: thick, lineCap: "butt" }); ctx.setLineDash(dash); trace(ctx, points); ctx.stroke(); });
    },
    area(points, { ink, alpha }) { shown(() => { ctx.globalAlpha = alpha; ctx.fillStyle = colour(ink); trace(ctx, points); ctx.fill(); }); },
    ring(x, y, radius, ink) { shown(() => { Object.assign(ctx, { strokeStyle: colour(ink), lineWidth: 1.4 }); ctx.beginPath(); ctx.arc(x, y, radius, 0, 7); ctx.stroke(); }); },
    text(words, x, y, options) { ctx.save(); ctx.scale(ratio, ratio); ctx.font = FONT; write(ctx, words, x, y, options); ctx.restore(); },
  };
}

// What is not finite is a cross on the upper edge.
function crosses(pen, { values }) {
  for (const [index, value] of values) {
    const x = pen.x(index);
    if (Math.abs(value) === Infinity && x >= pen.left && x <= pen.right) pen.text("×", x, pen.top + 9, { align: "center", bold: true, ink: "bad" });
  }
}

// The point under the pointer, or none within 16 pixels.
function pointAt(plot, event, xs, columns, rows) {
  const frame = plot.over.getBoundingClientRect(), x = event.clientX - frame.left, y = event.clientY - frame.top;
  let best = null, closest = 16 ** 2;
  xs.forEach((value, k) => {
    const across = (plot.valToPos(value, "x") - x) ** 2;
    if (across < closest) columns.forEach((column, s) => {
      const off = column[k] === null ? Infinity : across + (plot.valToPos(column[k], "y") - y) ** 2;
      if (off < closest) { closest = off; best = { s, k, row: rows[s][k] }; }
    });
  });
  return best;
}

function sayPoint(plot, event, { series, xs, columns, rows, nearest, named, unit }) {
  const found = pointAt(plot, event, xs, columns, rows);
  plot.over.classList.toggle("at", Boolean(found?.row));
  if (nearest) {
    if (!found) return tip.hide();
    return tip.show(event, [[series[found.s].ink, nearest(found.row, series[found.s])]]);
  }
  const k = plot.posToIdx(event.clientX - plot.over.getBoundingClientRect().left);
  const lines = series.flatMap((one, s) => (one.quiet || columns[s][k] === null ? [] : [[`${one.ink}${one.dash ? " dashed" : one.width > 4 ? " thick" : ""}`, `${one.name} ${format(valueAt(one, columns[s][k], rows[s][k], k, xs))}`]]));
  if (lines.length) tip.show(event, [["", `${unit} ${named(xs[k])}`], ...lines]); else tip.hide();
}

// The value itself, not the one that was moved onto the edge.
const valueAt = (one, drawn, row, k, xs) => { const found = one.values.find(([index]) => index === xs[k]); return found ? found[1] : drawn; };
