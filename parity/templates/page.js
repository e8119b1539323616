// What is selected, and what ties cards, charts, dataflow and table to it.

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
    chooseStage(row.entry);
    state.part = row.section;
    byId("part").value = String(row.section);
    draw();
    table.show(row, { ...entryFilter(row.which), search: row.name });
  }

  function draw() {
    const entry = data.entries[state.entry], section = entry.sections[state.part], select = byId("kind");
    const rows = rowsOf(entry).filter((row) => row.section === state.part);
    const repeated = rows.filter((row) => row.repeats), kinds = [...new Set(repeated.map((row) => row.kind))], source = repeated.find((row) => row.source);
    if (!kinds.includes(state.kind)) state.kind = source ? source.kind : ["out", "latents"].find((kind) => kinds.includes(kind)) || kinds[0] || "";
    select.replaceChildren(...kinds.map((kind) => make("option", {}, null, kind)));
    select.value = state.kind;
    byId("kindname").textContent = state.kind;
    byId("shown").textContent = `${entry.component} · ${entry.name} · ${entry.dtype} · ${entry.mode}`;
    // Shown before they are drawn: a chart is as wide as its place.
    sayIfEmpty(rows.length ? "" : "This entry has no checkpoints: nothing was recorded of it.");
    if (rows.length) drawSection(data, entry, section, rows, { kind: state.kind, chosen: state.chosen, open });
    drawFlow(data, entry, state.stage, state.chosen);
  }

  function sayIfEmpty(words) {
    byId("message").textContent = words;
    byId("message").hidden = !words;
    byId("figures").hidden = Boolean(words);
  }

  // The stage of what is selected, else of the first source, else the largest one of what repeats.
  function chooseStage(entry) {
    const rows = rowsOf(entry), sizes = new Map();
    const repeats = rows.some((row) => row.repeats);
    for (const row of rows) if (row.repeats || !repeats) sizes.set(row.stage, (sizes.get(row.stage) || 0) + 1);
    const largest = [...sizes].reduce((best, one) => (one[1] > best[1] ? one : best), ["", 0])[0];
    const at = state.chosen?.entry === entry ? state.chosen : rows.find((row) => row.source);
    state.stage = at ? at.stage : largest;
    offerStages(data, entry, state.stage);
  }

  function offerParts(entry) {
    const source = rowsOf(entry).find((row) => row.source);
    state.part = source ? source.section : entry.main;
    const options = entry.sections.map(({ title }, value) => make("option", { value }, null, title));
    byId("part").replaceChildren(...options);
    byId("part").value = String(state.part);
    byId("part").closest("label").hidden = entry.sections.length < 2;
  }

  function choose(which, filter) {
    state.entry = which;
    offerParts(data.entries[which]);
    chooseStage(data.entries[which]);
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
    document.getElementById("message").textContent = "The rows in this page could not be read: " + error.message;
    throw error;
  });
}
