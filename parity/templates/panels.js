// The charts of one section of an entry: what shares one axis, or has none.

const cellClass = (row, edges) => (row.verdict in UNJUDGED ? "" : Number.isNaN(excess(row)) ? "blank" : "h" + stepOf(excess(row), edges));
const show = (id, shown) => { document.getElementById(id).closest("figure").hidden = !shown; };

// All charts of `section`; rows are those of the section, `open` shows one in the table.
function drawSection(data, entry, section, rows, kind, open) {
  const repeated = rows.filter((row) => row.repeats), out = repeated.filter((row) => row.kind === "out");
  const curves = stepCurves(data, entry, section);
  const noisy = rows.some((row) => !row.exact);
  for (const [id, shown] of [["heatmap", true], ["excess", noisy], ["error", noisy], ["range", true]]) show(id, shown && repeated.length > 0);
  show("sequence", repeated.length === 0);
  show("growth", out.length > 0);
  show("steps", curves.kinds.length > 0);
  document.getElementById("excess").closest("figure").classList.toggle("wide", !out.length);
  document.getElementById("range").closest("figure").classList.toggle("wide", !noisy);
  drawOthers(data, rows.filter((row) => !row.repeats), open);
  drawKey(data);
  drawLegend(section, rows);
  if (!repeated.length) return drawSequence(data, rows, open);
  drawHeatmap(data, section, repeated, open);
  if (noisy) drawExcess(data, section, rows);
  if (out.length) drawGrowth(section, out);
  if (curves.kinds.length) drawSteps(data, entry, section, curves);
  drawKind(section, repeated.filter((row) => row.kind === kind), kind, noisy);
}

function drawHeatmap(data, section, rows, open) {
  const name = (row) => (section.streams.length > 1 ? `${row.stream}.${row.kind}` : row.kind), order = section.streams.map(([stream]) => stream);
  const kinds = [...new Set([...rows].sort((a, b) => order.indexOf(a.stream) - order.indexOf(b.stream)).map(name))];
  const deep = kinds.length > 6 ? 15 : 22, left = 96;
  const { svg, width } = canvas("heatmap", kinds.length * deep + 34, `Excess of ${rows.length} checkpoints by kind and ${section.unit}; the table below has the same figures`);
  const wide = (width - left - 2) / Math.max(section.count, 1), defs = make("defs", {}, svg), middle = deep / 2 + 3.5;
  for (const [verdict, d] of Object.entries(UNJUDGED)) {
    const pattern = make("pattern", { id: "hatch-" + verdict, width: 6, height: 6, patternUnits: "userSpaceOnUse" }, defs);
    make("rect", { width: 6, height: 6, class: "blank" }, pattern);
    make("path", { class: "hatch", d }, pattern);
  }
  kinds.forEach((kind, k) => make("text", { x: left - 6, y: k * deep + middle, "text-anchor": "end" }, svg, kind.length > 16 ? kind.slice(0, 15) + "…" : kind));
  const frames = make("g");
  for (const row of rows) {
    const box = { x: left + (row.index - section.first) * wide, y: kinds.indexOf(name(row)) * deep, width: wide, height: deep - 1 };
    const cell = make("rect", { ...box, "data-row": row.i, class: "cell " + cellClass(row, data.edges) }, svg);
    if (row.verdict in UNJUDGED) cell.setAttribute("fill", `url(#hatch-${row.verdict})`);
    make("title", {}, cell, `${row.name}: ${row.verdict}, ${row.exact ? "" : "excess "}${times(row)}${row.source ? ", source" : ""}`);
    // Two lines, so that the frame shows on light and on dark cells.
    if (row.source) for (const [inset, name] of [[0.7, "frame"], [2, "frame inner"]].slice(0, wide > 8 ? 2 : 1)) {
      make("rect", { x: box.x + inset, y: box.y + inset, width: Math.max(0.1, wide - 2 * inset), height: deep - 1 - 2 * inset, class: name }, frames);
    }
    const mark = row.exact && row.verdict === "match" ? "=" : row.exact && row.mismatches ? "≠" : excess(row) === Infinity ? "×" : "";
    if (mark && wide > 8) make("text", { class: mark === "=" ? "equal" : "burnt", x: box.x + wide / 2, y: box.y + middle - 0.5, "text-anchor": "middle", "pointer-events": "none" }, frames, mark);
  }
  svg.append(frames);
  for (const b of indexTicks(section, Math.min(20, width / 60))) make("text", { x: left + (b - section.first + 0.5) * wide, y: kinds.length * deep + 13, "text-anchor": "middle" }, svg, b);
  make("text", { x: (left + width) / 2, y: kinds.length * deep + 29, "text-anchor": "middle" }, svg, section.unit);
  svg.onclick = (event) => { if (event.target.dataset.row) open(Number(event.target.dataset.row)); };
}

function drawOthers(data, rows, open) {
  document.getElementById("others").replaceChildren(...rows.slice(0, 60).map((row) => {
    const button = make("button", { type: "button", class: row.source ? "source" : "" });
    make("i", { class: cellClass(row, data.edges) || "blank" }, button);
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
    ...Object.keys(UNJUDGED).map((verdict) => {
      const span = make("span"), svg = make("svg", { "aria-hidden": "true" }, span);
      make("rect", { width: "100%", height: "100%", fill: `url(#hatch-${verdict})` }, svg);
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
  }));
}

function drawExcess(data, section, rows) {
  const [match, suspect] = data.limits, scale = logScale([...rows.map(excess), match / 10, suspect * 3], 1.5);
  const panel = frame("excess", `Excess of each checkpoint over ${section.unit}s`, section, scale, { sides: true });
  const roles = Object.fromEntries(section.streams);
  for (const value of [match, suspect]) make("line", { class: "limit", x1: panel.left, x2: panel.right, y1: panel.y(value), y2: panel.y(value) }, panel.svg);
  const say = (value, words) => make("text", { class: "strong", x: panel.left + 4, y: panel.y(value) - 4 }, panel.svg, words);
  const words = [`suspect above ${short(match)}`, `diverged above ${short(suspect)}`];
  // Over many decades the two lines come too close for a line of words between them.
  if (panel.y(match) - panel.y(suspect) < 14) say(suspect, words.join(", "));
  else [match, suspect].forEach((value, i) => say(value, words[i]));
  for (const row of rows) {
    const value = excess(row), x = row.repeats ? panel.x(row.index) : row.side < 0 ? panel.left + panel.gap / 2 : panel.right - panel.gap / 2;
    if (value === Infinity) make("text", { class: "bad", x, y: panel.top + 8, "text-anchor": "middle" }, panel.svg, "×");
    // Zero, of what is equal bit for bit, has no place on a logarithmic axis.
    if (!Number.isFinite(value) || (row.exact && value === 0)) continue;
    const dot = make("circle", { class: roles[row.stream] || "other", cx: x, cy: panel.y(value), r: rows.length < 150 ? 3 : 2.2 }, panel.svg);
    make("title", {}, dot, `${row.name}: ${times(row)}`);
    if (row.source) make("circle", { class: "source", cx: x, cy: panel.y(value), r: 4.5 }, panel.svg);
  }
}

function drawGrowth(section, out) {
  const marks = out.filter((row) => row.range), top = (row) => Math.max(Math.abs(number(row.range.low)), Math.abs(number(row.range.high)));
  const values = out.flatMap((row) => [number(row.reference.absmax), number(row.candidate.absmax)]);
  const panel = frame("growth", `Largest magnitude of the residual after each ${section.unit}`, section, logScale([...values, ...marks.map(top)], 1.6));
  for (const [stream, role] of section.streams) for (const side of ["reference", "candidate"]) {
    line(panel, out.filter((row) => row.stream === stream).map((row) => [row.index, number(row[side].absmax)]), `${role} ${side}`);
  }
  for (const row of marks) {
    const y = panel.y(top(row)), late = row.index > section.first + section.count / 2;
    make("line", { class: "documented", x1: panel.x(row.index) - 8, x2: panel.x(row.index) + 8, y1: y, y2: y }, panel.svg);
    make("text", { class: "strong", x: panel.x(row.index) + (late ? -12 : 12), y: y + (late ? -4 : 12), "text-anchor": late ? "end" : "start" }, panel.svg, short(top(row)));
  }
}

function drawKind(section, rows, kind, noisy) {
  if (noisy) drawError(section, rows, kind);
  drawRange(section, rows, kind);
}

function drawError(section, rows, kind) {
  const panel = frame("error", `Relative RMSE and floor of ${kind} over ${section.unit}s`, section, logScale(rows.flatMap((row) => [number(row.rel_rmse), number(row.floor)]), 1.8));
  if (rows.length && rows.every((row) => row.exact)) {
    const words = rows.every((row) => row.verdict === "match") ? "equal bit for bit, as it must be" : "must be equal bit for bit, and is not";
    make("text", { class: "strong", x: (panel.left + panel.right) / 2, y: 110, "text-anchor": "middle" }, panel.svg, words);
  } else for (const [stream, role] of section.streams) {
    const mine = rows.filter((row) => row.stream === stream);
    line(panel, mine.map((row) => [row.index, number(row.floor)]), `${role} floor`);
    line(panel, mine.map((row) => [row.index, number(row.rel_rmse)]), role);
  }
}

function drawRange(section, rows, kind) {
  const all = rows.flatMap((row) => [row.reference.min, row.reference.max, row.candidate.min, row.candidate.max, row.range?.low, row.range?.high].map(number));
  const range = frame("range", `Smallest and largest value of ${kind} over ${section.unit}s`, section, signedScale(all));
  for (const [stream, role] of section.streams) {
    for (const side of ["reference", "candidate"]) for (const end of ["min", "max"]) {
      line(range, rows.filter((row) => row.stream === stream).map((row) => [row.index, number(row[side][end])]), `${role} ${side}`);
    }
  }
  const half = Math.max(6, (range.x(1) - range.x(0)) / 2);
  for (const row of rows) for (const end of row.range ? [row.range.low, row.range.high] : []) {
    make("line", { class: "documented", x1: range.x(row.index) - half, x2: range.x(row.index) + half, y1: range.y(number(end)), y2: range.y(number(end)) }, range.svg);
  }
}

// What does not repeat: a line a checkpoint in order, excess beside error and range where there is room.
function drawSequence(data, rows, open) {
  const deep = 16, name = (row) => row.kind || row.name, longest = Math.max(0, ...rows.map((row) => name(row).length));
  const { svg, width } = canvas("sequence", rows.length * deep + 78, `Excess of ${rows.length} checkpoints in order; the table below has the same figures`);
  const letters = Math.min(longest, width < 560 ? 22 : 40), left = 12 + letters * 6.7, right = width - 62, [match, suspect] = data.limits;
  const panels = [["excess", logScale([...rows.map(excess), match / 10, suspect * 3], 1.5)]];
  if (width > 620) panels.push(["relative RMSE and floor", logScale(rows.filter((row) => !row.exact).flatMap((row) => [number(row.rel_rmse), number(row.floor)]), 1.8)]);
  if (width > 900) panels.push(["smallest to largest value", signedScale(rows.flatMap((row) => [row.reference, row.candidate].flatMap((side) => [number(side.min), number(side.max)])))]);
  const room = (right - left - 60) / panels.length, top = 40, bottom = top + rows.length * deep;
  const x = panels.map(([, scale], k) => (value) => left + k * (room + 30) + (k ? 30 : 0) + scale.at(value) * (room - 20));
  let shaded = false;
  rows.forEach((row, k) => {
    shaded = k && rows[k - 1].stage !== row.stage ? !shaded : shaded;
    const line = make("rect", { class: "band" + (shaded ? " shaded" : ""), x: 0, y: top + k * deep, width, height: deep, "data-row": row.i }, svg);
    make("title", {}, line, `${row.name}: ${row.verdict}, ${row.exact ? "" : "excess "}${times(row)}`);
  });
  panels.forEach(([title, scale], k) => {
    for (const value of scale.ticks) {
      make("line", { class: "grid", x1: x[k](value), x2: x[k](value), y1: top, y2: bottom }, svg);
      for (const y of [top - 5, bottom + 14]) make("text", { x: x[k](value), y, "text-anchor": "middle" }, svg, short(value));
    }
    make("text", { class: "strong", x: left + k * (room + 30) + (k ? 30 : 0), y: top - 22 }, svg, title);
  });
  for (const value of [match, suspect]) {
    make("line", { class: "limit", x1: x[0](value), x2: x[0](value), y1: top, y2: bottom + 18 }, svg);
    make("text", { x: x[0](value), y: bottom + 30, "text-anchor": "middle" }, svg, short(value));
  }
  rows.forEach((row, k) => sequenceLine(svg, row, top + k * deep + deep / 2, x, { left, right, name: name(row), letters }));
  svg.onclick = (event) => { if (event.target.dataset.row) open(Number(event.target.dataset.row)); };
}

function sequenceLine(svg, row, y, x, { left, right, name, letters }) {
  const still = { "pointer-events": "none" }, value = excess(row), judged = !(row.verdict in UNJUDGED);
  make("text", { ...still, class: row.source ? "strong" : "", x: left - 8, y: y + 4, "text-anchor": "end" }, svg, name.length > letters ? "…" + name.slice(1 - letters) : name);
  make("text", { ...still, class: row.verdict === "match" ? "" : "strong", x: right + 6, y: y + 4 }, svg, judged ? times(row) : row.verdict);
  const mark = (k, number, name) => make("circle", { ...still, class: name, cx: x[k](number), cy: y, r: 3.4 }, svg);
  if (judged && !row.exact && !Number.isNaN(value)) {
    make("line", { ...still, class: "stem " + row.verdict, x1: left, x2: x[0](value), y1: y, y2: y }, svg);
    if (value === Infinity) make("text", { ...still, class: "bad", x: x[0](value) - 4, y: y + 4 }, svg, "×"); else mark(0, value, row.verdict);
  }
  if (row.source) make("circle", { ...still, class: "source", cx: x[0](Number.isNaN(value) ? 1 : value), cy: y, r: 6 }, svg);
  if (x.length > 1 && !row.exact && Number.isFinite(number(row.floor))) {
    make("line", { ...still, class: "tick", x1: x[1](row.floor), x2: x[1](row.floor), y1: y - 5, y2: y + 5 }, svg);
    if (Number.isFinite(number(row.rel_rmse))) mark(1, row.rel_rmse, row.verdict);
  }
  const span = [number(row.candidate.min), number(row.candidate.max)];
  if (x.length > 2 && span.every(Number.isFinite)) {
    make("rect", { ...still, class: "span", x: x[2](span[0]), width: Math.max(1, x[2](span[1]) - x[2](span[0])), y: y - 4.5, height: 9 }, svg);
  }
}

const STEP_KINDS = { latents: "latents after the step", noise_pred: "noise prediction, guided", cond: "prediction with the prompt", uncond: "prediction without the prompt" };
const STEP_MODES = [["accumulated", "img"], ["isolated", "txt"]];

// Mode -> kind -> rows of what goes from step to step, of both modes of the entry's case and dtype.
function stepCurves(data, entry, section) {
  const found = {};
  if (section.streams.some(([stream]) => stream === "step") && section.count > 1) for (const one of data.entries) {
    if (one.name !== entry.name || one.dtype !== entry.dtype) continue;
    found[one.mode] = data.rows.slice(one.start, one.start + one.rows).filter((row) => row.stream === "step" && row.kind in STEP_KINDS);
  }
  const all = Object.values(found).flat();
  return { modes: found, kinds: Object.keys(STEP_KINDS).filter((kind) => all.some((row) => row.kind === kind)), all };
}

function drawSteps(data, entry, section, { modes, kinds, all }) {
  const scale = logScale(all.flatMap((row) => [number(row.rel_rmse), number(row.floor), number(row.floor) * data.limits[0]]), 1.5);
  document.getElementById("growthwords").textContent = entry.growth;
  document.getElementById("steps").replaceChildren(...kinds.map(() => make("div")));
  kinds.forEach((kind, k) => {
    const box = document.getElementById("steps").children[k], title = `${kind}: ${STEP_KINDS[kind]}`;
    const panel = frame(box, `Relative RMSE over the steps of the ${title}`, section, scale, { end: 40, height: 210 });
    make("text", { class: "strong", x: panel.left, y: 6 }, panel.svg, title);
    for (const [mode, role] of STEP_MODES) {
      const rows = (modes[mode] || []).filter((row) => row.kind === kind), error = rows.map((row) => [row.index, number(row.rel_rmse)]);
      const floor = rows.map((row) => [row.index, number(row.floor)]).filter(([, value]) => Number.isFinite(value) && value > 0);
      const at = ([index, value]) => `${panel.x(index).toFixed(1)} ${panel.y(value).toFixed(1)}`;
      const above = [...floor].reverse().map(([index, value]) => at([index, value * data.limits[0]]));
      if (floor.length > 1) make("path", { class: `area ${role}`, d: `M${floor.map(at).join("L")}L${above.join("L")}Z` }, panel.svg);
      line(panel, floor, `${role} floor`);
      line(panel, error, role);
      const [start, end] = [error[0]?.[1], error[error.length - 1]?.[1]];
      if (mode === "accumulated" && start > 0 && Number.isFinite(end / start)) make("text", { class: "strong " + role, x: panel.right + 4, y: panel.y(end) + 4 }, panel.svg, "×" + short(Number((end / start).toPrecision(3))));
    }
  });
}
