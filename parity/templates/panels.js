// The charts of one section of an entry: what shares one axis, or has none.

const show = (id, shown) => { document.getElementById(id).closest("figure").hidden = !shown; };
const curve = (rows, of) => rows.map((row) => [row.index, of(row), row]);

// All charts of `section`; rows are those of the section. `view` has `kind`, the checkpoint kind of error and range,
// `chosen`, the selected row, and `open`, which shows one in the table.
function drawSection(data, entry, section, rows, view) {
  const repeated = rows.filter((row) => row.repeats), out = repeated.filter((row) => row.kind === "out");
  const curves = stepCurves(data, entry, section), noisy = rows.some((row) => !row.exact), of = repeated.filter((row) => row.kind === view.kind);
  for (const [id, shown] of [["heatmap", true], ["excess", noisy], ["error", noisy], ["range", true]]) show(id, shown && repeated.length > 0);
  show("sequence", repeated.length === 0);
  show("growth", out.length > 0);
  show("steps", curves.kinds.length > 0);
  document.getElementById("range").closest("figure").classList.toggle("wide", !out.length);
  tip.hide();
  drawOthers(data, rows.filter((row) => !row.repeats), view.open);
  drawKey(data);
  drawLegend(section, rows);
  if (!repeated.length) return drawSequence(data, rows, view);
  drawHeatmap(data, section, repeated, view);
  drawRange(section, of, view);
  if (out.length) drawGrowth(section, out, view);
  if (noisy) { drawError(section, of, view); drawExcess(data, section, rows, view); }
  if (curves.kinds.length) drawSteps(data, entry, section, curves, view);
}

function drawOthers(data, rows, open) {
  document.getElementById("others").replaceChildren(...rows.slice(0, 60).map((row) => {
    const button = make("button", { type: "button", class: row.source ? "source" : "" });
    make("i", { class: cellTone(row, data.edges) === "blank-soft" ? "blank" : cellTone(row, data.edges) }, button);
    make("bdi", {}, button, row.kind || row.name);
    make("span", { class: "meta" }, button, row.verdict in UNJUDGED ? row.verdict : times(row));
    button.onclick = () => open(row.i);
    return button;
  }));
}

function drawKey(data) {
  const swatch = (name, text) => { const span = make("span"); make("i", { class: name }, span); span.append(text); return span; };
  const [match, suspect] = data.limits, e = data.edges.map((v) => short(Number(v.toPrecision(2))));
  const judge = (k) => (data.edges[k] <= match || k === 0 ? "match" : k < 8 && data.edges[k] <= suspect ? "suspect" : "diverged");
  document.getElementById("key").replaceChildren(...e.map((edge, k) => swatch("h" + k, `≤ ${edge} ${judge(k)}`)), swatch("h8", `> ${e[7]} diverged`),
    ...Object.entries(UNJUDGED).map(([verdict, d]) => {
      const span = make("span"), svg = make("svg", { "aria-hidden": "true", viewBox: "0 0 18 12" }, span);
      make("rect", { width: "100%", height: "100%", class: "blank" }, svg);
      for (let x = 0; x < 18; x += 6) for (let y = 0; y < 12; y += 6) make("path", { class: "hatch", d, transform: `translate(${x} ${y})` }, svg);
      span.append(verdict);
      return span;
    }), ...["framed: source", "= equal bit for bit"].map((text) => make("span", {}, null, text)));
}

// What the lines are: the streams of the section, and what is common to all charts.
function drawLegend(section, rows) {
  const parts = section.streams.map(([, role, title]) => [role, title]);
  if (parts.length) parts.push(["dashed", "floor"], ["thick", "reference (range, growth)"], ["", "candidate"]);
  if (rows.some((row) => row.range)) parts.push(["documented", "documented"]);
  document.getElementById("legend").replaceChildren(...parts.map(([name, text]) => {
    const span = make("span");
    make("i", { class: "line " + name }, span);
    span.append(text);
    return span;
  }), ...[["cross", "×", "not finite"], ["ring", "○", "source of a divergence"]].map(([name, mark, text]) => {
    const span = make("span");
    make("span", { class: name }, span, mark);
    span.append(" " + text);
    return span;
  }), make("span", {}, null, "drag: zoom; double click: all"));
}

// Both sides, smallest and largest value, over the documented band.
function drawRange(section, rows, { kind, open }) {
  const all = rows.flatMap((row) => [row.reference.min, row.reference.max, row.candidate.min, row.candidate.max, row.range?.low, row.range?.high].map(number));
  const series = section.streams.flatMap(([stream, ink, title]) => ["reference", "candidate"].flatMap((side) => ["min", "max"].map((end) => ({
    name: `${title}, ${side} ${end}`, ink, width: side === "reference" ? 6 : 1.7, alpha: side === "reference" ? 0.3 : 1,
    values: curve(rows.filter((row) => row.stream === stream), (row) => number(row[side][end])) }))));
  const under = (pen) => { for (const [stream] of section.streams) documentedBand(pen, rows.filter((row) => row.stream === stream && row.range)); };
  chart("range", { label: `Smallest and largest value of ${kind} over ${section.unit}s`, section, scale: signedScale(all), series, under, open, sync: "index" });
}

// What the table of ranges allows: a band over neighbouring indices, a mark of its own for one that stands alone.
function documentedBand(pen, rows) {
  const wide = (pen.x(1) - pen.x(0)) / 2, runs = [];
  for (const row of rows) { const last = runs[runs.length - 1]; if (last && last[last.length - 1].index === row.index - 1) last.push(row); else runs.push([row]); }
  for (const run of runs) {
    const half = run.length > 1 ? wide : Math.max(6, wide), edge = (end) => run.flatMap((row) => [-half, half].map((side) => [pen.x(row.index) + side, pen.y(number(row.range[end]))]));
    const [low, high] = [edge("low"), edge("high")];
    pen.area([...low, ...high.reverse()], { ink: "doc", alpha: 0.12 });
    for (const points of [low, high]) pen.path(points, { ink: "doc", width: 2.4 });
  }
}

function drawGrowth(section, out, { open }) {
  const marks = out.filter((row) => row.range), top = (row) => Math.max(Math.abs(number(row.range.low)), Math.abs(number(row.range.high)));
  const values = out.flatMap((row) => [number(row.reference.absmax), number(row.candidate.absmax)]);
  const series = section.streams.flatMap(([stream, ink, title]) => ["reference", "candidate"].map((side) => ({
    name: `${title}, ${side}`, ink, width: side === "reference" ? 6 : 1.7, alpha: side === "reference" ? 0.3 : 1,
    values: curve(out.filter((row) => row.stream === stream), (row) => number(row[side].absmax)) })));
  const over = (pen) => { for (const row of marks) {
    const x = pen.x(row.index), y = pen.y(top(row)), late = row.index > section.first + section.count / 2;
    pen.line(x - 8, y, x + 8, y, { ink: "doc", width: 2.4 });
    if (x >= pen.left && x <= pen.right) pen.text(short(top(row)), x + (late ? -12 : 12), y + (late ? -4 : 12), { align: late ? "right" : "left", bold: true, ink: "ink" });
  } };
  chart("growth", { label: `Largest magnitude of the residual after each ${section.unit}`, section, scale: logScale([...values, ...marks.map(top)], 1.6), series, over, open, sync: "index" });
}

function drawError(section, rows, { kind, open }) {
  const series = section.streams.flatMap(([stream, ink, title]) => {
    const mine = rows.filter((row) => row.stream === stream && !row.exact);
    return [{ name: `${title}, floor`, ink, width: 1.1, dash: [4, 3], values: curve(mine, (row) => number(row.floor)) },
      { name: `${title}, relative RMSE`, ink, values: curve(mine, (row) => number(row.rel_rmse)) }];
  });
  const over = (pen) => {
    if (!rows.length || !rows.every((row) => row.exact)) return;
    const words = rows.every((row) => row.verdict === "match") ? "equal bit for bit, as it must be" : "must be equal bit for bit, and is not";
    pen.text(words, (pen.left + pen.right) / 2, (pen.top + pen.bottom) / 2, { align: "center", bold: true, ink: "ink" });
  };
  chart("error", { label: `Relative RMSE and floor of ${kind} over ${section.unit}s`, section, scale: logScale(rows.flatMap((row) => [number(row.rel_rmse), number(row.floor)]), 1.8), series, over, open, sync: "index" });
}

function drawExcess(data, section, rows, { open }) {
  const [match, suspect] = data.limits, roles = Object.fromEntries(section.streams.map(([stream, ink]) => [stream, ink])), groups = new Map();
  const noisy = rows.filter((row) => !row.exact || excess(row) === Infinity);
  for (const row of noisy) {
    const name = row.repeats ? (section.streams.length > 1 ? `${row.stream}.${row.kind}` : row.kind) : "what does not repeat";
    if (!groups.has(name)) groups.set(name, { name, ink: roles[row.stream] || "muted", points: "only", values: [] });
    groups.get(name).values.push([row.repeats ? row.index : row.side * Infinity, excess(row), row]);
  }
  // What does not repeat shares an index, of which a series has one value: a series each.
  const lone = groups.get("what does not repeat");
  groups.delete("what does not repeat");
  const series = [...groups.values(), ...(lone ? lone.values.map((one) => ({ ...lone, name: one[2].kind || one[2].name, values: [one] })) : [])];
  const over = (pen) => {
    // On the middle of a pixel a line is sharp.
    for (const y of [match, suspect].map((value) => Math.round(pen.y(value)) + 0.5)) pen.line(pen.left, y, pen.right, y, { ink: "ink", dash: [5, 3] });
    const say = (value, words) => pen.text(words, pen.left + 4, pen.y(value) - 4, { bold: true, ink: "ink" }), words = [`suspect above ${short(match)}`, `diverged above ${short(suspect)}`];
    // Over many decades the two lines come too close for a line of words between them.
    if (pen.y(match) - pen.y(suspect) < 14) say(suspect, words.join(", "));
    else [match, suspect].forEach((value, i) => say(value, words[i]));
    for (const row of noisy) if (row.source && Number.isFinite(excess(row))) pen.ring(pen.x(row.repeats ? row.index : row.side * Infinity), pen.y(excess(row)), 4.8, "ink");
  };
  chart("excess", { label: `Excess of each checkpoint over ${section.unit}s`, section, scale: logScale([...noisy.map(excess), match / 10, suspect * 3], 1.5), series, sides: true, over, open, nearest: cellWords, sync: "index" });
}
