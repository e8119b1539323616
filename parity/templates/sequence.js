// Checkpoints that do not repeat, a line each, in SVG: names need the room that a chart over blocks has not.

// An empty picture in `box`, an element or its id.
function picture(box, height, label) {
  if (typeof box === "string") box = document.getElementById(box);
  const width = Math.max(260, box.clientWidth);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label });
  box.replaceChildren(svg);
  return { svg, width, height };
}

// More lines than this nobody reads.
const MOST_LINES = 300;

function furthest(rows, chosen) {
  const rank = (row) => (row === chosen ? 3 : row.source ? 2 : row.verdict === "match" ? 0 : 1), size = (row) => excess(row) || 0;
  return [...rows].sort((a, b) => rank(b) - rank(a) || (size(b) > size(a)) - (size(b) < size(a)) || a.i - b.i).slice(0, MOST_LINES).sort((a, b) => a.i - b.i);
}

// What does not repeat: a line a checkpoint in order, excess beside error and range where there is room.
function drawSequence(data, every, { open, chosen }) {
  const rows = every.length > MOST_LINES ? furthest(every, chosen) : every;
  document.getElementById("cutwords").textContent = rows.length < every.length ? `${rows.length} of ${every.length.toLocaleString("en")} checkpoints: sources and those with the largest excess.` : "";
  const deep = 16, name = (row) => row.kind || row.name, longest = most(rows.map((row) => name(row).length), 0);
  const { svg, width } = picture("sequence", rows.length * deep + 78, `Excess of ${rows.length} checkpoints in order; the table below has the same figures`);
  const letters = Math.min(longest, width < 560 ? 22 : 40), left = 12 + letters * 6.7, right = width - 62, [match, suspect] = data.limits;
  const panels = [["excess", logScale([...rows.map(excess), match / 10, suspect * 3], 1.5)]];
  if (width > 620) panels.push(["relative RMSE and floor", logScale(rows.filter((row) => !row.exact).flatMap((row) => [number(row.rel_rmse), number(row.floor)]), 1.8)]);
  if (width > 900) panels.push(["smallest to largest value", signedScale(rows.flatMap((row) => [row.reference, row.candidate].flatMap((side) => [number(side.min), number(side.max)])))]);
  const room = (right - left - 60) / panels.length, top = 40, bottom = top + rows.length * deep;
  const x = panels.map(([, scale], k) => (value) => left + k * (room + 30) + (k ? 30 : 0) + scale.at(value) * (room - 20));
  let shaded = false;
  rows.forEach((row, k) => {
    shaded = k && rows[k - 1].stage !== row.stage ? !shaded : shaded;
    const line = make("rect", { class: `band${shaded ? " shaded" : ""}${row === chosen ? " chosen" : ""}`, x: 0, y: top + k * deep, width, height: deep, "data-row": row.i }, svg);
    make("title", {}, line, cellWords(row));
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
