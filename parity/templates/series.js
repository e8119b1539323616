// A chart over blocks, layers or steps with uPlot: lines, points, marks, bands; words at the pointer; a drag zooms all
// charts of a kind along the index, a double click shows the whole again.

const CHARTS = new Map();

// Draws into `box`, an element or its id.
//   section  {first, count, unit} of the index
//   scale    of `scales.js`
//   series   [{name, ink, values: [[index, value, row?], …], width, alpha, dash, points, quiet}], quiet ones without words
//   sides    room before the first and behind the last index, for what does not repeat (indices -Infinity and Infinity)
//   bands    [[upper, lower, ink], …] between two series
//   under, over  (pen) => drawing below and above the lines
//   nearest  (row) => words of the one point under the pointer; without it all series are said
//   open     what a click on a point with a row does
function chart(box, { label, section, scale, series, sides = false, bands = [], under, over, nearest, open, height = 250, end = 10, sync = "", xName, yName = short }) {
  if (typeof box === "string") box = document.getElementById(box);
  forget(box);
  const width = Math.max(260, box.clientWidth), axis = indexAxis(section, sides, width, xName), aligned = align(series, axis, scale), { place } = axis;
  const look = { stroke: colour("muted"), font: FONT, grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
  box.replaceChildren();
  box.setAttribute("role", "img");
  box.setAttribute("aria-label", label);
  const plot = new uPlot({
    width, height, padding: [12, end, 0, 0], legend: { show: false }, bands: bandsOf(bands, series),
    scales: { x: { time: false, range: axis.range(aligned.xs) }, y: { distr: scale.distr, asinh: scale.asinh, range: () => [scale.low, scale.high] } },
    axes: [{ ...look, grid: { show: false }, size: 28, gap: 6, label: section.unit, labelSize: 14, labelGap: 0, labelFont: FONT, splits: axis.ticks, values: (u, all) => all.map(axis.named), space: 1 },
      { ...look, size: 46, gap: 4, splits: () => scale.ticks, values: (u, all) => all.map(yName), space: 1, filter: (u, all) => all }],
    series: [{}, ...series.map((one) => lineOf(one, section.count))],
    cursor: { y: false, points: { show: false }, drag: { x: true, y: false, dist: 5 }, sync: sync ? { key: sync, scales: ["x", null] } : undefined },
    hooks: {
      drawAxes: under ? [(u) => under(penOf(u, place))] : [],
      draw: [(u) => { const pen = penOf(u, place); series.forEach((one) => crosses(pen, one)); if (over) over(pen); }],
    },
  }, [aligned.xs, ...aligned.columns], box);
  CHARTS.set(box, plot);
  listen(plot, { series, aligned, nearest, open, named: axis.named, unit: section.unit });
  tableBehind(box, "Figures: " + label, () => figuresOf(series, aligned, axis, section.unit));
  return plot;
}

// A chart listens to the window: those that are replaced or have left the page must not stay behind.
function forget(box) {
  for (const [one, plot] of CHARTS) if (one === box || !one.isConnected) { plot.destroy(); CHARTS.delete(one); }
}

// The axis of the index: where an index lies, its name, ticks, and the ends of what is shown.
function indexAxis(section, sides, width, xName) {
  const last = section.first + section.count - 1, edge = sides ? Math.max(1, section.count * 0.05, (section.count * 30) / width) : 0;
  const ends = [section.first - edge, last + edge], outer = [ends[0] - 0.5, ends[1] + 0.5];
  return {
    fixed: sides ? [section.first, last, ...ends] : [section.first, last],
    place: (index) => (index === -Infinity ? ends[0] : index === Infinity ? ends[1] : index),
    named: (x) => (xName ? xName(x) : sides && x < section.first ? "in" : sides && x > last ? "out" : String(x)),
    ticks(u, axis, low, high) {
      const first = Math.max(section.first, Math.ceil(low)), inner = indexTicks({ first, count: Math.min(last, Math.floor(high)) - first + 1 }, Math.min(10, width / 52));
      return [...(sides && low < ends[0] + edge / 2 ? [ends[0]] : []), ...inner, ...(sides && high > ends[1] - edge / 2 ? [ends[1]] : [])];
    },
    // Whole indices, so that a zoom never cuts one in two.
    range: (xs) => (u, low, high) => [low === null || low <= xs[0] ? outer[0] : Math.floor(low + 0.5) - 0.5, high === null || high >= xs[xs.length - 1] ? outer[1] : Math.ceil(high - 0.5) + 0.5],
  };
}

// All series over one list of indices, as uPlot takes them, and the row of each point.
function align(series, { fixed, place }, scale) {
  const xs = [...new Set([...fixed, ...series.flatMap((one) => one.values.map(([index]) => place(index)))])].sort((a, b) => a - b);
  const at = new Map(xs.map((x, k) => [x, k])), rows = series.map(() => []), exact = series.map(() => []);
  const columns = series.map(({ values }, s) => {
    const column = new Array(xs.length).fill(null);
    for (const [index, value, row] of values) {
      const k = at.get(place(index));
      rows[s][k] = row;
      exact[s][k] = value;
      // What is zero has no place on a logarithmic axis: it lies on the lower edge.
      if (Number.isFinite(value)) column[k] = Math.min(Math.max(value, scale.low), scale.high);
    }
    return column;
  });
  return { xs, columns, rows, exact };
}

function figuresOf(series, { xs, exact }, { named }, unit) {
  const said = [...series.keys()].filter((s) => !series[s].quiet), held = [...xs.keys()].filter((k) => said.some((s) => k in exact[s]));
  return [[unit, ...said.map((s) => series[s].name)], held.map((k) => [named(xs[k]), ...said.map((s) => format(exact[s][k]))])];
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

function listen(plot, about) {
  plot.over.addEventListener("mousemove", (event) => sayPoint(plot, event, about));
  plot.over.addEventListener("mouseleave", tip.hide);
  if (about.open) plot.over.addEventListener("click", (event) => { const found = pointAt(plot, event, about.aligned); if (found?.row) about.open(found.row.i); });
}

// The point under the pointer, or none within 16 pixels.
function pointAt(plot, event, { xs, columns, rows }) {
  const frame = plot.over.getBoundingClientRect(), x = event.clientX - frame.left, y = event.clientY - frame.top;
  let best = null, closest = 16 ** 2;
  xs.forEach((value, k) => {
    const across = (plot.valToPos(value, "x") - x) ** 2;
    if (across < closest) columns.forEach((column, s) => {
      const off = column[k] === null ? Infinity : across + (plot.valToPos(column[k], "y") - y) ** 2;
      if (off < closest) { closest = off; best = { s, row: rows[s][k] }; }
    });
  });
  return best;
}

function sayPoint(plot, event, { series, aligned, nearest, open, named, unit }) {
  const found = pointAt(plot, event, aligned);
  plot.over.classList.toggle("at", Boolean(open && found?.row));
  if (nearest) return found ? tip.show(event, [[series[found.s].ink, nearest(found.row)]]) : tip.hide();
  const k = plot.posToIdx(event.clientX - plot.over.getBoundingClientRect().left), mark = (one) => `${one.ink}${one.dash ? " dashed" : one.width > 4 ? " thick" : ""}`;
  const lines = series.flatMap((one, s) => (one.quiet || aligned.columns[s][k] === null ? [] : [[mark(one), `${one.name} ${format(aligned.exact[s][k])}`]]));
  if (lines.length) tip.show(event, [["", `${unit} ${named(aligned.xs[k])}`], ...lines]); else tip.hide();
}
