// What is selected, and what ties cards, charts, dataflow and table to it.

function sayIfEmpty(words) {
  document.getElementById("message").textContent = words;
  document.getElementById("message").hidden = !words;
  document.getElementById("figures").hidden = Boolean(words);
}

// The stage of a row, else the largest one of what repeats.
function stageOf(rows, at) {
  const sizes = new Map(), repeats = rows.some((row) => row.repeats);
  for (const row of rows) if (row.repeats || !repeats) sizes.set(row.stage, (sizes.get(row.stage) || 0) + 1);
  return at ? at.stage : [...sizes].reduce((best, one) => (one[1] > best[1] ? one : best), ["", 0])[0];
}

// Each offers what there is to choose from, and returns what is chosen.
function offerParts(entry, part) {
  const select = document.getElementById("part");
  select.replaceChildren(...entry.sections.map(({ title }, value) => make("option", { value }, null, title)));
  select.value = String(part);
  select.closest("label").hidden = entry.sections.length < 2;
  return part;
}

function offerKinds(rows, now) {
  const kinds = [...new Set(rows.map((row) => row.kind))], source = rows.find((row) => row.source), select = document.getElementById("kind");
  const kind = kinds.includes(now) ? now : source ? source.kind : ["out", "latents"].find((one) => kinds.includes(one)) || kinds[0] || "";
  select.replaceChildren(...kinds.map((one) => make("option", {}, null, one)));
  select.value = kind;
  return kind;
}

function start(data) {
  const byId = (id) => document.getElementById(id), first = Number(document.querySelector('.card[aria-pressed="true"]')?.dataset.entry || 0);
  const state = { entry: 0, part: 0, kind: null, chosen: null, stage: "" }, table = checkpointTable(data);
  const rowsOf = (entry) => data.rows.slice(entry.start, entry.start + entry.rows);
  const entryFilter = (which) => (({ name, dtype, mode }) => ({ name, dtype, mode }))(data.entries[which]);

  // Selects by way of the address, so that it can be sent, and Back undoes it.
  function select(entry, row) {
    const address = addressOf(entry, row);
    if (location.hash === address) followAddress(); else location.hash = address;
  }
  const open = (i) => select(data.rows[i].entry, data.rows[i]);

  function followAddress() {
    const parts = addressParts(location.hash);
    if (!parts.length && location.hash.length > 1) return;
    const found = parts.length ? selectionOf(data, parts, state.entry) : { which: first, row: null };
    byId("lost").hidden = Boolean(found);
    byId("lost").textContent = found ? "" : `The address names ${parts.join(", ")}, which this run does not have.`;
    if (found && found.row) showRow(found.row);
    else if (found) { table.close(); state.chosen = null; choose(found.which, parts.length > 0); if (!parts.length) byId("filters").reset(); }
  }

  function showRow(row) {
    state.chosen = row;
    if (row.repeats) state.kind = row.kind;
    if (state.entry !== row.which) choose(row.which);
    state.stage = offerStages(data, row.entry, stageOf(rowsOf(row.entry), row));
    state.part = offerParts(row.entry, row.section);
    draw();
    table.show(row, { ...entryFilter(row.which), search: row.name });
  }

  function draw() {
    const entry = data.entries[state.entry], section = entry.sections[state.part];
    const rows = rowsOf(entry).filter((row) => row.section === state.part);
    state.kind = offerKinds(rows.filter((row) => row.repeats), state.kind);
    byId("kindname").textContent = state.kind;
    byId("shown").textContent = `${entry.component} · ${entry.name} · ${entry.dtype} · ${entry.mode}`;
    // Shown before they are drawn: a chart is as wide as its place.
    sayIfEmpty(rows.length ? "" : "This entry has no checkpoints: nothing was recorded of it.");
    if (rows.length) drawSection(data, entry, section, rows, { kind: state.kind, chosen: state.chosen, open });
    drawFlow(data, entry, state.stage, state.chosen);
  }

  function choose(which, filter) {
    const entry = data.entries[which], rows = rowsOf(entry), source = rows.find((row) => row.source);
    state.entry = which;
    state.part = offerParts(entry, source ? source.section : entry.main);
    state.stage = offerStages(data, entry, stageOf(rows, state.chosen?.entry === entry ? state.chosen : source));
    document.querySelectorAll(".card").forEach((card) => card.setAttribute("aria-pressed", String(Number(card.dataset.entry) === which)));
    if (filter) { table.filter(entryFilter(which)); table.refresh(); }
    draw();
  }

  function jump(link) {
    const { entry, name, search } = link.dataset, row = name && data.rows.find((r) => r.which === Number(entry) && r.name === name);
    if (row) return open(row.i);
    table.filter({ search: name || search, verdict: "source" });
    table.refresh();
    byId("checkpoints").scrollIntoView();
  }

  byId("part").onchange = (event) => { state.part = Number(event.target.value); draw(); };
  byId("stage").onchange = (event) => { state.stage = event.target.value; draw(); };
  byId("kind").onchange = (event) => { state.kind = event.target.value; draw(); };
  document.querySelectorAll(".card").forEach((card) => { card.onclick = () => select(data.entries[Number(card.dataset.entry)], null); });
  document.querySelectorAll(".jump").forEach((link) => { link.onclick = (event) => { event.preventDefault(); jump(link); }; });
  watchKeys(data, () => state.chosen, select);
  if (!data.entries.length) {
    sayIfEmpty("This run has no entries: it was cut off before one was finished, or nothing was asked for.");
    return table.refresh();
  }
  watchHeatmap();
  whenSizeOrColoursChange(() => { draw(); table.refresh(); });
  choose(first, true);
  addEventListener("hashchange", followAddress);
  if (location.hash.length > 1) followAddress();
}

theme();
if (typeof DecompressionStream === "undefined") {
  document.getElementById("message").textContent = "This browser cannot unpack the rows (it lacks DecompressionStream). Charts and table need a newer one; parity.json has every figure.";
} else {
  decode(document.getElementById("data").textContent).then(start).catch((error) => {
    const message = document.getElementById("message");
    message.textContent = "The rows in this page could not be read or drawn: " + error.message;
    // It may have been hidden for the charts already.
    message.hidden = false;
    throw error;
  });
}
