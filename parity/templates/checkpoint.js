// What the page has of single checkpoints: worst elements, where in the array the error lies, histograms of both sides.

// Draws into `box`, which is in the page already, since a chart is as wide as its place.
function drawPanel(data, row, box) {
  const panel = data.panels[row.i], drawings = [], figure = (title, words, draw) => {
    const one = make("figure", {}, box), caption = make("figcaption", {}, one);
    make("b", {}, caption, title);
    make("span", {}, caption, words);
    const place = make("div", { class: "plot" }, one);
    drawings.push(() => draw(place));
  };
  if (!panel) {
    if (row.verdict === "suspect" || row.verdict === "diverged") make("p", { class: "meta wide" }, box, "No more is in this page: worst elements, profiles and histograms are there for sources and for the first checkpoints that are off, where the run folder has them.");
    return;
  }
  if (panel.worst) figure("Worst elements", row.exact ? "against the reference’s value" : "against the truth", (place) => drawWorst(row, panel.worst, place));
  for (const axis of panel.axes || []) figure(`Error along the ${axis.title} axis`, `${profileWords(axis)}. Line: rms; dots: largest single index; dashed: truth`, (place) => drawProfile(axis, place));
  if (panel.histogram) figure("Histogram of |x|", "share of the values a binade; zeros are left out", (place) => drawHistogram(panel.histogram, place));
  // Each figure is as narrow as those beside it make it: all are there before one is drawn.
  for (const draw of drawings) draw();
}

function drawWorst(row, elements, box) {
  // It may be wider than a phone, and then the keyboard must reach it to move it.
  Object.entries({ tabindex: 0, role: "region", "aria-label": "Worst elements" }).forEach(([key, value]) => box.setAttribute(key, value));
  const table = make("table", { class: "metrics" }, box), line = (cells, tag, parent) => {
    const tr = make("tr", {}, parent);
    cells.forEach((text, k) => make(k ? tag : "th", k && tag === "td" ? { class: "number" } : { scope: tag === "th" ? "col" : "row" }, tr, text));
  };
  line(["index", "candidate", row.exact ? "reference" : "truth", "difference"], "th", make("thead", {}, table));
  const body = make("tbody", {}, table);
  for (const [index, candidate, truth] of elements) {
    const difference = typeof candidate === "number" && typeof truth === "number" ? candidate - truth : null;
    line([`[${index.join(", ")}]`, format(candidate), format(truth), format(difference)], "td", body);
  }
}

// First and last index of a bin of an axis.
const binOf = (axis, bins, k) => [Math.floor((k * axis.length) / bins), Math.floor(((k + 1) * axis.length) / bins) - 1];

// Where the error is, in words: the bin with most of its square, if it has more than its part.
function profileWords(axis) {
  const bins = axis.error.length, size = ([from, to]) => to - from + 1;
  const squares = axis.error.map((value, k) => (value || 0) ** 2 * size(binOf(axis, bins, k))), total = squares.reduce((a, b) => a + b, 0);
  const largest = squares.indexOf(Math.max(...squares)), share = squares[largest] / total, [from, to] = binOf(axis, bins, largest);
  const bad = (axis.bad || []).reduce((a, b) => a + b, 0), said = [`of ${axis.length.toLocaleString("en")}, largest at ${axis.worst}`];
  if (share > 2.5 / bins && share > 0.05) said.push(`${Math.round(100 * share)} % of the squared error is at ${from === to ? from : `${from}–${to}`}`);
  else if (total > 0) said.push("evenly spread");
  if (bad) said.push(`${bad.toLocaleString("en")} values are not finite`);
  return said.join("; ");
}

function drawProfile(axis, box) {
  const bins = axis.error.length, middle = (k) => binOf(axis, bins, k).reduce((a, b) => a + b) / 2, points = (values) => values.map((value, k) => [middle(k), value ?? NaN]);
  const named = (x) => { const k = axis.error.findIndex((value, k) => middle(k) === x), [from, to] = k < 0 ? [x, x] : binOf(axis, bins, k); return from === to ? String(from) : `${from}–${to}`; };
  const series = [{ name: "truth, rms", ink: "muted", width: 1.1, dash: [4, 3], values: points(axis.truth) }, { name: "error, rms", ink: "bad", values: points(axis.error) }];
  if (axis.length > bins) series.push({ name: "error, largest single index", ink: "bad", alpha: 0.6, points: "only", values: points(axis.peak) });
  if (axis.bad?.some(Boolean)) series.push({ name: "not finite", ink: "bad", quiet: true, values: axis.bad.flatMap((count, k) => (count ? [[middle(k), Infinity]] : [])) });
  chart(box, { label: `Error along the ${axis.title} axis: ${profileWords(axis)}`, section: { first: 0, count: axis.length, unit: axis.title }, series, height: 190,
    scale: logScale([...axis.error, ...axis.peak, ...axis.truth].map((value) => value ?? NaN), 1.6), xName: named });
}

function drawHistogram([low, reference, candidate], box) {
  const total = (counts) => counts.reduce((a, b) => a + b, 0) || 1, shares = [reference, candidate].map((counts) => counts.map((count, k) => [k, count / total(counts)]));
  const percent = (share) => `${Number((100 * share).toPrecision(2))} %`;
  chart(box, { label: "Shares of the values a binade, reference and candidate", section: { first: 0, count: reference.length, unit: "|x|: reference filled, candidate a line" }, height: 190,
    scale: shareScale(shares.flat().map(([, share]) => share)), xName: (k) => short(2 ** (low + k)), yName: percent,
    series: [{ name: "reference", ink: "img", alpha: 0.35, paths: uPlot.paths.bars({ size: [0.9] }), fill: true, width: 0, values: shares[0] },
      { name: "candidate", ink: "bad", paths: uPlot.paths.stepped({ align: 0 }), width: 1.7, values: shares[1] }] });
}
