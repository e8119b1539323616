// Error over the steps of a pipeline: a chart a kind of what goes from step to step, both modes in each.

const STEP_KINDS = { latents: "latents after the step", noise_pred: "noise prediction, guided", cond: "prediction with the prompt", uncond: "prediction without the prompt" };
const STEP_MODES = [["accumulated", "img"], ["isolated", "txt"]];

// Mode -> rows of what goes from step to step, of both modes of the entry's case and dtype.
function stepCurves(data, entry, section) {
  const found = {};
  if (section.streams.some(([stream]) => stream === "step") && section.count > 1) for (const one of data.entries) {
    if (one.name !== entry.name || one.dtype !== entry.dtype) continue;
    found[one.mode] = data.rows.slice(one.start, one.start + one.rows).filter((row) => row.stream === "step" && row.kind in STEP_KINDS);
  }
  const all = Object.values(found).flat();
  return { modes: found, kinds: Object.keys(STEP_KINDS).filter((kind) => all.some((row) => row.kind === kind)), all };
}

function drawSteps(data, entry, section, { modes, kinds, all }, { open }) {
  const scale = logScale(all.flatMap((row) => [number(row.rel_rmse), number(row.floor), number(row.floor) * data.limits[0]]), 1.5), place = document.getElementById("steps");
  document.getElementById("growthwords").textContent = entry.growth;
  if (place.children.length !== kinds.length) place.replaceChildren(...kinds.map(() => { const one = make("div"); make("div", {}, one); return one; }));
  kinds.forEach((kind, k) => {
    const title = `${kind}: ${STEP_KINDS[kind]}`, series = [], bands = [], ends = [];
    for (const [mode, ink] of STEP_MODES) {
      const rows = (modes[mode] || []).filter((row) => row.kind === kind), error = curve(rows, (row) => number(row.rel_rmse));
      const floors = curve(rows, (row) => number(row.floor)).filter(([, value]) => Number.isFinite(value) && value > 0);
      const floor = { name: `${mode}, floor`, ink, width: 1.1, dash: [4, 3], values: floors };
      const limit = { name: `${mode}, limit of a match`, ink, width: 0, quiet: true, values: floors.map(([index, value]) => [index, value * data.limits[0]]) };
      series.push(floor, limit, { name: `${mode}, relative RMSE`, ink, values: error });
      bands.push([limit, floor, ink]);
      const [start, end] = [error[0]?.[1], error[error.length - 1]?.[1]];
      if (mode === "accumulated" && start > 0 && Number.isFinite(end / start)) ends.push(["×" + short(Number((end / start).toPrecision(3))), end, ink]);
    }
    const over = (pen) => {
      pen.text(title, pen.left, pen.top - 4, { bold: true, ink: "ink" });
      for (const [words, value, ink] of ends) pen.text(words, pen.right + 4, pen.y(value) + 4, { bold: true, ink });
    };
    chart(place.children[k].firstChild, { label: `Relative RMSE over the steps of the ${title}`, section, scale, series, bands, over, open, end: 54, height: 210, sync: "step" });
  });
}
